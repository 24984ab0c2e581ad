"""What the nodes of a traced graph are: leaf calls, regions, views, writes, sizes."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from pipert.split.leaf_call import LeafCall
from pipert.split.leaf_calls import LEAF
from pipert.split.purity import reads_sizes_alone
from pipert.split.trace import Trace

NO_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
AUTOCAST = torch.ops.higher_order.wrap_with_autocast

_ARITHMETIC = {
    *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod),
    *(operator.neg, operator.pow, operator.eq, operator.ne, operator.lt, operator.le, operator.gt),
    *(operator.ge, operator.and_, operator.or_, operator.not_),
    *(torch.sym_max, torch.sym_min, torch.sym_not, torch.sym_int, torch.sym_float),
}
_DETACHING = {torch.ops.aten.detach.default, torch.ops.aten.detach_.default}


def is_node(value: Any) -> bool:
    """Whether it is computed, not given to the graph."""
    return isinstance(value, fx.Node) and value.op not in ("placeholder", "get_attr", "output")


def is_leaf(node: fx.Node) -> bool:
    """Whether it is the call of a leaf."""
    return node.target is LEAF


def is_region(node: fx.Node) -> bool:
    """Whether it is what forward does under torch.no_grad or torch.autocast."""
    return node.target in (NO_GRAD, AUTOCAST)


def region_of(trace: Trace, node: fx.Node) -> tuple[fx.GraphModule, tuple[Any, ...]]:
    """The graph inside of a region, and what it is called with."""
    place = 1 if node.target is NO_GRAD else 4
    body = node.args[place]
    assert isinstance(body, fx.Node)
    return getattr(trace.module, str(body.target)), node.args[place + 1 :]


def leaf_of(trace: Trace, node: fx.Node) -> LeafCall:
    """The call that a leaf's node is of."""
    return trace.calls.calls[node.args[0]]  # type: ignore[index]


def leaves_inside(trace: Trace, node: fx.Node) -> Iterator[LeafCall]:
    """The leaf calls of a node: its own, or those in the region that it is."""
    if is_leaf(node):
        yield leaf_of(trace, node)
    elif is_region(node):
        for inner in region_of(trace, node)[0].graph.nodes:
            yield from leaves_inside(trace, inner)


def is_item(node: fx.Node) -> bool:
    """Whether it takes one result of a node that has several."""
    made = node.args[0] if node.args else None
    return (
        node.target is operator.getitem
        and is_node(made)
        and not isinstance(made.meta.get("val"), Tensor)  # type: ignore[union-attr]
    )


def is_tensor(trace: Trace, node: fx.Node) -> bool:
    """Whether it is a tensor in every run: a function may return None where the trace has one."""
    made = node.args[0] if is_item(node) else None
    if isinstance(made, fx.Node) and is_leaf(made) and not leaf_of(trace, made).is_module:
        return False
    return isinstance(node.meta.get("val"), Tensor)


def is_size(node: fx.Node) -> bool:
    """Whether it is a number that any stage can find out: of sizes, or computed from them."""
    if not isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat):
        return False
    if node.target in (torch.ops.aten.sym_size.int, torch.ops.aten.sym_numel.default):
        return True
    return node.target in _ARITHMETIC and all(map(_is_number, node.all_input_nodes))


def _is_number(node: fx.Node) -> bool:
    return not isinstance(node.meta.get("val"), Tensor)


def values_read(trace: Trace, node: fx.Node) -> list[fx.Node]:
    """Those of its arguments of which it needs more than sizes, type and device."""
    if is_leaf(node):
        tensors: Any = node.args[1]
        sizes: Any = node.args[2]
        read = leaf_of(trace, node).reads
        return [*(t for i, t in enumerate(tensors) if read is None or i in read), *sizes]
    if reads_sizes_alone(node.target):
        return [source for source in node.all_input_nodes if source is not node.args[0]]
    return node.all_input_nodes


def is_detached(node: fx.Node) -> bool:
    """Whether no gradient passes it, whatever it is made of."""
    return node.target in _DETACHING or (node.target is NO_GRAD and node.args[0] is False)


def written(node: fx.Node) -> list[fx.Node]:
    """Those of its arguments that it writes to."""
    return [argument for argument, alias in _aliased(node) if alias.is_write]


def seen_through(node: fx.Node) -> fx.Node | None:
    """The argument whose memory its result has, if it is a view; None: it has memory of its own."""
    if is_item(node):
        made = node.args[0]
        assert isinstance(made, fx.Node)
        return seen_through(made)
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return None
    returned = {
        name for result in schema.returns if result.alias_info for name in _sets(result.alias_info)
    }
    for argument, alias in _aliased(node):
        if returned & _sets(alias):
            return argument
    return None


def _sets(alias: Any) -> set[str]:
    return set(alias.before_set) | set(alias.after_set)


def _aliased(node: fx.Node) -> Iterator[tuple[fx.Node, Any]]:
    schema = getattr(node.target, "_schema", None)
    for i, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.alias_info is None:
            continue
        value = node.kwargs.get(argument.name) if i >= len(node.args) else node.args[i]
        for entry in value if isinstance(value, list | tuple) else (value,):
            if isinstance(entry, fx.Node):
                yield entry, argument.alias_info


def line_of(node: fx.Node) -> str:
    """The user's line that a node comes from."""
    trace = (node.meta.get("stack_trace") or "").strip().splitlines()
    if len(trace) < 2:
        return f"{node.target}"
    place, text = trace[-2].strip(), trace[-1].strip()
    file, _, rest = place.removeprefix("File ").partition(", line ")
    return f"{file.strip(chr(34))}:{rest.split(',')[0]}: {text}"
