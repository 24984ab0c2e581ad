"""Values: what the stages of a trace hand to each other, by name."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipert.split.graph_nodes import (
    is_detached,
    is_item,
    is_leaf,
    leaf_of,
    leaves_inside,
    values_read,
)
from pipert.split.leaf_call import Slot
from pipert.split.sizes import hint_of
from pipert.split.trace import Trace
from pipert.stages import Value


def values_of(
    trace: Trace, makers: dict[fx.Node, int], readers: dict[fx.Node, set[int]]
) -> dict[fx.Node, Value]:
    """What crosses, by node, in order.

    Args:
        trace: the whole.
        makers: by node, the stage that makes it.
        readers: of what crosses, by node: the stages that take it.
    """
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
    if node in trace.arguments:
        return str(trace.arguments[node])
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
                any(source in found for source in values_read(trace, node))
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
    sizes = [hint_of(size) for size in value.shape]
    if None in sizes:
        return None
    return math.prod(s for s in sizes if s is not None) * value.element_size()
