"""Sizes in a trace: integers that may be others in another batch, and those that may not."""

from __future__ import annotations

from typing import Any

import torch


def constant_size(size: Any) -> int | None:
    """A size or integer that may not change; None: it may."""
    if isinstance(size, torch.SymInt):
        constant: int | None = size.node.maybe_as_int()
        return constant
    return int(size)


def hint_of(size: Any) -> int | None:
    """A size in the example; None: it depends on the values of tensors."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    hint = size.node.hint
    return None if hint is None else int(hint)


def is_same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are one in every batch."""
    return bool(expression_of(a) == expression_of(b))


def expression_of(size: Any) -> Any:
    """A size as a formula of the batch's sizes."""
    return (
        size.node.expr if isinstance(size, torch.SymInt | torch.SymBool | torch.SymFloat) else size
    )
