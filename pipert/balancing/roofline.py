"""Roofline: how long a device would take for what runs on the meta device."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Of a large GPU in half precision, as layers reach them. Cuts depend on their ratio alone.
FLOPS_PER_S = 3e14
BYTES_PER_S = 2e12


class Roofline(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what operators would take: by arithmetic or by traffic, whichever is longer.

    Traffic is what an operator reads and writes. Views are free.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds = 0.0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs an operator and counts it."""
        result = func(*args, **(kwargs or {}))
        count: Callable[..., Any] | None = flop_registry.get(func._overloadpacket)
        flops = count(*args, **(kwargs or {}), out_val=result) if count else 0
        if func.is_view:
            return result
        self.seconds += max(flops / FLOPS_PER_S, _traffic(args, kwargs, result) / BYTES_PER_S)
        return result


def _traffic(args: Any, kwargs: Any, result: Any) -> int:
    """Bytes read and written; an argument that is written to counts once."""
    touched = {id(t): t for t in _tensors((args, kwargs, result))}
    return sum(t.numel() * t.element_size() for t in touched.values())


def _tensors(given: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor))
