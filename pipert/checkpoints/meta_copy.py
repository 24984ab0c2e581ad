"""Copies of modules without their values."""

import copy
from typing import Any

import torch
from torch import nn


def on_meta(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are on the meta device. No value is copied."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), parameter.requires_grad
        )
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo)
