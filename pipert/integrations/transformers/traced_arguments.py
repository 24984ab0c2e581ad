"""Arguments that a transformers model is traced with, beside those of its batches."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from pipert.integrations.transformers.stage_arguments import refuse_arguments


def traced_arguments(model: nn.Module, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What keeps caches out of a model's stages, whatever its config says.

    Args:
        model: the unpartitioned one.
        kwargs: that it is to be traced with.

    Raises:
        ValueError: it is to record what its layers do, or to use a cache.
    """
    refuse_arguments(
        model,
        kwargs,
        f"{type(model).__name__} gathers it in hooks inside of its layers, where no stage finds it",
    )
    uses_cache = getattr(getattr(model, "config", None), "use_cache", False)
    return {"use_cache": False} if uses_cache else {}
