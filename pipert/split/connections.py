"""Connections: what the stages of a trace take, make for others, and make again for themselves."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from pipert.split.graph_nodes import is_size
from pipert.split.remaking import Remaking
from pipert.split.stage_part import StagePart
from pipert.split.stage_sizes import StageSizes
from pipert.split.trace import Trace


class Connections:
    """Fills in what each part takes and gives.

    Args:
        trace: the whole.
        parts: by stage, with their nodes.
        stage_of: the stages of nodes; of an argument of the batch, if it is taken there alone.
        may: the nodes that stages may remake.

    Attributes:
        makers: by node, the stage that makes it.
        readers: of what crosses, by node: the stages that take it.
    """

    def __init__(
        self,
        trace: Trace,
        parts: list[StagePart],
        stage_of: dict[fx.Node, int],
        may: set[fx.Node],
    ) -> None:
        self.makers = dict(stage_of)
        self.readers: dict[fx.Node, set[int]] = {}
        self._trace = trace
        self._parts = parts
        self._stage_of = stage_of
        self._may = may
        self._order = {node: i for i, node in enumerate(trace.module.graph.nodes)}
        for stage in reversed(range(len(parts))):  # a stage makes what those behind it ask for
            self._connect(stage)

    def _connect(self, stage: int) -> None:
        part, order = self._parts[stage], self._order
        arguments = self._trace.arguments.keys()
        given = {node for node in arguments if self._stage_of.get(node, stage) == stage}
        results = self._trace.results if stage == len(self._parts) - 1 else []
        returned = {node for node in results if isinstance(node, fx.Node)}
        sent = {node for node in self.readers if self.makers[node] == stage}
        part.outputs = sorted(sent, key=order.__getitem__)
        part.nodes = self._read(part.nodes, returned | sent)
        needed = {n for node in part.nodes for n in node.all_input_nodes} | returned
        needed |= {n for node in sent for n in (node, *node.all_input_nodes) if n in arguments}
        foreign = {node for node in needed if self._stage_of.get(node, stage) != stage}
        taken = (needed & given) | (foreign - self._may)
        known = sorted(taken, key=lambda n: (n in arguments, order[n]))  # values first
        sizes = StageSizes(self._trace, stage, part, self._stage_of, known)
        remaking = Remaking(self._trace, self._may, given, taken, sizes)
        for node in sorted(foreign & self._may, key=order.__getitem__):
            if not remaking.make(node):
                taken.add(node)
                sizes.show(node)
        part.remade = sorted(remaking.nodes, key=order.__getitem__)
        part.stand_ins = remaking.stand_ins
        for node in sorted(filter(is_size, needed), key=order.__getitem__):
            sizes.find(node)
        for node in sizes.sent:
            self.makers[node] = self._stage_of[node.all_input_nodes[0]]
            self._parts[self.makers[node]].sizes[node] = None
        taken |= sizes.taken
        part.arguments = sorted(taken & given, key=order.__getitem__)
        part.inputs = sorted(taken - given | sizes.sent, key=order.__getitem__)
        for node in part.inputs:
            self.readers.setdefault(node, set()).add(stage)

    def _read(self, nodes: Iterable[fx.Node], wanted: Iterable[fx.Node]) -> list[fx.Node]:
        """The nodes of a stage without those that only others read, which remake them."""
        read: set[fx.Node] = set()

        def add(sources: Iterable[fx.Node]) -> None:
            for source in sources:
                if source not in read:
                    read.add(source)
                    if is_size(source):
                        add(source.all_input_nodes)

        add(wanted)
        kept = []
        for node in reversed(list(nodes)):
            if node in read or node not in self._may:
                kept.append(node)
                add(node.all_input_nodes)
        return kept[::-1]
