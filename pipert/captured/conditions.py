"""Conditions: what recordings are made under, and what a recorded forward may not change."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipert import _C
from pipert.captured.batch import NotRecordableError


class Conditions:
    """Weights, buffers and gradients of some modules, where they lie, and modes.

    Args:
        called: what passes call; those that are no modules have nothing of the kind.
        device: of the ranks.
        main_gradients: gives the sums that gradients are added to, if the pipeline has them.
    """

    def __init__(
        self,
        called: Iterable[Any],
        device: torch.device,
        main_gradients: Callable[[], Sequence[Tensor]],
    ) -> None:
        self._modules = [module for module in called if isinstance(module, nn.Module)]
        self._device = device
        self._main_gradients = main_gradients
        # None: of no pass yet. It holds modules where Python's collector can't see it.
        self._native: _C.PassConditions | None = None
        self._dicts: list[dict[str, Any]] = []
        self._odd: str | None = None

    def forget(self) -> None:
        """Looks for the tensors anew at the next pass, and holds none until then."""
        self._native = None
        self._dicts = []

    def _watch(self) -> _C.PassConditions:
        parts = list(dict.fromkeys(part for module in self._modules for part in module.modules()))
        self._dicts = [
            tensors for part in parts for tensors in (part._parameters, part._buffers) if tensors
        ]
        held = [tensor for tensors in self._dicts for tensor in tensors.values()]
        plain = (type(None), Tensor, nn.Parameter)
        self._odd = next((type(t).__name__ for t in held if type(t) not in plain), None)
        attributes = [part.__dict__ for part in parts]
        return _C.PassConditions(self._dicts, attributes, self._main_gradients(), self._device)

    def state(self) -> int:
        """A number that differs where any of the conditions does.

        Raises:
            NotRecordableError: nothing can be recorded with such weights.
        """
        state = None if self._native is None else self._native.state()
        if state is None:  # the first pass, or another tensor stands in the place of one
            self._native = self._watch()
            state = self._native.state()
            assert state is not None
        if self._odd is not None:
            raise NotRecordableError(f"a weight or buffer is a {self._odd}")
        return state

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors. REQUIRES `state` before."""
        assert self._native is not None
        return self._native.leaves

    def replaced(self) -> str | None:
        """The name of a tensor that has come since `state`; None: there is none."""
        assert self._native is not None
        if self._native.state() is not None:
            return None
        known = {id(tensor) for tensor in self._native.leaves}
        named = (entry for tensors in self._dicts for entry in tensors.items())
        return next((n for n, t in named if t is not None and id(t) not in known), "a tensor")

    def snapshot(self) -> "Snapshot":
        """What is there now, to compare with or to put back. REQUIRES `state` before."""
        assert self._native is not None
        return Snapshot(self._native, self._dicts)


class Snapshot:
    """Gradients, and what stands in modules, before a pass is recorded.

    Attributes:
        conditions: for C++. They may be forgotten while the pass runs.
    """

    def __init__(self, conditions: _C.PassConditions, dicts: Sequence[dict[str, Any]]) -> None:
        self.conditions = conditions
        self._gradients = conditions.gradients()
        self._dicts = dicts
        self._held = [dict(tensors) for tensors in dicts]

    def require_same_tensors(self) -> None:
        """Gradients may be others now.

        Raises:
            NotRecordableError: another tensor stands in the place of a weight or a buffer.
        """
        for tensors, before in zip(self._dicts, self._held, strict=True):
            for name, tensor in tensors.items():
                if name not in before or tensor is not before[name]:
                    raise NotRecordableError(replacement(name))

    def put_back(self) -> None:
        """Nothing of what stands there now has been computed, or ever will be."""
        self.conditions.set_gradients(self._gradients)
        for tensors, before in zip(self._dicts, self._held, strict=True):
            tensors.clear()
            tensors.update(before)


def replacement(name: str) -> str:
    """What is wrong with a forward that puts another tensor in the place of that one."""
    return f"a forward puts another tensor in the place of {name!r}: expected changes in place"
