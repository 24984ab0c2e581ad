"""Checksums of tensors, computed where the tensor is."""

import torch
from torch import Tensor

# Elements at a time, whose numbers of 64 bits take room: of a cache, or of a device's memory.
_PART_ON_CPU, _PART = 1 << 15, 1 << 22
# Odd numbers whose multiples are spread evenly: of values, and of places.
_VALUES = 0x9E3779B97F4A7C15 - (1 << 64)
_PLACES = 0x2545F4914F6CDD1D
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def checksum(tensor: Tensor) -> int:
    """A number of 64 bits that depends on all bits of the tensor and where they are, on any device.

    Tensors that differ have different ones, but for chance.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    bits = flat.view(_BITS[flat.element_size()])
    size = min(_PART_ON_CPU if bits.device.type == "cpu" else _PART, bits.numel())
    places = torch.arange(size, dtype=torch.int64, device=bits.device).mul_(_PLACES)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for begin in range(0, bits.numel(), max(size, 1)):
        part = bits[begin : begin + size].to(torch.int64, copy=True).add_(1).mul_(_VALUES)
        part.bitwise_xor_(places[: part.numel()])
        part.bitwise_xor_(part >> 29).mul_(_VALUES)
        part.bitwise_xor_(part >> 32)
        total += part.sum()
        places += _wrapped(size * _PLACES)
    return int(total)


def _wrapped(number: int) -> int:
    """As 64 bits have it."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
