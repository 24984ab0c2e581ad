"""Arguments that a transformers model is traced with, beside those of its batches."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from pipert.integrations.transformers.stage_arguments import CACHES, RECORDS


def traced_arguments(model: nn.Module, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What keeps caches out of a model's stages, whatever its config says.

    Args:
        model: the unpartitioned one.
        kwargs: that it is to be traced with.

    Raises:
        ValueError: it is to record what its layers do, or to use a cache.
    """
    config = getattr(model, "config", None)
    for name in RECORDS:
        if getattr(config, name, False) or kwargs.get(name):
            raise ValueError(
                f"expected {name}=False, got True: {type(model).__name__} gathers it in hooks "
                "inside of its layers, where no stage finds it"
            )
    for name in CACHES:
        if kwargs.get(name) not in (None, False):
            raise ValueError(
                f"expected no {name}, got one: stages don't keep what their layers did for later "
                "tokens; they are for whole sequences"
            )
    return {"use_cache": False} if getattr(config, "use_cache", False) else {}
