"""Routes: what the values of Stages with specs mean to the C++ runtime."""

import hashlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from pipert import _C
from pipert.balancing.stage_table import abbreviate
from pipert.stages import Stages


def routes_of(stages: Sequence[Any]) -> _C.Routes | None:
    """Who makes and who takes each value; None where each stage gets what the one before returned.

    Args:
        stages: of the whole model, as the user gives them.
    """
    if not isinstance(stages, Stages) or stages.specs is None:
        return None
    ids = {value.name: index for index, value in enumerate(stages.values)}
    return _C.Routes(
        values=[(value.maker, value.readers, value.differentiable) for value in stages.values],
        stages=[
            ([ids[name] for name in spec.inputs], [ids[name] for name in spec.outputs])
            for spec in stages.specs
        ],
        names=[value.name for value in stages.values],
    )


def described_stages(stages: Sequence[Any]) -> dict[str, Any]:
    """What all ranks must say alike of the stages and their values, as require_same takes it.

    A layer that stood in two stages would run twice, and one that stood in none not at all.
    """
    values = specs = layers = names = None
    if isinstance(stages, Stages):
        names = [_summary(of) for of in stages.names]
        if stages.specs is not None or all(map(_tells_layers, stages)):
            layers = [abbreviate(of) for of in stages.layers]
        if stages.specs is not None:
            values = [
                [value.name, value.maker, list(value.readers), value.differentiable]
                for value in stages.values
            ]
            specs = [[list(spec.inputs), list(spec.outputs)] for spec in stages.specs]
    return {
        "stages.values": values,
        "stages.specs": specs,
        "stages.layers": layers,
        "stages.names": names,
    }


def _tells_layers(stage: Any) -> bool:
    return isinstance(stage, nn.Module) or hasattr(stage, "pipert_paths")


def _summary(names: Sequence[str]) -> str:
    """Short, and another one for other names."""
    if len(names) <= 4:
        return ", ".join(names) or "none"
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    return f"{len(names)} names from {names[0]} to {names[-1]} ({digest})"
