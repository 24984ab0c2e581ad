"""What the stages of a model take: each is run as a whole, on what the ones before return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipert.balancing.layer_calls import LayerCall
from pipert.balancing.layer_profile import LayerProfile, profile_call
from pipert.balancing.stage_table import abbreviate
from pipert.split.in_turn import run_in_turn
from pipert.stages import Stages


def profile_stages(
    stages: Stages, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[LayerProfile]:
    """Profiles each stage, with what its forward does between layers.

    Args:
        stages: with specs; on the meta device times are estimated.
        args: of one forward of the model.
        kwargs: likewise.

    Raises:
        ValueError: a stage can't be run alone.
    """
    assert stages.specs is not None
    specs = stages.specs
    profiles: list[LayerProfile] = []

    def profile(
        stage: Callable[..., Any], inputs: tuple[Any, ...], arguments: dict[str, Any]
    ) -> Any:
        path = abbreviate(specs[len(profiles)].layers) or f"of stage {len(profiles)}"
        made, result = profile_call(LayerCall(path, stage, inputs, arguments))
        profiles.append(made)
        return result

    run_in_turn(stages, args, kwargs, profile)
    return profiles
