"""Cut: which stage each node of a trace is in, and what the stages hand to each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from pipert.split.connections import Connections
from pipert.split.graph_nodes import is_item, is_leaf, is_node, is_size, leaf_of, leaves_inside
from pipert.split.leaf_calls import SPLIT_POINT
from pipert.split.remaking import remakeable
from pipert.split.sinking import sink
from pipert.split.stage_part import StagePart
from pipert.split.trace import Trace
from pipert.split.values import values_of
from pipert.split.writes import Writes
from pipert.stages import Value

_CHECKS = (
    "aten._assert_async",
    "aten._assert_scalar",
    "aten._assert_tensor_metadata",
    "aten.sym_constrain_range",
)


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


def cut(trace: Trace, begins: Iterable[fx.Node], send_arguments: bool = False) -> Cut:
    """Cuts a trace in front of each of `begins`, or where they are marks.

    Args:
        trace: the whole.
        begins: of stages, but for the first.
        send_arguments: whether the first stage takes all arguments of the batch, and sends those
            that others read.

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
    free = [] if send_arguments else list(trace.arguments)
    sink(trace, stage_of, writes, num_stages, free)
    parts = [StagePart() for _ in range(num_stages)]
    for node, stage in stage_of.items():
        parts[stage].nodes.append(node)
    for stage, nodes in writes.check(stage_of).items():
        parts[stage].copies |= nodes
    may = remakeable(trace, writes, free)
    if send_arguments:
        stage_of |= dict.fromkeys(trace.arguments, 0)
    connections = Connections(trace, parts, stage_of, may)
    for stage, part in enumerate(parts):
        if not part.nodes:
            why = "two cuts are at one place" if stage else "a cut is before all that forward does"
            raise ValueError(f"stage {stage} would have nothing to compute: {why}")
    return Cut(trace, parts, values_of(trace, connections.makers, connections.readers))


def is_mark(node: fx.Node) -> bool:
    """Whether it says where a cut is."""
    return node.target is SPLIT_POINT or str(node.target) == "pippy._pipe_split.default"
