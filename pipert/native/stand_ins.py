"""Tensors of a trace in the places where modules have their own."""

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipert.native.attributes import INHERITED, MAX_DEPTH
from pipert.native.modules import modules_of


class StandIns:
    """For what torch.export leaves as it is: tensors that are attributes, or in attributes.

    As they are, a number that the forward makes of one would be a constant of the graph.

    Args:
        call: the module or function that is exported.

    Attributes:
        places: by the name of a buffer, which torch.export traces: the dict that has the attribute,
            and its name.
    """

    def __init__(self, call: Any) -> None:
        self._modules = modules_of(call)
        places = [
            (module.__dict__, name)
            for module in self._modules
            for name, value in module.__dict__.items()
            if type(value) is Tensor and value.layout is torch.strided and not value.requires_grad
        ]
        self.places: dict[str, tuple[dict[str, Any], str]] = {
            f"attribute_{index}": place for index, place in enumerate(places)
        }
        self._names: dict[int, str] = {}

    def register(self, traced: nn.Module) -> None:
        """Gives `traced`, which is to be exported, the buffers; it has all parameters already."""
        for name, (attributes, attribute) in self.places.items():
            traced.register_buffer(name, attributes[attribute])
        self._names = {id(tensor): name for name, tensor in _named_tensors(traced).items()}

    @property
    def own(self) -> Mapping[int, str]:
        """Ids of all parameters and buffers of the module that was registered."""
        return self._names

    @contextlib.contextmanager
    def put(self, traced: nn.Module) -> Iterator[None]:
        """While it lasts, the trace's parameters and buffers are also where the real ones were."""
        now = _named_tensors(traced)
        tensors = {real: now[name] for real, name in self._names.items()}
        with contextlib.ExitStack() as undo:
            for module in self._modules:
                attributes = module.__dict__
                for name, value in list(attributes.items()):
                    new = value if name in INHERITED else _replaced(value, tensors, MAX_DEPTH)
                    if new is not value:
                        undo.callback(attributes.__setitem__, name, value)
                        attributes[name] = new
            yield


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _replaced(value: Any, tensors: Mapping[int, Tensor], depth: int) -> Any:
    """The same object, if no tensor in it is replaced."""
    kind = type(value)
    if isinstance(value, Tensor):
        return tensors.get(id(value), value)
    if not depth or kind not in (list, tuple, dict, deque):
        return value
    elements = list(value.values()) if kind is dict else list(value)
    new = [_replaced(element, tensors, depth - 1) for element in elements]
    if all(a is b for a, b in zip(new, elements, strict=True)):
        return value
    if kind is dict:
        return dict(zip(value, new, strict=True))
    return deque(new, value.maxlen) if kind is deque else kind(new)
