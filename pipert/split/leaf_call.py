"""LeafCall: one call of a module or function that a trace doesn't look into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.utils._pytree as pytree
from torch import nn

from pipert.split.example import hides_tensors


@dataclass(frozen=True)
class Slot:
    """Where in the operator's lists an argument or a result is."""

    index: int
    is_size: bool = False


@dataclass
class Tree:
    """Arguments or results: their structure, and at its leaves Slots or constants."""

    spec: pytree.TreeSpec
    leaves: list[Any]


@dataclass
class LeafCall:
    """One call in a trace.

    Attributes:
        path: of the module in the model; the name of a function.
        target: the module or function.
        inputs: (args, kwargs).
        outputs: what it returned; None before it did.
        reads: which of the tensors that it is called with it reads the values of, by their index;
            None: all. Of the others it asks for sizes, type and device alone.
        is_pure: whether it can be called again, by any stage, with the same result; see Purity.
    """

    path: str
    target: Any
    inputs: Tree
    outputs: Tree | None = None
    reads: frozenset[int] | None = None
    is_pure: bool = False

    @property
    def is_module(self) -> bool:
        """Whether it is a module's."""
        return isinstance(self.target, nn.Module)


def refuse_hidden(call: LeafCall, tree: Tree, does: str) -> None:
    """Tensors in an object that pytree can't look into would be constants to the trace."""
    for leaf in tree.leaves:
        if not isinstance(leaf, Slot) and hides_tensors(leaf):
            raise ValueError(
                f"{call.path} {does} a {type(leaf).__name__} with tensors in it: expected a type "
                "that torch.utils._pytree knows (torch.export.register_dataclass makes it known)"
            )
