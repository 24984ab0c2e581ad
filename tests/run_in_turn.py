"""Runs a split model's stages in turn, in plain Python: what every way to run them must equal."""

from collections.abc import Callable, Mapping
from typing import Any

import pipert


def run_in_turn(
    stages: pipert.Stages,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    hand_over: Callable[[Any], Any] = lambda value: value,
) -> Any:
    """What the last stage returns.

    Args:
        stages: modules, with specs or without.
        args: positional arguments of the unpartitioned model's forward.
        kwargs: its keyword arguments.
        hand_over: what becomes of each value between its maker and each of its readers.
    """
    if stages.specs is None:
        value = stages[0](*args, **(kwargs or {}))
        for stage in stages[1:]:
            value = stage(hand_over(value))
        return value
    arguments = {**dict(zip(stages.arguments, args, strict=False)), **(kwargs or {})}
    values: dict[str, Any] = {}
    result = None
    for stage, spec in zip(stages, stages.specs, strict=True):
        result = stage(
            *(hand_over(values[name]) for name in spec.inputs),
            **{name: arguments[name] for name in spec.arguments if name in arguments},
        )
        if spec.outputs:
            values.update(zip(spec.outputs, result, strict=True))
    return result
