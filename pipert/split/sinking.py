"""Sinking: what depends on the batch's arguments alone is computed where it is first read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import fx

from pipert.split.graph_nodes import is_item, is_leaf, is_region, is_size, leaf_of
from pipert.split.purity import is_random
from pipert.split.trace import Trace
from pipert.split.writes import Writes


def sink(
    trace: Trace,
    stage_of: dict[fx.Node, int],
    writes: Writes,
    num_stages: int,
    arguments: Iterable[fx.Node],
) -> None:
    """Moves such nodes to later stages, in `stage_of`.

    T5's decoder inputs, which it makes of the labels before its encoder runs, are an example.

    Args:
        trace: the whole.
        stage_of: the stages of nodes.
        writes: of the trace.
        num_stages: how many there are.
        arguments: those of the batch that any stage may take.
    """
    movable = _movable(trace, stage_of, arguments)
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in movable:
        groups.setdefault(_head(node, writes), []).append(node)
    sizes = Counter(_head(node, writes) for node in stage_of)
    whole = [group for head, group in groups.items() if len(group) == sizes[head]]
    last = num_stages - 1
    results = {node for node in trace.results if isinstance(node, fx.Node)}
    sunk = stage_of | {node: last for group in whole for node in group}
    changed = True
    while changed:  # from as late as can be to as early as must be
        changed = False
        for group in reversed(whole):
            users = {user for node in group for user in node.users if user in sunk} - set(group)
            stage = min((sunk[user] for user in users), default=last)
            if not users and not results & set(group):
                stage = stage_of[group[0]]
            if stage < sunk[group[0]]:
                changed = True
                sunk.update(dict.fromkeys(group, stage))
    stage_of.update(sunk)


def _movable(
    trace: Trace, stage_of: dict[fx.Node, int], arguments: Iterable[fx.Node]
) -> list[fx.Node]:
    found: dict[fx.Node, None] = {}
    given = {*arguments, *trace.constants}
    for node in stage_of:
        pure = not is_random(node.target) and not is_region(node)
        if is_leaf(node):
            pure = not leaf_of(trace, node).is_module
        sources = node.all_input_nodes
        if pure and all(n in found or n in given or is_size(n) for n in sources):
            found[node] = None
    return list(found)


def _head(node: fx.Node, writes: Writes) -> fx.Node:
    """What a node moves with: who made it among other results, or whose memory is written to."""
    root = writes.root(node)
    if root in writes.roots:
        return root
    made = node.args[0] if is_item(node) else None
    return made if isinstance(made, fx.Node) else node
