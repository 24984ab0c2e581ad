"""Attributes: what a graph takes for granted of its modules' attributes."""

from collections.abc import Iterator, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

# What every module has: hooks and modes are looked at elsewhere, parameters in each pass.
INHERITED = frozenset(vars(nn.Module()))
# What nn.LSTM and its like keep of their parameters.
RNN_CACHES = frozenset(("_flat_weights", "_flat_weight_refs"))
_RNN_INHERITED = INHERITED | RNN_CACHES

_BY_VALUE = frozenset((bool, int, str, bytes, complex, type(None)))
_CONTAINERS = (list, tuple, dict, set, frozenset)
_MAX_DEPTH = 3
_MAX_LENGTH = 1000  # of a container, or an object, that is looked into in each pass
_OF_FIELDS = 1  # depth within an object's fields: it may know everything that there is
_OPAQUE = (nn.Module, ModuleType, FunctionType, MethodType, type)


class Attributes:
    """Of modules, at one moment. Two are equal if a forward reads the same from both.

    Numbers, strings and containers of them count by their values, and so do an object's fields;
    everything else by what it is. Of a function, the variables of its closure count.
    Tensors don't count: those that a graph reads are looked up before each pass.

    Args:
        call: the module or function that they belong to.
        modules: its modules.
    """

    def __init__(self, call: Any, modules: Sequence[nn.Module]) -> None:
        self._alive: list[Any] = []  # so that no other object gets the id
        values = [self._of_module(module) for module in modules]
        if not isinstance(call, nn.Module):
            values.append(self._of_owner(call.__self__ if isinstance(call, MethodType) else call))
        self._values = tuple(values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attributes) and self._values == other._values

    def __hash__(self) -> int:
        return hash(self._values)

    def difference(self, other: "Attributes") -> str:
        """The names of attributes that differ, if the modules are the same."""
        names = {
            name: None
            for ours, theirs in zip(self._values, other._values, strict=False)
            for name in _differing(dict(ours[0]), dict(theirs[0]))
        }
        return ", ".join(names)

    def _of_module(self, module: nn.Module) -> tuple[Any, ...]:
        inherited = _RNN_INHERITED if isinstance(module, nn.RNNBase) else INHERITED
        kind = type(module)
        return (
            tuple(
                (name, self._value(value, _MAX_DEPTH))
                for name, value in module.__dict__.items()
                if name not in inherited
            ),
            kind,
            kind.forward,
            tuple(module._modules.items()),
            tuple(name for name, value in module._parameters.items() if value is not None),
            tuple(name for name, value in module._buffers.items() if value is not None),
        )

    def _of_owner(self, owner: Any) -> tuple[Any, ...]:
        if isinstance(owner, FunctionType):
            return (tuple(self._of_closure(owner)),)
        if isinstance(owner, type) or not hasattr(owner, "__dict__"):
            return ((),)
        values = owner.__dict__.items()
        return (tuple((name, self._value(value, _MAX_DEPTH)) for name, value in values),)

    def _of_closure(self, function: FunctionType) -> Iterator[tuple[str, Any]]:
        cells = function.__closure__ or ()
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # it isn't set yet
                continue
            if isinstance(value, _CONTAINERS):  # where functions log what they have seen
                self._alive.append(value)
                yield name, id(value)
            else:
                yield name, self._value(value, _OF_FIELDS)

    def _value(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _BY_VALUE:  # with the type: 1 == 1.0 == True
            return kind, value
        if kind is float:
            return kind, repr(value)  # nan is equal to itself, -0.0 not to 0.0
        if isinstance(value, Tensor):
            return Tensor
        if isinstance(value, _CONTAINERS):
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


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    for name in ours | theirs:
        if name not in ours or name not in theirs or ours[name] != theirs[name]:
            yield name
