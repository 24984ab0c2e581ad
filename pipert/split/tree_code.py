"""Tree code: nested arguments and results, as Python writes them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import fx

from pipert.split.leaf_call import Tree


def write_tree(
    graph: fx.Graph,
    spec: pytree.TreeSpec,
    leaves: Sequence[Any],
    constant: Callable[[Any], Any],
) -> Any:
    """Leaves in their structure: as code for tuples, lists and dicts.

    Args:
        graph: the code.
        spec: the structure.
        leaves: nodes of the graph, and constants.
        constant: what stands in the graph for an object.
    """
    if spec.is_leaf():
        return leaves[0]
    if spec.type not in (tuple, list, dict, OrderedDict):
        return graph.call_function(pytree.tree_unflatten, (list(leaves), constant(spec)))
    rest = list(leaves)
    children = []
    for child in spec.children():
        children.append(write_tree(graph, child, rest[: child.num_leaves], constant))
        del rest[: child.num_leaves]
    if spec.type in (dict, OrderedDict):
        entries = list(zip(spec.context, children, strict=True))
        return dict(entries) if spec.type is dict else graph.call_function(OrderedDict, (entries,))
    return spec.type(children)


def path_to(tree: Tree, place: int) -> list[Any] | None:
    """The keys to a leaf in tuples, lists and dicts; None: it lies in something else."""
    spec, path = tree.spec, []
    while not spec.is_leaf():
        if spec.type not in (tuple, list, dict, OrderedDict):
            return None
        for i, child in enumerate(spec.children()):
            if place < child.num_leaves:
                path.append(i if spec.type in (tuple, list) else spec.context[i])
                spec = child
                break
            place -= child.num_leaves
    return path
