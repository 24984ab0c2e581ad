"""Remaking: what a stage makes for itself again, so that it needn't be sent to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from pipert.split.graph_nodes import (
    is_item,
    is_leaf,
    is_node,
    is_region,
    is_size,
    leaf_of,
    region_of,
    values_read,
)
from pipert.split.purity import Purity, has_mode, is_random
from pipert.split.stage_sizes import StageSizes
from pipert.split.trace import Trace
from pipert.split.writes import Writes


def remakeable(trace: Trace, writes: Writes, arguments: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that any stage may compute for itself: masks, positions, rotary tables.

    They depend on sizes, on arguments of the batch and on buffers alone, are never written to, and
    are pure and cheap; see Purity.

    Args:
        trace: the whole.
        writes: its.
        arguments: those of the batch that any stage may take.
    """
    buffers = dict(trace.model.named_buffers(remove_duplicate=False))
    sources = {*arguments, *trace.constants}
    sources |= {node for node, name in trace.states.items() if name in buffers}
    found = {node for node in sources if writes.root(node) not in writes.roots}
    for node in trace.module.graph.nodes:
        if (
            is_size(node)
            or node.op == "get_attr"
            or (
                is_node(node)
                and set(values_read(trace, node)) <= found
                and writes.root(node) not in writes.roots
                and _is_pure(trace, node)
            )
        ):
            found.add(node)
    return {node for node in found if is_node(node) and not is_size(node)}


@dataclass
class _Needs:
    """What it takes to remake something, in the order in which it is found."""

    nodes: dict[fx.Node, None] = field(default_factory=dict)
    sizes: dict[fx.Node, None] = field(default_factory=dict)
    arguments: dict[fx.Node, None] = field(default_factory=dict)
    stand_ins: dict[fx.Node, fx.Node] = field(default_factory=dict)


class Remaking:
    """What one stage remakes.

    Args:
        trace: the whole.
        may: the nodes that can be remade.
        given: the arguments of the batch that the stage may take.
        taken: the values and arguments that it takes anyway, to which those are added that it
            takes for what it remakes.
        sizes: the stage's.

    Attributes:
        nodes: what it remakes.
        stand_ins: see StagePart.
    """

    def __init__(
        self,
        trace: Trace,
        may: set[fx.Node],
        given: set[fx.Node],
        taken: set[fx.Node],
        sizes: StageSizes,
    ) -> None:
        self.nodes: set[fx.Node] = set()
        self.stand_ins: dict[fx.Node, fx.Node] = {}
        self._trace = trace
        self._may = may
        self._given = given
        self._taken = taken
        self._sizes = sizes

    def make(self, node: fx.Node) -> bool:
        """Remakes a node, with all that it is made of; whether that can be done."""
        needs = _Needs()
        if not self._has(node, needs):
            return False
        self.nodes |= needs.nodes.keys()
        self.stand_ins |= needs.stand_ins
        for argument in needs.arguments.keys() - self._taken:
            self._taken.add(argument)
            self._sizes.show(argument)
        for size in needs.sizes:
            self._sizes.find(size)
        return True

    def _has(self, node: fx.Node, needs: _Needs) -> bool:
        """Whether the stage has a node, or can make it; notes what it needs for that."""
        if node in self._taken or node in self.nodes or node in needs.nodes:
            return True
        if is_size(node):
            needs.sizes[node] = None
            return self._sizes.is_known(node)
        if node in self._trace.arguments:
            needs.arguments[node] = None
            return node in self._given
        if not is_node(node):
            return True
        if node not in self._may:
            return False
        read = values_read(self._trace, node)
        if not all(self._has(source, needs) for source in read):
            return False
        if not all(self._has_one_like(other, needs) for other in {*node.all_input_nodes} - {*read}):
            return False
        needs.nodes[node] = None
        return True

    def _has_one_like(self, node: fx.Node, needs: _Needs) -> bool:
        """Whether it has a tensor of the same sizes, type and device."""
        stand_in = None if node in self._taken else self._sizes.stand_in_for(node)
        if stand_in is None:
            return self._has(node, needs)
        needs.stand_ins[node] = stand_in
        return True


def _is_pure(trace: Trace, node: fx.Node) -> bool:
    """Whether a node can be computed again, with the same result and at little cost."""
    if is_leaf(node):
        return leaf_of(trace, node).is_pure
    if is_region(node):
        inner = region_of(trace, node)[0].graph.nodes
        return all(_is_pure(trace, n) for n in inner if n.op == "call_function")
    return is_item(node) or _runs_pure(node)


def _runs_pure(node: fx.Node) -> bool:
    """Finds out by computing it on the fakes of the trace."""
    target, result = node.target, node.meta.get("val")
    if not isinstance(target, torch._ops.OpOverload) or is_random(target) or has_mode(target):
        return False
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: source.meta.get("val"))
    given = [source.meta.get("val") for source in node.all_input_nodes]
    fakes = [x for x in (*given, *pytree.tree_leaves(result)) if isinstance(x, FakeTensor)]
    if not fakes:
        return False
    mode = fakes[0].fake_mode
    with contextlib.suppress(Exception), _unnoticed(mode), mode, Purity(_tensors(given)) as watch:
        target(*args, **kwargs)
        is_pure: bool = watch.is_pure
        return is_pure
    return False


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


@contextlib.contextmanager
def _unnoticed(mode: FakeTensorMode) -> Iterator[None]:
    """What is computed once more tells nothing new about the sizes of the trace."""
    sizes = mode.shape_env
    if sizes is None:
        yield
        return
    with sizes.suppress_guards(), sizes.ignore_fresh_unbacked_symbols():
        yield
