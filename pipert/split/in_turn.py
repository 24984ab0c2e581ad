"""Runs the stages of a model one after the other, as their specs say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipert.stages import Stages

# Of a stage, its positional and its keyword arguments: what it returns.
Call = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def run_in_turn(
    stages: Stages, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: Call | None = None
) -> Any:
    """What the last stage returns.

    Args:
        stages: with specs.
        args: of the model's forward, by position.
        kwargs: of it, by name.
        call: calls a stage; None: as it is.
    """
    assert stages.specs is not None
    arguments = {**dict(zip(stages.arguments, args, strict=False)), **kwargs}
    values: dict[str, Any] = {}
    result = None
    for stage, spec in zip(stages, stages.specs, strict=True):
        inputs = tuple(values[name] for name in spec.inputs)
        taken = {name: arguments[name] for name in spec.arguments if name in arguments}
        result = stage(*inputs, **taken) if call is None else call(stage, inputs, taken)
        values.update(zip(spec.outputs, result, strict=True) if spec.outputs else ())
    return result
