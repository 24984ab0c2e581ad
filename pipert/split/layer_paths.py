"""The layers of a model in the order in which they run, and modules that run them so, by path."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import nn

from pipert.split.hooks import refuse_hooks
from pipert.split.points import module_at


def layers_of_model(
    model: nn.Module, layers: str | Sequence[str] | None
) -> list[tuple[str, nn.Module]]:
    """Paths and layers, in the order in which they are taken to run.

    Args:
        model: the unpartitioned model.
        layers: None: its children. A path: of a container, with what is around it. Paths: just
            these.

    Raises:
        ValueError: a path is of no module, or there are no layers.
    """
    if layers is None:
        found = _layers(model)
    elif isinstance(layers, str):
        found = _layers_around(model, layers)
    else:
        found = [layer for path in layers for layer in _layers_at(model, path)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no layers to cut between")
    return found


def list_of_layers(model: nn.Module, path: str) -> nn.Module:
    """The container of that path.

    Raises:
        ValueError: there is none, it has no entries, or it is in something that has hooks.
    """
    _layers_at(model, path)
    found = model
    prefix = ""
    for name in path.split("."):
        refuse_hooks(found, prefix.rstrip("."), "cut between its children")
        found = found.get_submodule(name)
        prefix += f"{name}."
    if not isinstance(found, nn.Sequential | nn.ModuleList) or len(found) == 0:
        raise ValueError(
            f"LayerList.path must be of a ModuleList with entries, got {path!r}: a "
            f"{type(found).__name__}"
        )
    return found


def in_order(layers: Sequence[tuple[str, nn.Module]]) -> nn.Module:
    """A module that runs layers one after the other, and in which each keeps its path."""
    return _nest(layers) if _can_nest(layers) else _Chain(layers)


def _layers_at(model: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    """The layer of that path, or the entries of the container."""
    found = module_at(model, path, "layers")
    if type(found) in (nn.Sequential, nn.ModuleList) and len(found) > 0:  # type: ignore[arg-type]
        return _layers(found, f"{path}.")
    return [(path, found)]


def _layers_around(model: nn.Module, path: str, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The entries of the container of that path, and the children of all that it is in."""
    _layers_at(model, path)  # says if there is none
    head, _, rest = path.partition(".")
    refuse_hooks(model, prefix.rstrip("."), "cut between its children")
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
    refuse_hooks(module, prefix.rstrip("."), "cut between its children")
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


def _can_nest(layers: Sequence[tuple[str, nn.Module]]) -> bool:
    """Whether Sequentials in Sequentials run them in this order, each once."""
    seen: set[str] = set()
    before: list[str] = []
    for path, _ in layers:
        names = path.split(".")
        inside = [".".join(names[: depth + 1]) for depth in range(len(names))]
        if any(prefix in seen and prefix not in before for prefix in inside) or path in seen:
            return False
        seen.update(inside)
        before = inside
    return True


def _nest(layers: Sequence[tuple[str, nn.Module]]) -> nn.Sequential:
    """Sequentials in Sequentials, so that each layer keeps its path."""
    groups: dict[str, list[tuple[str, nn.Module]]] = {}
    for path, layer in layers:
        head, _, rest = path.partition(".")
        groups.setdefault(head, []).append((rest, layer))
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for head, inside in groups.items():
        is_layer = len(inside) == 1 and not inside[0][0]
        children[head] = inside[0][1] if is_layer else _nest(inside)
    return nn.Sequential(children)


class _Chain(nn.Module):
    """Runs layers in an order in which no Sequentials in Sequentials would run them."""

    def __init__(self, layers: Sequence[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.pipert_paths = [path for path, _ in layers]
        for path, layer in layers:
            *containers, name = path.split(".")
            inside: nn.Module = self
            for container in containers:
                if container not in inside._modules:
                    inside.add_module(container, nn.Module())
                inside = inside.get_submodule(container)
            inside.add_module(name, layer)

    def forward(self, value: Any) -> Any:
        for layer in self.pipert_layers():
            value = layer(value)
        return value

    def pipert_layers(self) -> list[nn.Module]:
        """Its layers, in order."""
        return [self.get_submodule(path) for path in self.pipert_paths]
