"""Runs the stages of a model one after the other, as their specs say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from pipert.balancing.stage_table import abbreviate
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

    Raises:
        ValueError: a stage works in place on memory that later ones read, who in a process of their
            own would not see it; or see it too early.
    """
    assert stages.specs is not None
    arguments = {**dict(zip(stages.arguments, args, strict=False)), **kwargs}
    values: dict[str, Any] = {}
    result = None
    for index, (stage, spec) in enumerate(zip(stages, stages.specs, strict=True)):
        inputs = tuple(values[name] for name in spec.inputs)
        taken = {name: arguments[name] for name in spec.arguments if name in arguments}
        later = list(_read_later(stages, index, values, arguments))
        before = [_versions(value) for _, _, value in later]
        result = stage(*inputs, **taken) if call is None else call(stage, inputs, taken)
        for (name, reader, value), versions in zip(later, before, strict=True):
            if _versions(value) != versions:
                raise ValueError(_written(stages, index, name, reader))
        values.update(zip(spec.outputs, result, strict=True) if spec.outputs else ())
    return result


def _read_later(
    stages: Stages, index: int, values: Mapping[str, Any], arguments: Mapping[str, Any]
) -> Iterator[tuple[str, int, Any]]:
    """What there is that stages behind one read: its name, who does, and what it is."""
    assert stages.specs is not None
    for reader, spec in enumerate(stages.specs):
        if reader > index:
            yield from ((name, reader, values[name]) for name in spec.inputs if name in values)
            for name in spec.arguments:
                if name in arguments:
                    yield name, reader, arguments[name]


def _versions(value: Any) -> list[int]:
    """Of each tensor: they count what is written to its memory, through whichever view."""
    tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


def _written(stages: Stages, writer: int, name: str, reader: int) -> str:
    layers = abbreviate(stages.layers[writer])
    return (
        f"stage {writer}{f' ({layers})' if layers else ''} works in place on the memory of {name}, "
        f"which stage {reader} reads: expected a stage that changes a copy of it, or both in one "
        "stage"
    )
