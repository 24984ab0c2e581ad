"""What a stage does under torch.no_grad or torch.autocast, as functions that its code calls."""

from collections.abc import Callable
from typing import Any

import torch


def with_grad_mode(enabled: bool, body: Callable[..., Any], *inputs: Any) -> Any:
    """Runs the body of a `torch.no_grad()` (or `enable_grad`)."""
    with torch.set_grad_enabled(enabled):
        return body(*inputs)


def with_autocast(
    device_type: str,
    dtype: torch.dtype | None,
    enabled: bool,
    cache_enabled: bool,
    body: Callable[..., Any],
    *inputs: Any,
) -> Any:
    """Runs the body of a `torch.autocast(...)`."""
    with torch.autocast(device_type, dtype, enabled, cache_enabled):
        return body(*inputs)
