"""Checks that the stages of a model compute what it computes, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from pipert.split.in_turn import run_in_turn
from pipert.split.outputs import Outputs, only
from pipert.split.trial_run import difference
from pipert.stages import Stages

Check = bool | Literal["gradients"]


def check_same(
    model: nn.Module,
    stages: Stages,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    own_kwargs: Mapping[str, Any],
    with_gradients: bool,
    advice: str,
    outputs: Outputs = None,
) -> None:
    """Runs the model and its stages on the example, in the mode that they are in.

    State, gradients and random number generators are left as they are.

    Args:
        model: the unpartitioned one.
        stages: with specs.
        args: positional arguments of one forward.
        kwargs: its keyword arguments.
        own_kwargs: more of them, which the stages have inside.
        with_gradients: whether to run a backward too, though autograd recorded the same for both.
        advice: the end of the message, if outputs differ.
        outputs: those of the model that the stages return; None: all.

    Raises:
        ValueError: an output or a gradient differs; the message says which.
    """

    def plain(*args: Any, **kwargs: Any) -> Any:
        return only(outputs, model(*args, **kwargs, **own_kwargs), type(model).__name__)

    def in_turn(*args: Any, **kwargs: Any) -> Any:
        return run_in_turn(stages, args, kwargs)

    with torch.enable_grad():
        found = difference(model, plain, in_turn, args, kwargs, always_backward=with_gradients)
    if found is not None:
        what = "its gradients" if found.is_of_gradients else "what it does"
        raise ValueError(
            f"the stages of {type(model).__name__} don't compute {what}: {found.text}{advice}"
        )
