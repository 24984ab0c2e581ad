"""The layers of a model in the order in which they run, by path."""

from collections.abc import Sequence
from typing import Any

from torch import nn


def given_layers(
    model: nn.Module | Sequence[Any], layers: str | Sequence[str] | None
) -> list[tuple[str, Any]]:
    """Paths and layers, in the order in which they are taken to run."""
    if not isinstance(model, nn.Module):
        if layers is not None:
            raise ValueError(f"model is a list of layers: expected no layers=, got {layers!r}")
        given = [(str(index), layer) for index, layer in enumerate(model)]
    elif layers is None:
        given = _layers(model)
    elif isinstance(layers, str):
        given = _layers_around(model, layers)
    else:
        given = [found for path in layers for found in _layers_at(model, path)]
    if not given:
        raise ValueError(f"{type(model).__name__} has no layers to cut between")
    return given


def _layers_at(model: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    """The layer of that path, or the entries of the container."""
    try:
        found = model.get_submodule(path)
    except AttributeError:
        children = ", ".join(name for name, _ in model.named_children())
        raise ValueError(
            f"layers names no module of {type(model).__name__}: expected its children ({children}) "
            f"or paths in them, got {path!r}"
        ) from None
    if type(found) in (nn.Sequential, nn.ModuleList) and len(found) > 0:  # type: ignore[arg-type]
        return _layers(found, f"{path}.")
    return [(path, found)]


def _layers_around(model: nn.Module, path: str, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The entries of the container of that path, and the children of all that it is in."""
    _layers_at(model, path)  # says if there is none
    head, _, rest = path.partition(".")
    _refuse_hooks(model, prefix)
    given: list[tuple[str, nn.Module]] = []
    for name, child in model._modules.items():
        if child is None:
            continue
        if name == head and rest:
            given += _layers_around(child, rest, f"{prefix}{name}.")
        elif name == head:
            given += [(f"{prefix}{inner}", layer) for inner, layer in _layers_at(model, name)]
        else:
            given.append((f"{prefix}{name}", child))
    return given


def _layers(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The layers in the order in which they are taken to run, by path."""
    _refuse_hooks(module, prefix)
    layers = []
    for name, child in module._modules.items():  # named_children() shows a shared layer once
        if child is None:
            continue
        path = f"{prefix}{name}"
        if type(child) in (nn.Sequential, nn.ModuleList) and len(child) > 0:  # type: ignore[arg-type]
            layers += _layers(child, f"{path}.")
        else:
            layers.append((path, child))
    return layers


def _refuse_hooks(container: nn.Module, prefix: str) -> None:
    """A container is taken apart, so its hooks would never run."""
    hooks = (
        container._forward_hooks,
        container._forward_pre_hooks,
        container._backward_hooks,
        container._backward_pre_hooks,
    )
    if any(hooks):
        name = prefix.rstrip(".") or type(container).__name__
        raise ValueError(f"{name} has hooks, and is cut between its children: they would be lost")
