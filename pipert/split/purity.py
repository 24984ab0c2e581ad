"""Purity: whether what runs can be run again elsewhere, at little cost and with the same result."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipert.split.sizes import hint_of

MODES = {"train", "training"}  # the names that operators have for it
_NAMESPACES = ("aten", "prim", "prims")
_SIZES_ALONE = (
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"),
    *("zeros_like", "ones_like", "full_like", "empty_like"),
    *("sym_size", "sym_numel", "sym_stride", "sym_storage_offset", "device"),
)


class Purity(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the operators that run, on fakes.

    They can be run again if they draw no random numbers, write to nothing but what they made, read
    nothing but what they are allowed to, and are cheap. An operator is cheap if its work grows with
    what it reads and writes: one of torch's own with no more than two operations, as torch's
    FlopCounterMode counts them, for an element of its result. So products of matrices that add
    nothing up, as in rotary tables, are cheap, and all others are not.

    Args:
        given: what they run on.
        owned: more that they may read.

    Attributes:
        is_pure: whether they can be run again.
    """

    def __init__(self, given: Iterable[Tensor], owned: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_pure = True
        self._read: set[int] = set()
        self._known = {id(tensor): tensor for tensor in (*given, *owned)}
        self._made: dict[int, Tensor] = {}

    def reads(self, tensor: Tensor) -> bool:
        """Whether its values were read, not its sizes, type and device alone."""
        return id(tensor) in self._read

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._note(func, args, kwargs, result)
        return result

    def _note(self, func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        taken = _tensors((args, kwargs))
        if not reads_sizes_alone(func):
            self._read.update(map(id, taken))
        is_literal = func.overloadpacket is torch.ops.aten.lift_fresh
        is_known = is_literal or all(id(x) in self._known or id(x) in self._made for x in taken)
        changes = func._schema.is_mutable and any(
            id(x) not in self._made for x in written_to(func, args, kwargs)
        )
        if not is_known or changes or is_random(func) or not is_cheap(func, args, kwargs, result):
            self.is_pure = False
        shows = any(entry.alias_info is not None for entry in func._schema.returns)
        if not shows or is_literal or all(id(x) in self._made for x in taken):
            self._made.update((id(x), x) for x in _tensors(result))
        else:
            self._known.update((id(x), x) for x in _tensors(result))


def reads_sizes_alone(func: Any) -> bool:
    """Whether an operator only asks for the sizes, type and device of the tensor it takes first."""
    return _name(func) in _SIZES_ALONE


def is_random(func: Any) -> bool:
    """Whether an operator draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())


def has_mode(func: Any) -> bool:
    """Whether what an operator does depends on the mode of a module, training or not."""
    return bool({a.name for a in func._schema.arguments} & MODES)


def is_cheap(func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> bool:
    """Whether its work grows with what it reads and writes alone; see Purity."""
    if getattr(func, "namespace", None) not in _NAMESPACES:
        return False
    count = _counts().get(func.overloadpacket)
    if count is None:
        return True
    operations = hint_of(count(*args, **kwargs, out_val=result))
    elements = sum(hint_of(tensor.numel()) or 0 for tensor in _tensors(result))
    return operations is not None and operations <= 2 * elements


def written_to(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that an operator changes."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += _tensors(value)
    return found


@functools.cache
def _counts() -> Mapping[Any, Any]:
    from torch.utils.flop_counter import flop_registry

    return flop_registry


def _name(func: Any) -> str:
    packet = getattr(func, "overloadpacket", None)
    return getattr(packet, "__name__", "") if getattr(func, "namespace", "") in _NAMESPACES else ""


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
