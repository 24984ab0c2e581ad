"""Kernels on the CPU: what they promise of torch's casts, sums and norms, and what they refuse."""

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_pieces import (
    FORMATS,
    NUMBERS,
    aligned,
    bits,
    piece,
    same_bits_or_nan,
    through_fp8_blocks,
)

from pipert._C import kernels


@st.composite
def pieces(draw, dtypes=NUMBERS):
    """Up to six tensors of any sizes, which begin anywhere in their storages."""
    shapes = draw(
        st.lists(
            st.tuples(st.integers(0, 150), st.sampled_from(dtypes), st.integers(0, 5)), max_size=6
        )
    )
    seed = draw(st.integers(0, 1000))
    return [
        piece(numel, dtype, offset=offset, seed=seed + i)
        for i, (numel, dtype, offset) in enumerate(shapes)
    ]


def packed(tensors, format, *, offset=0):  # noqa: A002
    """A slot that begins `offset` bytes into its storage, with the tensors in it."""
    num_bytes = kernels.packed_bytes(tensors, format)
    slot = torch.full((num_bytes + offset,), 0xEE, dtype=torch.uint8)[offset:]
    assert kernels.pack(tensors, slot, format) == num_bytes
    return slot


@given(pieces(), st.sampled_from(sorted(FORMATS)), st.integers(0, 3))
def test_a_slot_holds_what_torch_casts_each_tensor_to(tensors, format, offset):  # noqa: A002
    slot = packed(tensors, format, offset=offset)
    place = 0
    for tensor in tensors:
        expected = tensor.to(FORMATS[format])
        end = place + expected.nbytes
        found = slot[place:end].clone().view(FORMATS[format])
        assert same_bits_or_nan(found, expected)
        assert (slot[end : place + aligned(expected.nbytes)] == 0xEE).all()
        place += aligned(expected.nbytes)
    assert place == slot.numel()


@given(pieces(), st.sampled_from(sorted(FORMATS)), st.integers(0, 3))
def test_unpack_gives_what_torch_casts_there_and_back(tensors, format, offset):  # noqa: A002
    slot = packed(tensors, format, offset=offset)
    back = [torch.zeros_like(tensor) for tensor in tensors]
    assert kernels.unpack(slot, back, format) == slot.numel()
    for tensor, found in zip(tensors, back, strict=True):
        assert same_bits_or_nan(found, tensor.to(FORMATS[format]).to(tensor.dtype))


@given(pieces([*NUMBERS, torch.int64, torch.bool, torch.float64, torch.uint8]))
def test_what_is_packed_as_is_comes_back_to_the_bit(tensors):
    slot = packed(tensors, "as_is", offset=1)
    back = [torch.zeros_like(tensor) for tensor in tensors]
    assert kernels.unpack(slot, back, "as_is") == sum(aligned(t.nbytes) for t in tensors)
    for tensor, found in zip(tensors, back, strict=True):
        assert torch.equal(bits(found), bits(tensor))


@given(pieces(), st.integers(0, 3))
@settings(deadline=None)
def test_fp8_blocks_hold_what_their_note_says(tensors, offset):
    slot = packed(tensors, "fp8_block", offset=offset)
    assert slot.numel() == sum(
        aligned(aligned(t.numel()) + math.ceil(t.numel() / 32)) for t in tensors
    )
    back = [torch.zeros_like(tensor) for tensor in tensors]
    kernels.unpack(slot, back, "fp8_block")
    for tensor, found in zip(tensors, back, strict=True):
        assert same_bits_or_nan(found, through_fp8_blocks(tensor))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits_is_cast_as_by_torch(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for format, target in FORMATS.items():  # noqa: A001
        found = packed([every], format).view(target)
        assert same_bits_or_nan(found, every.to(target))


def test_every_code_of_fp8_means_what_it_means_to_torch():
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    slot = torch.cat([codes, torch.full((8,), 127, dtype=torch.uint8), codes[:8]])  # scales of 1
    found = torch.empty(256)
    assert kernels.unpack(slot, [found], "fp8_block") == slot.numel()
    assert same_bits_or_nan(found, codes.view(torch.float8_e4m3fn).float())


@given(pieces(), st.integers(0, 100))
def test_main_gradients_equal_torch_bit_for_bit(gradients, seed):
    mains = [piece(t.numel(), torch.float32, offset=i, seed=seed) for i, t in enumerate(gradients)]
    expected = [
        main.clone().add_(gradient) for main, gradient in zip(mains, gradients, strict=True)
    ]
    kernels.accumulate(gradients, mains)
    assert all(map(same_bits_or_nan, mains, expected))


def check(tensors):
    flag = torch.full((1,), -1, dtype=torch.int32)
    norm = torch.full((1,), -1.0)
    kernels.check_finite(tensors, flag, norm)
    return flag.item(), norm.item()


@given(pieces())
def test_the_finite_check_finds_any_value_and_gives_the_norm(tensors):
    everything = torch.cat([torch.zeros(1), *(t.float() for t in tensors)]).double()
    flag, norm = check(tensors)
    assert flag == int(not everything.isfinite().all())
    expected = everything.norm().item()
    if math.isfinite(expected):
        assert norm == pytest.approx(expected, rel=1e-6) or expected > 3.4e38
    else:
        assert not math.isfinite(norm)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_a_single_value_that_is_not_finite_is_found_anywhere(dtype, value):
    for place in (0, 1, 500, 999):
        tensors = [torch.ones(7, dtype=dtype), torch.ones(1000, dtype=dtype)]
        tensors[1][place] = value
        assert check(tensors)[0] == 1
    assert check([torch.ones(4, dtype=dtype)]) == (0, 2.0)
    assert check([]) == (0, 0.0)


def test_a_wait_sees_the_flag_of_another_thread():
    flag, outcome = torch.zeros(1, dtype=torch.int32), torch.full((1,), -1, dtype=torch.int32)
    writer = threading.Thread(target=kernels.write_flag, args=(flag, 5))
    writer.start()
    kernels.wait_flag(flag, 4, 2**62, outcome=outcome)
    writer.join()
    assert outcome.item() == 1
    assert flag.item() == 5


def test_a_wait_ends_after_its_polls_or_by_the_abort_word():
    flag, abort, outcome = torch.zeros(3, 1, dtype=torch.int32)
    outcome.fill_(-1)
    kernels.wait_flag(flag, 1, 10, outcome=outcome)
    assert outcome.item() == 0
    outcome.fill_(-1)
    ender = threading.Thread(target=kernels.write_flag, args=(abort, 1))
    ender.start()
    kernels.wait_flag(flag, 1, 2**62, abort=abort, outcome=outcome)
    ender.join()
    assert outcome.item() == 0


def test_autograd_learns_that_tensors_were_overwritten():
    weight = torch.ones(4, requires_grad=True)
    saved = torch.ones(4)
    loss = (weight * saved).sum()
    kernels.unpack(packed([torch.zeros(4)], "as_is"), [saved], "as_is")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


SLOT = torch.zeros(64, dtype=torch.uint8)
ONE = torch.zeros(1, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: kernels.pack([torch.zeros(4)], SLOT, "int8"), 'format: expected "as_is".*"int8"'),
        (lambda: kernels.pack([torch.zeros(4, 4).t()], SLOT, "as_is"), r"contiguous.*tensors\[0\]"),
        (lambda: kernels.pack([torch.zeros(17)], SLOT, "as_is"), "at least 80 bytes, got 64"),
        (lambda: kernels.unpack(SLOT, [torch.zeros(17)], "float32"), "at least 80 bytes, got 64"),
        (lambda: kernels.pack([torch.zeros(4)], torch.zeros(64), "as_is"), "uint8, got Float"),
        (lambda: kernels.pack([torch.zeros(4).double()], SLOT, "float32"), "tensor 0 is Double"),
        (lambda: kernels.packed_bytes([ONE], "fp8_block"), "tensor 0 is Int"),
        (lambda: kernels.pack([torch.zeros(4, device="meta")], SLOT, "as_is"), "is on meta"),
        (lambda: kernels.pack([torch.zeros(4).to_sparse()], SLOT, "as_is"), "contiguous"),
        (lambda: kernels.accumulate([torch.zeros(4)], []), "1 gradients and 0 mains"),
        (lambda: kernels.accumulate([torch.zeros(4)], [torch.zeros(5)]), "has 5 elements"),
        (lambda: kernels.accumulate([torch.zeros(4)], [torch.zeros(4).half()]), "must be float32"),
        (lambda: kernels.check_finite([], torch.zeros(1), torch.zeros(1)), "one Int in flag"),
        (lambda: kernels.check_finite([], ONE, torch.zeros(2)), "one Float in norm, got 2"),
        (lambda: kernels.wait_flag(ONE, 1, 0), "max_polls of at least 1, got 0"),
        (lambda: kernels.write_flag(torch.zeros(1), 1), "one Int in flag, got 1 Float"),
    ],
)
def test_what_is_refused_says_what_was_expected(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()
