"""Split policies by size: layers are put together until a stage is large enough."""

from bisect import bisect_left
from collections.abc import Callable

from torch import fx
from torch.distributed.pipelining import pipe_split


def split_into_equal_size(nstages: int = 1) -> Callable[[fx.GraphModule], fx.GraphModule]:
    """A policy whose largest stage has as few parameters as can be.

    Args:
        nstages: how many.

    Raises:
        ValueError: when it is used: the model has too few layers.
    """
    if nstages < 1:
        raise ValueError(f"nstages must be positive, got {nstages}")

    def policy(traced: fx.GraphModule) -> fx.GraphModule:
        layers = _layers(traced)
        if len(layers) < nstages:
            raise ValueError(f"the model has {len(layers)} layers, expected {nstages} at least")
        sizes = [size for _, size in layers]
        limits = range(max(sizes), sum(sizes) + 1)
        limit = limits[bisect_left(limits, True, key=lambda most: fits(sizes, most))]
        return _cut(traced, [layers[i][0] for i in _begins(sizes, limit, nstages)])

    def fits(sizes: list[int], limit: int) -> bool:
        return len(_begins(sizes, limit, nstages)) < nstages

    return policy


def split_on_size_threshold(
    threshold: int, max_stages: int = -1
) -> Callable[[fx.GraphModule], fx.GraphModule]:
    """A policy that ends a stage when it has `threshold` parameters.

    Args:
        threshold: how many.
        max_stages: of which the last one takes what is left; -1: as many as it takes.
    """
    if threshold < 1:
        raise ValueError(f"threshold must be positive, got {threshold}")

    def policy(traced: fx.GraphModule) -> fx.GraphModule:
        begins: list[fx.Node] = []
        held = 0
        for first, size in _layers(traced):
            if held >= threshold and len(begins) + 1 != max_stages:
                begins.append(first)
                held = 0
            held += size
        return _cut(traced, begins)

    return policy


def _begins(sizes: list[int], limit: int, num_stages: int) -> list[int]:
    """The layers that begin a new stage, so that none is larger than `limit`.

    There are as many stages as asked for, or more if the limit is too small.
    """
    begins: list[int] = []
    held = 0
    for layer, size in enumerate(sizes):
        missing = num_stages - 1 - len(begins)
        if layer > 0 and (held + size > limit or len(sizes) - layer == missing):
            begins.append(layer)
            held = 0
        held += size
    return begins


def _cut(traced: fx.GraphModule, begins: list[fx.Node]) -> fx.GraphModule:
    for node in begins:
        with traced.graph.inserting_before(node):
            traced.graph.call_function(pipe_split, (), {})
    traced.recompile()
    return traced


def _layers(traced: fx.GraphModule) -> list[tuple[fx.Node, int]]:
    """The first operator of each layer, and how many parameters it is the first to use."""
    layers: list[tuple[str, fx.Node, int]] = []
    seen: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if node.op not in ("call_function", "call_module", "call_method"):
            continue
        layer = _layer_of(node, traced)
        used = [n for n in node.all_input_nodes if n.op == "get_attr" and n not in seen]
        seen.update(used)
        size = sum(_size_of(traced, str(n.target)) for n in used)
        if layers and layer in ("", layers[-1][0]):
            path, first, before = layers[-1]
            layers[-1] = (path, first, before + size)
        else:
            layers.append((layer, node, size))
    return [(node, size) for _, node, size in layers]


def _layer_of(node: fx.Node, traced: fx.GraphModule) -> str:
    """The outermost entry of a list of modules that it is called in, else the innermost module."""
    stack = node.meta.get("nn_module_stack") or {}
    paths: list[str] = [path for path, _ in stack.values() if path]
    entries = [path for path in paths if path.rpartition(".")[2].isdigit()]
    return (entries or paths[-1:] or [""])[0]


def _size_of(traced: fx.GraphModule, target: str) -> int:
    found: object = traced
    for name in target.split("."):
        found = getattr(found, name)
    return found.numel() if hasattr(found, "numel") else 0
