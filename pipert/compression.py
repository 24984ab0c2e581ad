"""Compression: what messages between ranks are rounded to on their way."""

from collections.abc import Mapping

import torch

COMPRESSIONS = ("none", "bfloat16", "float16", "fp8_block")


def check_compression(compression: str) -> None:
    """Raises ValueError unless `compression` is one of COMPRESSIONS."""
    if compression not in COMPRESSIONS:
        words = ", ".join(f'"{word}"' for word in COMPRESSIONS)
        raise ValueError(f"compression must be one of {words}, got {compression!r}")


def check_compressible(compression: str, devices: Mapping[int, torch.device]) -> None:
    """Raises ValueError where the messages of some device can't be compressed."""
    if compression == "none":
        return
    for rank, device in devices.items():
        if device.type not in ("cpu", "cuda"):
            raise ValueError(
                f"compression is for ranks on the CPU or on CUDA, rank {rank} is on {device}"
            )
