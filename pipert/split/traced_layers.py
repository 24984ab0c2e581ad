"""The layers of a traced model, between which a balance cuts it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from pipert.balancing.layer_calls import record_calls
from pipert.balancing.layer_profile import LayerProfile, profile_calls
from pipert.split.graph_nodes import NO_GRAD, leaves_inside
from pipert.split.leaf_call import LeafCall
from pipert.split.trace import Trace, is_list


@dataclass(frozen=True)
class TracedLayer:
    """The call of a leaf, or all calls in a region without gradients or with autocast.

    Attributes:
        node: that it is in the trace.
        calls: of modules; at least one.
    """

    node: fx.Node
    calls: tuple[LeafCall, ...]

    @property
    def path(self) -> str:
        """Of the module that is called first."""
        return self.calls[0].path

    @property
    def module(self) -> nn.Module:
        """What is called."""
        modules: list[nn.Module] = [call.target for call in self.calls]
        return modules[0] if len(modules) == 1 else nn.ModuleList(modules)


def layers_of(traced: Trace) -> list[TracedLayer]:
    """The layers, in the order in which they run."""
    found = []
    for node in traced.module.graph.nodes:
        if calls := tuple(call for call in leaves_inside(traced, node) if call.is_module):
            found.append(TracedLayer(node, calls))
    return found


def profiles_of(
    traced: Trace,
    layers: Sequence[TracedLayer],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> list[LayerProfile]:
    """What each layer takes, with the arguments that it has in one run of the model."""
    calls = [call for layer in layers for call in layer.calls]
    recorded = record_calls(traced.model, {c.path: c.target for c in calls}, args, kwargs)
    if [call.path for call in recorded] != [call.path for call in calls]:
        raise ValueError(
            f"{type(traced.model).__name__} calls other layers in a run than in its trace: "
            f"expected {', '.join(call.path for call in calls)}; got "
            f"{', '.join(call.path for call in recorded)}"
        )
    rest = iter(profile_calls(recorded))
    return [_together(layer, [next(rest) for _ in layer.calls]) for layer in layers]


def _together(layer: TracedLayer, profiles: Sequence[LayerProfile]) -> LayerProfile:
    """What calls take that are one layer."""
    has_backward = not (layer.node.target is NO_GRAD and layer.node.args[0] is False)
    return dataclasses.replace(
        profiles[-1],
        path=layer.path,
        forward=sum(profile.forward for profile in profiles),
        input=has_backward * sum(profile.input for profile in profiles),
        weight=has_backward * sum(profile.weight for profile in profiles),
        saved_bytes=has_backward * sum(profile.saved_bytes for profile in profiles),
    )


def owners_of_lists(model: nn.Module) -> list[str]:
    """The modules to look into so that each entry of the model's lists of layers is a leaf.

    A list in an entry of a list is none of those.
    """
    found: set[str] = set()

    def walk(module: nn.Module, path: str, ancestors: list[str]) -> bool:
        has_list = False
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            if _is_layers(child):
                has_list = True
                if not is_list(child):
                    found.add(inner)
            elif walk(child, inner, [*ancestors, inner]):
                has_list = True
        if has_list:
            found.update(ancestors)
        return has_list

    walk(model, "", [])
    return sorted(found)


def _is_layers(module: nn.Module) -> bool:
    return is_list(module) or (
        isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    )
