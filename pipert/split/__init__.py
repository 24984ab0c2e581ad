"""Cuts a model into stages."""

from typing import TYPE_CHECKING, Any

from pipert.split.front import split
from pipert.split.layer_list import LayerList
from pipert.split.layer_spec import LayerSpec, TiedLayerSpec
from pipert.split.points import annotate_split_points, pipe_split

if TYPE_CHECKING:
    from torch.distributed.pipelining import SplitPoint

__all__ = [
    "LayerList",
    "LayerSpec",
    "SplitPoint",
    "TiedLayerSpec",
    "annotate_split_points",
    "pipe_split",
    "split",
]


def __getattr__(name: str) -> Any:
    """SplitPoint is torch's, and takes a second to import: not before it is asked for."""
    if name != "SplitPoint":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torch.distributed.pipelining import SplitPoint

    return SplitPoint
