"""Tensors that lie side by side in a GPU's memory: one launch writes them, one copies them out."""

import pytest
import torch
from test_tensor_slot import various

from pipert._C import TensorSlot

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(60)]


@pytest.mark.parametrize("is_captured", [False, True])
def test_copies_have_the_bits_and_strides_of_what_was_filled_in(is_captured):
    tensors = [tensor.cuda() for tensor in various()]
    slot = TensorSlot([torch.zeros_like(tensor) for tensor in tensors])
    if is_captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            slot.fill(tensors)
        graph.replay()
    else:
        slot.fill(tensors)
    for copy, tensor in zip(slot.copies(), tensors, strict=True):
        assert copy.device == tensor.device
        assert copy.stride() == tensor.stride()
        assert torch.equal(copy, tensor)


def test_a_stream_of_ones_own_carries_the_copies():
    first = torch.arange(1 << 20, device="cuda")
    slot = TensorSlot([first])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(2_000_000)
        slot.fill([first])
        copies = slot.copies()
    stream.synchronize()
    assert torch.equal(copies[0], first)
