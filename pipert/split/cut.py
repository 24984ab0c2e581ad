"""Cut: which stage each node of a trace is in, and what the stages hand to each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipert.split.graph_nodes import (
    is_detached,
    is_item,
    is_leaf,
    is_node,
    is_size,
    is_tensor,
    leaf_of,
    leaves_inside,
)
from pipert.split.leaf_calls import SPLIT_POINT, Slot
from pipert.split.sinking import sink
from pipert.split.trace import Trace
from pipert.split.writes import Writes
from pipert.stages import Value

_CHECKS = (
    "aten._assert_async",
    "aten._assert_scalar",
    "aten._assert_tensor_metadata",
    "aten.sym_constrain_range",
)


@dataclass
class StagePart:
    """What one stage is made of.

    Attributes:
        nodes: that it computes, in order.
        inputs: that earlier stages compute for it.
        outputs: that it computes for later ones.
        arguments: placeholders of the batch's arguments that it takes.
        sizes: that it needs, by node: the tensor and dimension where it finds it; None: it computes
            it.
        copies: inputs that it writes to, and so must copy first.
    """

    nodes: list[fx.Node] = field(default_factory=list)
    inputs: list[fx.Node] = field(default_factory=list)
    outputs: list[fx.Node] = field(default_factory=list)
    arguments: list[fx.Node] = field(default_factory=list)
    sizes: dict[fx.Node, tuple[fx.Node, int] | None] = field(default_factory=dict)
    copies: set[fx.Node] = field(default_factory=set)


@dataclass
class Cut:
    """A trace in stages.

    Attributes:
        trace: the whole.
        parts: by stage.
        values: what stages hand to each other, by node, in order.
    """

    trace: Trace
    parts: list[StagePart]
    values: dict[fx.Node, Value]

    def layers(self, stage: int) -> tuple[str, ...]:
        """The paths of the modules that a stage calls, in order."""
        calls = [c for node in self.parts[stage].nodes for c in leaves_inside(self.trace, node)]
        return tuple(dict.fromkeys(call.path for call in calls if call.is_module))


def simplify(trace: Trace) -> None:
    """Takes out of a trace what computes nothing: its checks, and what nobody reads."""
    graph = trace.module.graph
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and str(node.target).startswith(_CHECKS):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in reversed(list(graph.nodes)):
        is_function = is_leaf(node) and not leaf_of(trace, node).is_module
        if is_function and not node.users:
            graph.erase_node(node)


def cut(trace: Trace, begins: Iterable[fx.Node]) -> Cut:
    """Cuts a trace in front of each of `begins`, or where they are marks.

    Raises:
        ValueError: a stage would have nothing to compute, or a tensor is written to in a stage that
            others don't see.
    """
    begins = set(begins)
    stage_of: dict[fx.Node, int] = {}
    writes = Writes(trace)
    stage = 0
    for node in trace.module.graph.nodes:
        if node in begins:
            stage += 1
        if is_node(node) and not is_mark(node) and not is_size(node):
            made = node.args[0] if is_item(node) else None
            stage_of[node] = stage_of[made] if isinstance(made, fx.Node) else stage
    num_stages = stage + 1
    sink(trace, stage_of, writes, num_stages)
    parts = [StagePart() for _ in range(num_stages)]
    for node, stage in stage_of.items():
        parts[stage].nodes.append(node)
    for stage, part in enumerate(parts):
        if not part.nodes:
            raise ValueError(
                f"stage {stage} would have nothing to compute: two cuts are at one place"
            )
    copies = writes.check(stage_of)
    for stage, nodes in copies.items():
        parts[stage].copies |= nodes
    makers, readers = _connect(trace, parts, stage_of)
    return Cut(trace, parts, _values(trace, makers, readers))


def is_mark(node: fx.Node) -> bool:
    """Whether it says where a cut is."""
    return node.target is SPLIT_POINT or str(node.target) == "pippy._pipe_split.default"


def _connect(
    trace: Trace, parts: list[StagePart], stage_of: dict[fx.Node, int]
) -> tuple[dict[fx.Node, int], dict[fx.Node, set[int]]]:
    """Fills in what each part takes and gives; who makes what crosses, and who reads it."""
    order = {node: i for i, node in enumerate(trace.module.graph.nodes)}
    readers: dict[fx.Node, set[int]] = {}
    makers = dict(stage_of)
    for stage, part in enumerate(parts):
        results = trace.results if stage == len(parts) - 1 else []
        needed = {n for node in part.nodes for n in node.all_input_nodes}
        needed |= {node for node in results if isinstance(node, fx.Node)}
        taken = {n for n in needed if n in trace.arguments or stage_of.get(n, stage) != stage}
        known = sorted(taken, key=lambda n: (n in trace.arguments, order[n]))  # values first
        sizes = _Sizes(trace, stage, part, stage_of, known)
        for node in sorted(filter(is_size, needed), key=order.__getitem__):
            sizes.find(node)
        taken |= sizes.taken
        for node in sizes.sent:
            makers[node] = stage_of[node.all_input_nodes[0]]
            parts[makers[node]].sizes[node] = None
        part.arguments = sorted(taken & trace.arguments.keys(), key=order.__getitem__)
        part.inputs = sorted(taken - trace.arguments.keys() | sizes.sent, key=order.__getitem__)
        for node in part.inputs:
            readers.setdefault(node, set()).add(stage)
    for node in sorted(readers, key=order.__getitem__):
        parts[makers[node]].outputs.append(node)
    return makers, readers


class _Sizes:
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
        self._tensors = [node for node in taken if is_tensor(trace, node)]

    def find(self, node: fx.Node) -> None:
        """Adds to the part's sizes, or to what it must take."""
        if node in self._part.sizes or node in self.sent:
            return
        source = self._shown_by(node)
        inputs = node.all_input_nodes
        if source is not None:
            self._part.sizes[node] = source
        elif all(isinstance(other.meta["val"], Tensor) for other in inputs):
            made = self._stage_of.get(inputs[0], self._stage)
            if made != self._stage:
                self.sent.add(node)
                return
            self._part.sizes[node] = None
            self.taken |= {inputs[0]} & self._trace.arguments.keys()
        else:
            self._part.sizes[node] = None
            for other in inputs:
                if is_size(other):
                    self.find(other)
                elif self._stage_of.get(other, -1) != self._stage:
                    self.taken.add(other)

    def _shown_by(self, node: fx.Node) -> tuple[fx.Node, int] | None:
        """The tensor and dimension where a size shows."""
        expression = node.meta["val"].node.expr
        for tensor in self._tensors:
            for dimension, size in enumerate(tensor.meta["val"].shape):
                if isinstance(size, torch.SymInt) and size.node.expr == expression:
                    return tensor, dimension
        return None


def _values(
    trace: Trace, makers: dict[fx.Node, int], readers: dict[fx.Node, set[int]]
) -> dict[fx.Node, Value]:
    differentiable = _differentiable(trace)
    names: set[str] = set()
    values = {}
    for node in trace.module.graph.nodes:
        if node not in readers:
            continue
        name = _name(trace, node)
        numbered = (f"{name}_{i}" if i else name for i in itertools.count())
        name = next(candidate for candidate in numbered if candidate not in names)
        names.add(name)
        values[node] = Value(
            name=name,
            maker=makers[node],
            readers=tuple(sorted(readers[node])),
            differentiable=node in differentiable,
            bytes=_bytes(node.meta.get("val")),
        )
    return values


def _name(trace: Trace, node: fx.Node) -> str:
    made = node.args[0] if is_item(node) else None
    if not isinstance(made, fx.Node) or not is_leaf(made):
        return node.name
    call = leaf_of(trace, made)
    assert call.outputs is not None
    several = sum(isinstance(leaf, Slot) for leaf in call.outputs.leaves) > 1
    return f"{call.path}.{node.args[1]}" if several else call.path


def _differentiable(trace: Trace) -> set[fx.Node]:
    """The nodes that parameters have a part in, through numbers that have gradients."""
    parameters = dict(trace.model.named_parameters())
    found: set[fx.Node] = set()
    for node in trace.module.graph.nodes:
        if node.op == "placeholder":
            depends = trace.states.get(node) in parameters
        else:
            depends = not is_detached(node) and (
                any(source in found for source in node.all_input_nodes)
                or any(_has_parameters(call.target) for call in leaves_inside(trace, node))
            )
        if depends and _may_have_gradient(node.meta.get("val")):
            found.add(node)
    return found


def _has_parameters(target: Any) -> bool:
    return isinstance(target, nn.Module) and next(target.parameters(), None) is not None


def _may_have_gradient(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_may_have_gradient, value))
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _bytes(value: Any) -> int | None:
    """Of the example's tensor."""
    if not isinstance(value, Tensor):
        return 8 if isinstance(value, torch.SymInt) else None
    sizes = [s.node.hint if isinstance(s, torch.SymInt) else s for s in value.shape]
    return None if None in sizes else math.prod(map(int, sizes)) * value.element_size()
