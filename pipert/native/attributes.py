"""Attributes: what a graph takes for granted of its modules' attributes."""

from collections import deque
from collections.abc import Iterator, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

TABLES = ("_modules", "_parameters", "_buffers")
# What every module has: hooks and modes are looked at elsewhere, parameters in each pass.
_FIRST = list(vars(nn.Module()))
INHERITED = frozenset(_FIRST)
# What nn.LSTM and its like keep of their parameters.
RNN_CACHES = frozenset(("_flat_weights", "_flat_weight_refs"))

# What is looked into.
CONTAINERS = (list, tuple, dict, set, frozenset, deque)
MAX_DEPTH = 3
_MAX_LENGTH = 1000  # of a container, or an object, in each pass
_OF_FIELDS = 1  # depth within an object's fields: it may know everything that there is
_OPAQUE = (nn.Module, ModuleType, FunctionType, MethodType, type, Tensor)

_BY_VALUE = frozenset((bool, int, str, bytes, type(None)))
_BY_TEXT = frozenset((float, complex))  # nan is equal to itself, -0.0 not to 0.0


class Attributes:
    """Of modules, at one moment. Two are equal if a forward reads the same from both.

    Numbers, strings and containers of them count by their values, and so do an object's fields;
    everything else by what it is. Of a function, the variables of its closure count. Of tensors
    count type, dtype, shape and so on, and which of them are one. The tensors themselves don't:
    those that a graph reads are looked up before each pass.

    Args:
        call: the module or function that they belong to.
        modules: its modules.
    """

    def __init__(self, call: Any, modules: Sequence[nn.Module]) -> None:
        self._alive: list[Any] = []  # so that no other object gets the id
        self._tensors = [id(None)]  # ids of all tensors, and of None where one may be
        values = [self._of_module(module) for module in modules]
        owner = call.__self__ if isinstance(call, MethodType) else call
        if not isinstance(owner, nn.Module):
            values.append(self._of_owner(owner))
        self._values = tuple(values)
        self._one = _first_positions(self._tensors)
        self._tensors.clear()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Attributes)
            and self._values == other._values
            and self._one == other._one
        )

    def __hash__(self) -> int:
        return hash((self._values, self._one))

    def difference(self, other: "Attributes") -> str:
        """The names of attributes that differ, if the modules are the same."""
        names = {
            name: None
            for ours, theirs in zip(self._values, other._values, strict=False)
            for name in _differing(dict(ours[0]), dict(theirs[0]))
        }
        return ", ".join(names)

    def _of_module(self, module: nn.Module) -> tuple[Any, ...]:
        kind = type(module)
        attributes = module.__dict__
        names = [*attributes]
        if names[: len(_FIRST)] == _FIRST:  # nearly always
            names = names[len(_FIRST) :]
        else:
            names = [name for name in names if name not in INHERITED]
        if issubclass(kind, nn.RNNBase):
            names = [name for name in names if name not in RNN_CACHES]
        parameters, buffers = attributes["_parameters"], attributes["_buffers"]
        if parameters:
            self._tensors += map(id, parameters.values())
        if buffers:
            self._tensors += map(id, buffers.values())
        return (
            tuple([(name, self._value(attributes[name], MAX_DEPTH)) for name in names]),
            kind,
            kind.forward,
            tuple(attributes["_modules"].items()),
            tuple(parameters),
            tuple(buffers),
        )

    def _of_owner(self, owner: Any) -> tuple[Any, ...]:
        if isinstance(owner, FunctionType):
            return (tuple(self._of_closure(owner)),)
        if isinstance(owner, type) or not hasattr(owner, "__dict__"):
            return ((),)
        values = owner.__dict__.items()
        return (tuple((name, self._value(value, MAX_DEPTH)) for name, value in values),)

    def _of_closure(self, function: FunctionType) -> Iterator[tuple[str, Any]]:
        cells = function.__closure__ or ()
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # it isn't set yet
                continue
            if isinstance(value, CONTAINERS):  # where functions log what they have seen
                self._alive.append(value)
                yield name, id(value)
            else:
                yield name, self._value(value, _OF_FIELDS)

    def _value(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _BY_VALUE:  # with the type: 1 == 1.0 == True
            return kind, value
        if kind in _BY_TEXT:
            return kind, repr(value)
        if kind is Tensor or kind is nn.Parameter:
            self._tensors.append(id(value))
            return _facts_of(value)
        if isinstance(value, CONTAINERS):
            if depth and len(value) <= _MAX_LENGTH:
                return kind, self._elements(value, depth - 1)
            self._alive.append(value)
            return id(value), len(value)
        self._alive.append(value)
        fields = getattr(value, "__dict__", None)
        if type(fields) is not dict or isinstance(value, _OPAQUE):
            return id(value)
        if not depth or len(fields) > _MAX_LENGTH:
            return id(value)
        return id(value), self._elements(fields, min(depth - 1, _OF_FIELDS))

    def _elements(self, values: Any, depth: int) -> Any:
        if isinstance(values, dict):
            return tuple(
                (self._value(key, depth), self._value(value, depth))
                for key, value in values.items()
            )
        elements = [self._value(value, depth) for value in values]
        return frozenset(elements) if isinstance(values, (set, frozenset)) else tuple(elements)


def _facts_of(tensor: Tensor) -> tuple[Any, ...]:
    """What Python may read of it, values aside."""
    has_strides = tensor.layout is torch.strided
    return (
        type(tensor),
        tensor.dtype,
        tensor.device,
        tensor.layout,
        tensor.shape,
        tensor.stride() if has_strides else None,
        tensor.requires_grad,
    )


def _first_positions(ids: Sequence[int]) -> tuple[int, ...]:
    """For each, a number that it shares with the same ones; empty if all differ."""
    if len(set(ids)) == len(ids):
        return ()
    numbers: dict[int, int] = {}
    return tuple([numbers.setdefault(value, len(numbers)) for value in ids])


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    for name in ours | theirs:
        if name not in ours or name not in theirs or ours[name] != theirs[name]:
            yield name
