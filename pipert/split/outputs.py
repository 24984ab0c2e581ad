"""Outputs: those of a model's results that stages are to return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch.utils._pytree as pytree

from pipert.near_names import near_names

if TYPE_CHECKING:
    from pipert.split.trace import Trace

Outputs = Sequence[str | int] | None


def check_outputs(outputs: Any) -> None:
    """Checks what can be checked before there is a result.

    Raises:
        TypeError, ValueError: it names nothing.
    """
    if outputs is None:
        return
    if (
        isinstance(outputs, str)
        or not isinstance(outputs, Sequence)
        or not all(type(name) in (str, int) for name in outputs)
    ):
        raise TypeError(
            'outputs must be names in what forward returns, such as ["loss", "logits"], or places '
            f"in it, such as [0]; got {outputs!r}"
        )
    if not outputs:
        raise ValueError("outputs must name one at least, got none")


def only(outputs: Outputs, result: Any, model: str) -> Any:
    """What a forward returned, with None for all that `outputs` doesn't name.

    Raises:
        ValueError: it isn't there; `model` says whose result it is.
    """
    if outputs is None:
        return result
    leaves, spec = pytree.tree_flatten(result)
    kept = _kept_leaves(outputs, spec, model)
    chosen = [leaf if keep else None for leaf, keep in zip(leaves, kept, strict=True)]
    return pytree.tree_unflatten(chosen, spec)


def leave_out(trace: Trace, outputs: Sequence[str | int]) -> None:
    """Puts None for all results of a trace but those, so that nothing is computed for others.

    Raises:
        ValueError: forward returns nothing of that name.
    """
    kept = _kept_leaves(outputs, trace.result_spec, type(trace.model).__name__)
    trace.results = [r if keep else None for r, keep in zip(trace.results, kept, strict=True)]
    output = next(node for node in trace.module.graph.nodes if node.op == "output")
    output.args = (tuple(trace.results),)


def _kept_leaves(outputs: Sequence[str | int], spec: pytree.TreeSpec, model: str) -> list[bool]:
    """For each leaf of a result of this structure, whether `outputs` names what it is in.

    Raises:
        ValueError: as `only`.
    """
    names = _names(spec)
    if not names:
        raise ValueError(
            f"outputs are of what is returned in a dict, a tuple or the like: expected None, since "
            f"{model} returns one value; got {list(outputs)}"
        )
    for name in outputs:
        if name not in names:
            known = [str(known) for known in names]
            raise ValueError(
                f"outputs must name what {model} returns: expected some of {', '.join(known)}; "
                f"got {name!r}{near_names(str(name), known)}"
            )
    return [
        name in outputs
        for name, child in zip(names, spec.children(), strict=True)
        for _ in range(child.num_leaves)
    ]


def _names(spec: pytree.TreeSpec) -> list[str | int]:
    """Of the entries of a structure: keys or fields, or else places."""
    if spec.is_leaf():
        return []
    count = len(spec.children())
    fields = getattr(spec.context, "_fields", None) or spec.context
    if isinstance(fields, list | tuple) and fields and isinstance(fields[0], list | tuple):
        fields = fields[0]  # a dataclass: its fields, and those that are None
    if isinstance(fields, list | tuple) and len(fields) == count:
        return list(fields)
    return list(range(count))
