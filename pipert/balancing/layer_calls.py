"""How one forward of a model calls its layers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from pipert.balancing.example_values import (
    copies,
    cut_off,
    is_on_meta,
    left_as_it_was,
    to_meta,
)
from pipert.balancing.presumed import Presumed


class LayerCall(NamedTuple):
    """One call of a layer in one forward of the model.

    Attributes:
        path: the layer's, in the unpartitioned model.
        layer: a module or a function.
        args: positional arguments. Tensors that require a gradient get one.
        kwargs: keyword arguments.
    """

    path: str
    layer: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}


def record_calls(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
) -> list[LayerCall]:
    """Runs the model once, as `run_once` does, and notes how it calls its layers.

    Args:
        model: the unpartitioned model.
        layers: of the model, by path.
        args: of one forward.
        kwargs: of one forward.
    """
    calls: list[LayerCall] = []

    def note(path: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            args, kwargs = cut_off((args, kwargs))
            calls.append(LayerCall(path, layer, args, kwargs))

        return hook

    handles = [
        layer.register_forward_pre_hook(note(path), with_kwargs=True)
        for path, layer in layers.items()
    ]
    try:
        with torch.enable_grad():
            run_once(model, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def run_once(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> None:
    """Runs a model, on the meta device if it is there; all that it is given is as before.

    So are random generators and its buffers.

    Raises:
        ValueError: it can't be run on the meta device.
    """
    kwargs = dict(kwargs or {})
    if not is_on_meta(model):
        with left_as_it_was(model, (args, kwargs)):
            args, kwargs = copies((args, kwargs))
            model(*args, **kwargs)
        return
    args, kwargs = to_meta((args, kwargs))
    try:
        with left_as_it_was(model, (args, kwargs)), Presumed():
            model(*args, **kwargs)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} can't be run on the meta device, as it must be to estimate "
            f"what its layers take: {error}"
        ) from error
