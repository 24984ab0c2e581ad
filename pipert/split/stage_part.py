"""StagePart: what one stage is made of, in the nodes of a trace."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx


@dataclass
class StagePart:
    """What one stage is made of.

    Attributes:
        nodes: that it computes, in order.
        remade: that it computes before, for itself, though an earlier stage does so too.
        inputs: that earlier stages compute for it.
        outputs: that it computes for later ones.
        arguments: placeholders of the batch's arguments that it takes.
        sizes: that it needs, by node: the tensor and dimension where it finds it; None: it computes
            it.
        stand_ins: for tensors that it hasn't, others of the same sizes, type and device, for
            who asks for nothing else of them.
        copies: inputs that it writes to, and so must copy first.
    """

    nodes: list[fx.Node] = field(default_factory=list)
    remade: list[fx.Node] = field(default_factory=list)
    inputs: list[fx.Node] = field(default_factory=list)
    outputs: list[fx.Node] = field(default_factory=list)
    arguments: list[fx.Node] = field(default_factory=list)
    sizes: dict[fx.Node, tuple[fx.Node, int] | None] = field(default_factory=dict)
    stand_ins: dict[fx.Node, fx.Node] = field(default_factory=dict)
    copies: set[fx.Node] = field(default_factory=set)
