"""Watches a trace for calls of `pipe_split`, which may lie where the trace doesn't look."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def watched_pipe_split(note: Callable[[], bool]) -> Iterator[None]:
    """Asks `note`, while it lasts, whether a call of `pipe_split` is to be in the trace."""
    import torch.distributed.pipelining  # defines it

    operators: Any = torch.ops.pippy
    operator = operators._pipe_split

    operators._pipe_split = _Watched(operator, note)
    try:
        yield
    finally:
        operators._pipe_split = operator


class _Watched:
    """An operator that asks whether to be called.

    Args:
        operator: the operator.
        note: whether to call it.
    """

    def __init__(self, operator: Any, note: Callable[[], bool]) -> None:
        self._operator = operator
        self._note = note

    def __call__(self) -> None:
        if self._note():
            self._operator()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operator, name)


def modules_on_the_stack() -> list[nn.Module]:
    """The modules whose calls are in progress, the innermost first."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_call_impl" and isinstance(
            frame.f_locals.get("self"), nn.Module
        ):
            found.append(frame.f_locals["self"])
        frame = frame.f_back  # type: ignore[assignment]
    return found
