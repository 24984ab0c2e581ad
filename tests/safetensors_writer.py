"""Writes files of the safetensors format, right ones and wrong ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORDS = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
    torch.uint8: "U8",
}


def header_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": WORDS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    return header


def data_of(tensors: Mapping[str, Tensor]) -> bytes:
    return b"".join(
        bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())
        for tensor in tensors.values()
        if tensor.numel()
    )


def write_raw(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    size = len(header) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + header + data)
    return path


def write(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    header = {"__metadata__": {"format": "pt"}, **header_of(tensors)}
    return write_raw(path, json.dumps(header).encode(), data_of(tensors))


def write_shards(folder: Path, tensors: Mapping[str, Tensor], num_shards: int) -> Path:
    """In turn: neighbours are in different files."""
    names = list(tensors)
    places = {name: f"model-{i % num_shards + 1:05}.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        write(folder / file, {name: tensors[name] for name in names if places[name] == file})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
