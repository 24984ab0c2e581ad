"""Split policies: functions that put cuts into the graph of an exported model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.distributed.pipelining import SplitPoint, pipe_split


def cuts_of_policy(
    model: nn.Module,
    example_args: tuple[Any, ...],
    example_kwargs: dict[str, Any] | None,
    policy: Callable[[fx.GraphModule], fx.GraphModule],
) -> dict[str, SplitPoint]:
    """Where a policy cuts, by modules of the model.

    Args:
        model: the unpartitioned one.
        example_args: of one microbatch.
        example_kwargs: likewise.
        policy: inserts calls of `pipe_split` into the graph of operators that it gets.

    Raises:
        ValueError: it cuts between two operators of one module, where no call begins or ends.
    """
    exported = torch.export.export(model, example_args, example_kwargs or {}, strict=False)
    graph = policy(exported.module(check_guards=False)).graph
    cuts: dict[str, SplitPoint] = {}
    before: fx.Node | None = None
    is_cut = False
    for node in graph.nodes:
        if node.op not in ("call_function", "call_module", "call_method"):
            continue
        if node.target in (pipe_split, torch.ops.pippy._pipe_split.default):
            is_cut = before is not None  # nothing to cut off before the first operator
            continue
        if is_cut:
            assert before is not None
            path, point = _between(before, node)
            cuts[path] = point
        before, is_cut = node, False
    return cuts


def _between(before: fx.Node, after: fx.Node) -> tuple[str, SplitPoint]:
    left, right = _modules(before), _modules(after)
    entered = [path for path in right if path not in left]
    if entered:
        return entered[0], SplitPoint.BEGINNING
    finished = [path for path in left if path not in right]
    if finished:
        return finished[0], SplitPoint.END
    where = f"inside of {right[-1]}" if right else "in the model's own forward"
    raise ValueError(
        f"the policy cuts between {before.name} and {after.name}, {where}: expected cuts where the "
        "call of a module begins or ends"
    )


def _modules(node: fx.Node) -> list[str]:
    """Paths of the modules that an operator is called in, the outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values() if path]
