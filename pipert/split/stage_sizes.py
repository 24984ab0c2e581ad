"""StageSizes: how one stage gets the sizes that it needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from pipert.split.graph_nodes import is_size, is_tensor
from pipert.split.sizes import is_same_size
from pipert.split.stage_part import StagePart
from pipert.split.trace import Trace


class StageSizes:
    """Finds out how one stage gets the sizes that it needs.

    Args:
        trace: the whole.
        stage, part: the stage.
        stage_of: the stages of nodes.
        taken: the tensors and arguments that the stage takes anyway.

    Attributes:
        taken: more arguments and numbers that it must take.
        sent: sizes that an earlier stage must send as numbers.
    """

    def __init__(
        self,
        trace: Trace,
        stage: int,
        part: StagePart,
        stage_of: dict[fx.Node, int],
        taken: list[fx.Node],
    ) -> None:
        self.taken: set[fx.Node] = set()
        self.sent: set[fx.Node] = set()
        self._trace = trace
        self._stage = stage
        self._part = part
        self._stage_of = stage_of
        self._tensors: list[fx.Node] = []
        for node in taken:
            self.show(node)

    def show(self, node: fx.Node) -> None:
        """Adds a tensor that the stage takes."""
        if is_tensor(self._trace, node):
            self._tensors.append(node)

    def stand_in_for(self, node: fx.Node) -> fx.Node | None:
        """A tensor that the stage takes, of the same sizes, type and device in every batch."""
        wanted = node.meta.get("val")
        return next((t for t in self._tensors if _is_alike(t.meta["val"], wanted)), None)

    def is_known(self, node: fx.Node) -> bool:
        """Whether what the stage takes, or may take of the batch, says the size."""
        if self._shown_by(node) is not None:
            return True
        arguments = self._trace.arguments
        return all(
            self.is_known(other)
            if is_size(other)
            else other in arguments and other not in self._stage_of
            for other in node.all_input_nodes
        )

    def find(self, node: fx.Node) -> None:
        """Adds to the part's sizes, or to what it must take."""
        if node in self._part.sizes or node in self.sent:
            return
        source = self._shown_by(node)
        inputs, arguments = node.all_input_nodes, self._trace.arguments.keys()
        if source is not None:
            self._part.sizes[node] = source
        elif all(isinstance(other.meta["val"], Tensor) for other in inputs):
            made = self._stage_of.get(inputs[0], self._stage)
            if made != self._stage:
                self.sent.add(node)
                return
            self._part.sizes[node] = None
            self.taken |= {inputs[0]} & arguments
        else:
            self._part.sizes[node] = None
            for other in inputs:
                if is_size(other):
                    self.find(other)
                elif self._stage_of.get(other, -1) != self._stage or other in arguments:
                    self.taken.add(other)

    def _shown_by(self, node: fx.Node) -> tuple[fx.Node, int] | None:
        """The tensor and dimension where a size shows."""
        for tensor in self._tensors:
            for dimension, size in enumerate(tensor.meta["val"].shape):
                if isinstance(size, torch.SymInt) and is_same_size(size, node.meta["val"]):
                    return tensor, dimension
        return None


def _is_alike(a: Tensor, b: Any) -> bool:
    return (
        isinstance(b, Tensor)
        and (a.dtype, a.device, a.dim()) == (b.dtype, b.device, b.dim())
        and all(map(is_same_size, a.shape, b.shape))
    )
