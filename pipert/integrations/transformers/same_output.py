"""Whether stages compute what the model does, on an example."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipert.stages import Stages


def check_same_output(
    model: nn.Module,
    stages: Stages,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    fixed: Mapping[str, Any],
) -> None:
    """Runs both in the mode that they are in, drawing the same random numbers.

    Args:
        model: the whole model.
        stages: with specs.
        args: positional arguments of one forward.
        kwargs: its keyword arguments.
        fixed: what the stages set anyway, for the model.

    Raises:
        ValueError: the outputs differ.
    """
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    with torch.no_grad():
        with torch.random.fork_rng(devices):
            expected = _tensors(model(*args, **{**kwargs, **fixed}))
        with torch.random.fork_rng(devices):
            got = _tensors(_run(stages, args, kwargs))
    if len(expected) != len(got) or not all(map(torch.equal, expected, got)):
        raise ValueError(
            f"the stages of {type(model).__name__} don't compute what the model does: expected "
            f"{_shapes(expected)}, got {_shapes(got)} with other numbers; cut it by tracing"
        )


def _run(stages: Stages, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    arguments = {**dict(zip(stages.arguments, args, strict=False)), **kwargs}
    hidden: tuple[Any, ...] = ()
    for stage, spec in zip(stages, stages.specs or (), strict=True):
        hidden = stage(*hidden, **{n: arguments[n] for n in spec.arguments if n in arguments})
    return hidden


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "no tensors"
