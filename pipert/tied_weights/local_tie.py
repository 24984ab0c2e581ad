"""LocalTie: one parameter that several stages use, as far as they are in this process."""

from typing import Any, NamedTuple

import torch
from torch import nn

from pipert.local.local_stage import LocalStage
from pipert.near_names import near_names
from pipert.tied_weights.tied import Tied


class Place(NamedTuple):
    """Where a stage of this process has a parameter."""

    stage: int
    device: torch.device
    module: nn.Module
    attribute: str

    def parameter(self) -> nn.Parameter:
        """The one that is there now."""
        parameter = self.module._parameters[self.attribute]
        assert parameter is not None
        return parameter


class LocalTie:
    """A tied parameter that stages of this process use, some of them.

    Args:
        tied: all its uses.
        owner: the rank that has the first.
        others: the other ranks that use it, the last stage's first.
        rank: of this process; None: all are in this one.

    Attributes:
        name: in the unpartitioned model.
        is_owner: whether the stage that owns it is here.
        peers: the ranks that it is exchanged with.
        places: of its uses here, the owner's first.
    """

    def __init__(self, tied: Tied, owner: int, others: list[int], rank: int | None) -> None:
        self.tied = tied
        self.name = tied.uses[0][1]
        self.is_owner = rank is None or rank == owner or not others
        self.peers: list[int] = []
        if rank is not None and others:
            self.peers = others if self.is_owner else [owner]
        self.places: list[Place] = []

    def parameter(self) -> nn.Parameter:
        """As it is now; what twins stand for."""
        return self.places[0].parameter()


def place_of(stage: LocalStage, name: str, device: torch.device) -> Place:
    """Where the stage has the parameter of this name.

    Raises:
        ValueError: nowhere; names what it has.
    """
    path, _, attribute = name.removeprefix(stage.prefix).rpartition(".")
    if isinstance(stage.call, nn.Module):
        module = dict(stage.call.named_modules(remove_duplicate=False)).get(path)
        if module is not None and module._parameters.get(attribute) is not None:
            return Place(stage.piece, device, module, attribute)
    names = [name for name, _ in stage.named_parameters()]
    raise ValueError(
        f"stage {stage.piece} has no parameter {name} that could be tied" + near_names(name, names)
    )


def replace_everywhere(call: Any, known: nn.Parameter, new: nn.Parameter) -> None:
    """Puts `new` wherever the module has `known`."""
    if known is new:
        return
    for module in call.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is known:
                setattr(module, name, new)  # some modules keep more of it (nn.LSTM)
