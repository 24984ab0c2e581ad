"""Example: the arguments of one forward, taken apart into what may change and what may not."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.utils._pytree as pytree
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Argument:
    """A leaf of forward's arguments.

    Attributes:
        name: of forward's parameter.
        path: of pytree's keys, from the argument to the leaf.
        value: in the example; of a leaf that may change, what the trace has for it.
    """

    name: str
    path: tuple[Any, ...]
    value: Any

    def __str__(self) -> str:
        return self.name + pytree.keystr(self.path)


class Example:
    """The arguments that a model is traced with.

    Args:
        model: the unpartitioned one. If it is on the meta device, so are its arguments here.
        args: positional arguments of one forward.
        kwargs: its keyword arguments.
        inside: names of those of them that stay as they are, and that no batch has.

    Attributes:
        positional: the names of forward's positional arguments, in order, one for each entry of
            `*args` too.
        free: the tensors and integers, in the order of their leaves. A tensor that was given twice
            is two, since it need not be the same one later.

    Raises:
        TypeError: the arguments don't fit forward.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        inside: Iterable[str] = (),
    ) -> None:
        self.positional = _positional(model, args, kwargs)
        self._left_out = _left_out(model, args, kwargs)
        keyed, self._spec = pytree.tree_flatten_with_path((args, dict(kwargs)))
        self._leaves = [
            Argument(self._name_of(path), tuple(path[2:]), value) for path, value in keyed
        ]
        self._inside = set(inside)
        self._is_free = [self._may_change(leaf) for leaf in self._leaves]
        self.free = _apart(_on_device_of(model, self.choose(self._leaves)))

    @property
    def left_out(self) -> dict[str, Any]:
        """Arguments of forward that the example leaves to their defaults, which the trace has."""
        return self._left_out

    @property
    def constants(self) -> list[Argument]:
        """The leaves that may not change: the trace has them inside."""
        free = self._is_free
        fixed = [leaf for leaf, is_free in zip(self._leaves, free, strict=True) if not is_free]
        return [leaf for leaf in fixed if leaf.name not in self._inside]

    def choose(self, leaves: Sequence[Argument]) -> list[Any]:
        """The values of those that may change."""
        return [leaf.value for leaf, free in zip(leaves, self._is_free, strict=True) if free]

    def rebuilt(self, free: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) with others in place of `self.free`."""
        rest = iter(free)
        leaves = [
            next(rest) if is_free else leaf.value
            for leaf, is_free in zip(self._leaves, self._is_free, strict=True)
        ]
        made: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(leaves, self._spec)
        return made

    def named(self, free: Sequence[T]) -> list[tuple[T, Argument]]:
        """What stands for each entry of `self.free`, with the argument that it is."""
        own = [leaf for leaf, is_free in zip(self._leaves, self._is_free, strict=True) if is_free]
        return list(zip(free, own, strict=True))

    def _may_change(self, leaf: Argument) -> bool:
        if hides_tensors(leaf.value):
            raise TypeError(
                f"{leaf} must be of a type that torch.utils._pytree knows, such as a dict; got a "
                f"{type(leaf.value).__name__} with tensors in it"
            )
        may = isinstance(leaf.value, Tensor) or type(leaf.value) is int
        return may and leaf.name not in self._inside

    def _name_of(self, path: tuple[Any, ...]) -> str:
        kind, key = path[:2]
        return self.positional[key.idx] if kind.idx == 0 else str(key.key)


def hides_tensors(value: Any) -> bool:
    """Whether it has tensors in its attributes, where pytree doesn't find them."""
    if isinstance(value, Tensor | nn.Module | type):
        return False
    if dataclasses.is_dataclass(value):
        inside = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    else:
        inside = list(getattr(value, "__dict__", {}).values())
    return any(isinstance(leaf, Tensor) for entry in inside for leaf in pytree.tree_leaves(entry))


def _positional(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[str, ...]:
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"example_args and example_kwargs must fit {type(model).__name__}.forward{signature}: "
            f"{error}"
        ) from None
    names: list[str] = []
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(name)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{name}_{i}" for i in range(len(args) - len(names))]
    return tuple(names)


def _left_out(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(model.forward)
    given = signature.bind(*args, **kwargs).arguments
    return {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in given and parameter.default is not inspect.Parameter.empty
    }


def _on_device_of(model: nn.Module, leaves: list[Any]) -> list[Any]:
    if not is_on_meta(model):
        return leaves
    return [leaf.detach().to("meta") if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def is_on_meta(model: nn.Module) -> bool:
    """Whether all of its state is on the meta device."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return {tensor.is_meta for tensor in tensors} == {True}


def _apart(leaves: list[Any]) -> tuple[Any, ...]:
    seen: set[int] = set()
    made = []
    for leaf in leaves:
        made.append(
            leaf.detach().clone() if id(leaf) in seen and isinstance(leaf, Tensor) else leaf
        )
        seen.add(id(leaf))
    return tuple(made)
