"""Overlap: a user's function that runs the halves of overlapped pairs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pipert import _C
from pipert.compat.torch_pipelining.orders import _Action


@dataclass
class _PipelineContext:
    """What a function registered for OVERLAP_F_B is given beside the action.

    Attributes:
        schedule_ref: the schedule that runs.
        arg_mbs, kwarg_mbs, target_mbs: of this pass, by microbatch.
        losses: the list that the caller gave to `step`.
        forward, backward: run the two halves; each is to be called once, from any thread.
    """

    schedule_ref: Any
    arg_mbs: list[Any] | None = None
    kwarg_mbs: list[Any] | None = None
    target_mbs: list[Any] | None = None
    losses: "list[Tensor] | None" = None
    forward: "_C.OverlapHalf | None" = field(default=None, kw_only=True)
    backward: "_C.OverlapHalf | None" = field(default=None, kw_only=True)


class Overlap:
    """Gives a function in torch's form the pairs of pipert's engine.

    Args:
        function: `function(action, context)`.
    """

    def __init__(self, function: "Callable[[_Action, _PipelineContext], None]") -> None:
        self._function = function
        self._context: _PipelineContext | None = None

    @contextmanager
    def within(self, context: _PipelineContext) -> Iterator[None]:
        """The pass of which `context` tells runs while this lasts."""
        self._context = context
        try:
            yield
        finally:
            self._context = None

    def __call__(self, forward: "_C.OverlapHalf", backward: "_C.OverlapHalf") -> None:  # noqa: D102
        assert self._context is not None
        action = _Action.from_str(f"({forward.action};{backward.action})OVERLAP_F_B")
        self._function(action, replace(self._context, forward=forward, backward=backward))
