"""PlanExample: one forward of a transformers model, to see what its layers take and hand on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipert.balancing.layer_calls import record_calls, run_once
from pipert.balancing.layer_profile import LayerProfile, add_up, profile_calls
from pipert.integrations.transformers.plan_units import PlanUnits


class Seen(NamedTuple):
    """What one run of a model shows of its layers.

    Attributes:
        returns_tuples: whether they return tuples.
        hidden_bytes: of the hidden state that goes from each to the next.
    """

    returns_tuples: bool
    hidden_bytes: int


class PlanExample:
    """Runs a model on the arguments of one forward; on the meta device, if it is there.

    Args:
        units: of the model.
        args: by position.
        kwargs: by name.
    """

    def __init__(self, units: PlanUnits, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._units = units
        self._args = args
        self._kwargs = kwargs

    def look(self) -> Seen:
        """What its first layer returns."""
        seen: list[Seen] = []

        def note(layer: nn.Module, args: Any, output: Any) -> None:
            is_tuple = isinstance(output, tuple)
            hidden: Tensor = output[0] if is_tuple else output
            seen.append(Seen(is_tuple, hidden.numel() * hidden.element_size()))

        (layer,) = self._units.modules[1].values()
        hook = layer.register_forward_hook(note)
        try:
            with torch.no_grad():
                run_once(self._units.model, self._args, self._kwargs)
        finally:
            hook.remove()
        return seen[0]

    def profile(self) -> list[LayerProfile]:
        """What each unit takes. What the model's forward does between them isn't counted."""
        units = self._units.modules
        layers = {path: module for unit in units for path, module in unit.items()}
        calls = record_calls(self._units.model, layers, self._args, self._kwargs)
        profiles = profile_calls(calls)
        return [add_up(", ".join(unit), [p for p in profiles if p.path in unit]) for unit in units]
