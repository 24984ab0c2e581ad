"""Kernels on a GPU against their CPU references: bit for bit, and the norm to rounding."""

import functools

import pytest
import torch
from kernel_pieces import FORMATS, NUMBERS, bits, piece, same_bits_or_nan

from pipert._C import kernels

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(60)]

ALL_FORMATS = ["as_is", *FORMATS, "fp8_block"]
MANY_POLLS = 2_000_000  # seconds at most


def on_gpu(tensor, offset):
    """The same values, `offset` elements into an allocation of the GPU."""
    whole = torch.zeros(tensor.numel() + offset, dtype=tensor.dtype, device="cuda")
    whole[offset:] = tensor.cuda()
    return whole[offset:]


@functools.cache
def batches():
    """Lists of tensors on the CPU, with the offsets at which they begin on the GPU."""
    mixed = [piece(n, NUMBERS[n % 3], seed=n) for n in (1, 5, 0, 4096, 8191, 70_001, 31, 32, 33)]
    small = [piece(1 + i % 97, NUMBERS[i % 3], seed=i) for i in range(500)]
    same = [piece(20_000 + i, torch.float32, seed=i) for i in range(3)]
    return {
        "mixed": (mixed, [0] * 9),
        "unaligned": (mixed, [1, 2, 3, 1, 3, 5, 7, 1, 4]),
        "many_small": (small, [i % 4 for i in range(500)]),
        "big": ([piece(9_000_001, torch.float32)], [0]),
        "big_half": ([piece(9_000_001, torch.bfloat16)], [1]),
        "no_tensors": ([], []),
        "all_empty": ([torch.empty(0), torch.empty(0, dtype=torch.float16)], [0, 0]),
        "same_dtype": (same, [0, 0, 0]),
    }


BATCHES = (
    *("mixed", "unaligned", "many_small", "big", "big_half"),
    *("no_tensors", "all_empty", "same_dtype"),
)


def assert_same_bits(found, expected, what):
    found, expected = bits(found), bits(expected)
    wrong = (found != expected).nonzero().flatten()
    assert wrong.numel() == 0, (
        f"{what}: {wrong.numel()} of {found.numel()} differ, first at {wrong[:8].tolist()}: "
        f"{found[wrong[:8]].tolist()}, not {expected[wrong[:8]].tolist()}"
    )


@pytest.mark.parametrize("slot_offset", [0, 1, 8])
@pytest.mark.parametrize("format", ALL_FORMATS)
@pytest.mark.parametrize("batch", BATCHES)
def test_slots_and_what_comes_back_equal_the_reference_bit_for_bit(batch, format, slot_offset):  # noqa: A002
    tensors, offsets = batches()[batch]
    num_bytes = kernels.packed_bytes(tensors, format)
    expected = torch.full((num_bytes,), 0xEE, dtype=torch.uint8)
    kernels.pack(tensors, expected, format)
    there = [on_gpu(tensor, offset) for tensor, offset in zip(tensors, offsets, strict=True)]
    slot = torch.full((num_bytes + slot_offset,), 0xEE, dtype=torch.uint8, device="cuda")
    slot = slot[slot_offset:]
    assert kernels.pack(there, slot, format) == num_bytes
    assert_same_bits(slot, expected, "slot")
    expected_back = [torch.zeros_like(tensor) for tensor in tensors]
    kernels.unpack(expected, expected_back, format)
    guarded = [
        torch.full((t.numel() + o + 9,), 7, dtype=t.dtype, device="cuda")
        for t, o in zip(tensors, offsets, strict=True)
    ]
    back = [g[o : o + t.numel()] for g, t, o in zip(guarded, tensors, offsets, strict=True)]
    assert kernels.unpack(slot, back, format) == num_bytes
    for i, (found, reference) in enumerate(zip(back, expected_back, strict=True)):
        assert_same_bits(found, reference, f"tensor {i} of {found.numel()} {found.dtype}")
    for whole, found, offset in zip(guarded, back, offsets, strict=True):
        assert (whole[:offset] == 7).all()
        assert (whole[offset + found.numel() :] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("format", ALL_FORMATS)
def test_every_number_of_16_bits_is_cast_as_by_the_reference(format, dtype):  # noqa: A002
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    expected = torch.zeros(kernels.packed_bytes([every], format), dtype=torch.uint8)
    kernels.pack([every], expected, format)
    slot = torch.zeros_like(expected, device="cuda")
    kernels.pack([every.cuda()], slot, format)
    assert_same_bits(slot, expected, "slot")


@pytest.mark.parametrize("format", ["bfloat16", "float16", "fp8_block"])
def test_float32_of_any_bits_is_cast_as_by_the_reference(format):  # noqa: A002
    generator = torch.Generator().manual_seed(3)
    anything = torch.randint(-(2**31), 2**31, (2_000_000,), generator=generator, dtype=torch.int64)
    values = anything.to(torch.int32).view(torch.float32)
    expected = torch.zeros(kernels.packed_bytes([values], format), dtype=torch.uint8)
    kernels.pack([values], expected, format)
    slot = torch.zeros_like(expected, device="cuda")
    kernels.pack([values.cuda()], slot, format)
    assert_same_bits(slot, expected, "slot")


@pytest.mark.parametrize("batch", BATCHES)
def test_main_gradients_equal_the_reference_and_torch_bit_for_bit(batch):
    gradients, offsets = batches()[batch]
    mains = [piece(t.numel(), torch.float32, seed=i + 99) for i, t in enumerate(gradients)]
    gradients_there = [on_gpu(t, o) for t, o in zip(gradients, offsets, strict=True)]
    mains_there = [on_gpu(t, o) for t, o in zip(mains, offsets, strict=True)]
    by_torch = [m.clone().add_(g) for m, g in zip(mains_there, gradients_there, strict=True)]
    kernels.accumulate(gradients, mains)
    kernels.accumulate(gradients_there, mains_there)
    for found, reference, torchs in zip(mains_there, mains, by_torch, strict=True):
        assert same_bits_or_nan(found.cpu(), reference)
        assert same_bits_or_nan(found.cpu(), torchs.cpu())


def check(tensors):
    device = tensors[0].device if tensors else "cuda"
    flag = torch.full((1,), -1, dtype=torch.int32, device=device)
    norm = torch.full((1,), -1.0, device=device)
    kernels.check_finite(tensors, flag, norm)
    return flag.item(), norm.item()


def finite_batch(batch):
    tensors, offsets = batches()[batch]
    return [
        piece(t.numel(), t.dtype, seed=i, special=False) for i, t in enumerate(tensors)
    ], offsets


@pytest.mark.parametrize("batch", BATCHES)
def test_the_norm_equals_the_reference_and_is_the_same_each_time(batch):
    tensors, offsets = finite_batch(batch)
    there = [on_gpu(tensor, offset) for tensor, offset in zip(tensors, offsets, strict=True)]
    expected = check(tensors) if tensors else (0, 0.0)
    first = check(there)
    assert first[0] == expected[0] == 0
    assert first[1] == pytest.approx(expected[1], rel=1e-5)
    assert [check(there) for _ in range(5)] == [first] * 5


@pytest.mark.parametrize("batch", ["mixed", "unaligned", "many_small", "big"])
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_a_single_value_that_is_not_finite_is_found_anywhere(batch, value):
    tensors, offsets = finite_batch(batch)
    there = [on_gpu(tensor, offset) for tensor, offset in zip(tensors, offsets, strict=True)]
    for index in {0, len(there) // 2, len(there) - 1}:
        if there[index].numel() == 0:
            continue
        for place in {0, there[index].numel() // 2, there[index].numel() - 1}:
            before = there[index][place].clone()
            there[index][place] = value
            assert check(there)[0] == 1, (index, place)
            there[index][place] = before
    assert check(there)[0] == 0


@pytest.mark.parametrize("numel", [1, 9, 4096, 100_001])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [1e30, 3e38, 1e-18, 1e-30, 1e-38, 0.0])
def test_squares_that_float_cannot_hold_change_neither_flag_nor_norm(value, dtype, offset, numel):
    values = torch.full((numel,), value, dtype=dtype)
    values[: numel // 2 : 7] *= 0.125  # groups of equal numbers would be a special case
    if value == 3e38:
        values[1:] = 1.0
    expected = values.double().norm().item()
    flag, norm = check([on_gpu(values, offset)])
    assert flag == 0
    assert norm == pytest.approx(expected, rel=5e-7, abs=1e-44)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_numbers_of_all_sizes_side_by_side_give_the_norm(dtype):
    exponents = torch.randint(-140, 120, (300_007,), generator=torch.Generator().manual_seed(5))
    largest = 14 if dtype == torch.float16 else 120
    for most in (largest, 0, -12, -70, -130):
        values = torch.ldexp(torch.ones(300_007).double(), exponents.clamp(max=most)).to(dtype)
        expected = values.double().norm().item()
        flag, norm = check([on_gpu(values, 0)])
        assert flag == 0
        assert norm == pytest.approx(expected, rel=5e-7, abs=1e-44), most


def norms_of(tensors, count):
    """Of so many checks one after another, without a wait between them; their flags add up to 0."""
    flags = torch.full((count, 1), -1, dtype=torch.int32, device="cuda")
    norms = torch.full((count, 1), -1.0, device="cuda")
    for flag, norm in zip(flags, norms, strict=True):
        kernels.check_finite(tensors, flag, norm)
    return flags, norms


def assert_all_are(flags, norms, expected):
    assert (flags == 0).all(), flags.flatten().tolist()
    assert (norms == expected).all(), (norms.flatten().tolist(), expected)


@pytest.mark.parametrize("batch", ["mixed", "unaligned", "many_small", "big"])
def test_fifty_checks_in_a_row_give_the_same_bits(batch):
    tensors, offsets = finite_batch(batch)
    there = [on_gpu(tensor, offset) for tensor, offset in zip(tensors, offsets, strict=True)]
    assert_all_are(*norms_of(there, 50), check(there)[1])


def test_checks_of_two_streams_at_once_do_not_mix():
    tensors = [
        [torch.full((20_000 + i,), 2.0 + s, device="cuda") for i in range(3)] for s in (0, 1)
    ]
    expected = [check(each)[1] for each in tensors]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    found = [[], []]
    for _ in range(10):
        for stream, each, results in zip(streams, tensors, found, strict=True):
            with torch.cuda.stream(stream):
                results.append(norms_of(each, 20))
    torch.cuda.synchronize()
    for results, norm in zip(found, expected, strict=True):
        for flags, norms in results:
            assert_all_are(flags, norms, norm)


def recorded_check(tensors):
    flag = torch.full((1,), -1, dtype=torch.int32, device="cuda")
    norm = torch.full((1,), -1.0, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.check_finite(tensors, flag, norm)
    return graph, flag, norm


def test_two_graphs_replay_their_checks_beside_each_other_and_beside_one_that_is_not_recorded():
    tensors = [torch.randn(20_000 + i, device="cuda") for i in range(300)]
    other = [torch.randn(50_000, device="cuda").bfloat16()]
    check(tensors)
    check(other)
    graph, flag, norm = recorded_check(tensors)
    other_graph, other_flag, other_norm = recorded_check(other)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for replay in range(20):
        tensors[replay].fill_(float("nan") if replay == 10 else replay)
        expected, other_expected = check(tensors), check(other)
        flag.fill_(-1)
        other_flag.fill_(-1)
        torch.cuda.synchronize()
        with torch.cuda.stream(streams[0]):
            graph.replay()
        with torch.cuda.stream(streams[1]):
            other_graph.replay()
        found = norms_of(other, 3)
        torch.cuda.synchronize()
        assert (flag.item(), norm.item()) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
        assert (other_flag.item(), other_norm.item()) == other_expected
        assert_all_are(*found, other_expected[1])
        if replay == 10:
            assert expected[0] == 1
            tensors[replay].fill_(1.0)


def test_a_stream_that_waits_for_a_flag_sees_what_was_written_before_it():
    flag, abort, outcome = torch.zeros(3, 1, dtype=torch.int32, device="cuda")
    outcome.fill_(-1)
    source = torch.full((1_000_000,), 3.0, device="cuda")
    message, copy = torch.zeros_like(source), torch.zeros_like(source)
    writes, waits = torch.cuda.Stream(), torch.cuda.Stream()
    # A kernel's first launch may wait for what runs: both have run before one waits for the other.
    kernels.write_flag(abort, 0)
    kernels.wait_flag(abort, 0, 1)
    copy.copy_(message)
    torch.cuda.synchronize()
    with torch.cuda.stream(waits):
        kernels.wait_flag(flag, 2, MANY_POLLS, abort=abort, outcome=outcome)
        copy.copy_(message)
    with torch.cuda.stream(writes):
        message.copy_(source)
        kernels.write_flag(flag, 2)
    torch.cuda.synchronize()
    assert outcome.item() == 1
    assert (copy == 3.0).all()


def test_a_wait_gives_up_after_its_polls_or_by_the_abort_word():
    flag, abort, outcome = torch.zeros(3, 1, dtype=torch.int32, device="cuda")
    outcome.fill_(-1)
    kernels.wait_flag(flag, 1, 100, outcome=outcome)
    assert outcome.item() == 0
    outcome.fill_(-1)
    kernels.write_flag(abort, 1)
    kernels.wait_flag(flag, 1, MANY_POLLS, abort=abort, outcome=outcome)
    assert outcome.item() == 0


def test_a_graph_replays_pack_accumulate_check_and_unpack():
    tensors = [torch.randn(1000 + i, device="cuda") for i in range(200)]
    back = [torch.zeros_like(tensor) for tensor in tensors]
    mains = [torch.zeros_like(tensor) for tensor in tensors]
    slot = torch.zeros(kernels.packed_bytes(tensors, "float32"), dtype=torch.uint8, device="cuda")
    flag = torch.zeros(1, dtype=torch.int32, device="cuda")
    norm = torch.zeros(1, device="cuda")

    def work():
        kernels.pack(tensors, slot, "float32")
        kernels.unpack(slot, back, "float32")
        kernels.accumulate(back, mains)
        kernels.check_finite(mains, flag, norm)

    work()
    for main in mains:
        main.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    for tensor in tensors:
        tensor.fill_(2.0)
    graph.replay()
    graph.replay()
    assert all((main == 4.0).all() for main in mains)
    numel = sum(tensor.numel() for tensor in tensors)
    assert norm.item() == pytest.approx(4.0 * numel**0.5, rel=1e-5)


def test_tensors_of_two_devices_are_refused():
    slot = torch.zeros(64, dtype=torch.uint8, device="cuda")
    with pytest.raises(ValueError, match=r"expected all tensors on cpu, slot is on cuda:0"):
        kernels.pack([torch.zeros(4)], slot, "as_is")


def test_checks_are_right_when_all_counters_are_taken():
    """The last test: each recorded check keeps one of the 4096 counters of launch_counter.h."""
    tensors = [torch.full((300_000,), 2.0, device="cuda")]
    expected = check(tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        flags, norms = norms_of(tensors, 4200)
    graph.replay()
    torch.cuda.synchronize()
    assert_all_are(flags, norms, expected[1])
    with torch.cuda.stream(torch.cuda.Stream()):
        found = norms_of(tensors, 50)
    torch.cuda.synchronize()
    assert_all_are(*found, expected[1])
