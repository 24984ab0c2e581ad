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
