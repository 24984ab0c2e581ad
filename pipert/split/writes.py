"""Writes: what a traced forward changes in place, and which stages see it."""

from __future__ import annotations

from torch import fx

from pipert.split.graph_nodes import is_node, line_of, seen_through, written
from pipert.split.trace import Trace


class Writes:
    """The in-place operations of a trace.

    Later uses of a tensor that is written to become uses of the writing node's result, which is the
    same tensor: so whoever reads it in another stage gets it as it is then.

    Attributes:
        roots: the nodes whose memory is written to.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._order = {node: i for i, node in enumerate(trace.module.graph.nodes)}
        self._roots: dict[fx.Node, fx.Node] = {}
        self._writes: list[tuple[fx.Node, fx.Node]] = []  # (who writes, to what)
        for node in trace.module.graph.nodes:
            for target in written(node):
                self._writes.append((node, target))
                if target not in trace.states and seen_through(node) is target:
                    self._pass_on(target, node)
        self.roots = {self.root(target) for _, target in self._writes}

    def root(self, node: fx.Node) -> fx.Node:
        """The node whose memory a view shows; itself if it is none."""
        if node not in self._roots:
            source = seen_through(node) if is_node(node) else None
            self._roots[node] = node if source is None else self.root(source)
        return self._roots[node]

    def check(self, stage_of: dict[fx.Node, int]) -> dict[int, set[fx.Node]]:
        """What each stage must copy before it writes to it, since an earlier stage made it.

        Raises:
            ValueError: a stage reads what another one has written to in the meantime.
        """
        copies: dict[int, set[fx.Node]] = {}
        for node, target in self._writes:
            stage, root = stage_of[node], self.root(target)
            shown = [
                other for other in self._order if self.root(other) is root and other is not node
            ]
            earlier = [o for o in shown if stage_of.get(o, -1) < stage]
            for other in earlier:
                self._refuse_later_uses(node, other, stage_of)
            received = {o for o in earlier if is_node(o) and self._is_read(o, stage, stage_of)}
            if len(received) > 1:
                raise ValueError(
                    f"stage {stage} writes to a tensor of an earlier stage, and has several views "
                    f"of it\n  {line_of(node)}\nexpected a copy of it first"
                )
            copies.setdefault(stage, set()).update(received)
        return copies

    def _pass_on(self, target: fx.Node, node: fx.Node) -> None:
        place = self._order[node]
        for user in list(target.users):
            if self._order[user] > place:
                user.replace_input_with(target, node)
        self._trace.results = [node if r is target else r for r in self._trace.results]

    def _refuse_later_uses(
        self, node: fx.Node, other: fx.Node, stage_of: dict[fx.Node, int]
    ) -> None:
        for user in other.users:
            behind = self._order[user] > self._order[node]
            if behind and stage_of.get(user, -1) > stage_of[node]:
                raise ValueError(
                    f"stage {stage_of[node]} writes to what stage {stage_of[user]} reads, and "
                    f"would not see it\n  {line_of(node)}\n  {line_of(user)}\n"
                    "expected a copy first, or both in one stage"
                )

    def _is_read(self, node: fx.Node, stage: int, stage_of: dict[fx.Node, int]) -> bool:
        return any(stage_of.get(user) == stage for user in node.users)
