"""Routes: what the values of Stages with specs mean to the C++ runtime."""

from collections.abc import Sequence
from typing import Any

from pipert import _C
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


def described_routes(stages: Sequence[Any]) -> dict[str, Any]:
    """What all ranks must say alike of the values, as require_same takes it."""
    if not isinstance(stages, Stages) or stages.specs is None:
        return {"stages.values": None, "stages.specs": None}
    return {
        "stages.values": [
            [value.name, value.maker, list(value.readers), value.differentiable]
            for value in stages.values
        ],
        "stages.specs": [[list(spec.inputs), list(spec.outputs)] for spec in stages.specs],
    }
