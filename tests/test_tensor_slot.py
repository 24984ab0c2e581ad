"""Tensors that lie side by side: written with one call, copied out with one, bit for bit."""

import pytest
import torch
from plain_loop import same_bits

from pipert._C import TensorSlot


def various():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(3, 5, generator=generator),
        torch.randn(7, 2, generator=generator).t(),
        torch.tensor([True, False, True]),
        torch.arange(5),
        torch.randn(2, 3, generator=generator, dtype=torch.complex64),
        torch.zeros(0, 4),
        torch.tensor(2.5, dtype=torch.bfloat16),
    ]


def test_copies_have_the_bits_and_strides_of_what_was_filled_in():
    tensors = various()
    slot = TensorSlot([torch.empty_like(tensor) for tensor in tensors])
    slot.fill(tensors)
    for copies in (slot.tensors, slot.copies()):
        for copy, tensor in zip(copies, tensors, strict=True):
            assert copy.stride() == tensor.stride()
            assert copy.dtype == tensor.dtype
            assert torch.equal(copy, tensor)


def test_copies_are_the_callers_own():
    tensors = various()
    slot = TensorSlot(tensors)
    slot.fill(tensors)
    copies = slot.copies()
    slot.fill([torch.zeros_like(tensor) for tensor in tensors])
    assert same_bits(copies[0], tensors[0])
    copies[0].zero_()
    assert same_bits(slot.tensors[3], torch.zeros(5, dtype=torch.int64))


def test_a_slot_of_nothing_is_one():
    slot = TensorSlot([])
    slot.fill([])
    assert slot.copies() == []


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.zeros(4, 4)[:, :2], "dense in memory"),
        (torch.zeros(4).expand(3, 4), "dense in memory"),
        (torch.zeros(4, dtype=torch.complex64).conj(), "dense in memory"),
        (torch.zeros(4, device="meta"), "on one device"),
    ],
)
def test_what_cannot_be_copied_as_bytes_is_refused(tensor, expected):
    with pytest.raises(ValueError, match=expected):
        TensorSlot([torch.zeros(1), tensor])
    if expected == "on one device":
        return
    slot = TensorSlot([torch.empty_strided(tensor.shape, torch.zeros(tensor.shape).stride())])
    with pytest.raises(ValueError, match="that fit"):
        slot.fill([tensor])
