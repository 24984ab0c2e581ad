"""StageBuilder: makes one stage, with values, of a stage without."""

import threading
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipert.checkpoints.initial_values import Initialize, initialize
from pipert.checkpoints.meta_copy import on_meta
from pipert.checkpoints.tensor_source import TensorSource


@dataclass(frozen=True)
class Sources:
    """Where values come from.

    Attributes:
        files: the checkpoint; None: there is none.
        aliases: all names of each parameter that has several.
        seed: of first values.
        init_weights: makes a module's first values.
    """

    files: TensorSource | None
    aliases: Mapping[str, tuple[str, ...]]
    seed: int
    init_weights: Initialize | None

    def name_in_files(self, name: str) -> str | None:
        """The name by which the checkpoint has a tensor; None: it has it by none."""
        if self.files is None:
            return None
        for candidate in (name, *self.aliases.get(name, ())):
            if candidate in self.files.names:
                return candidate
        return None


@dataclass
class _Slot:
    """One parameter or buffer of a stage, by all names and at all places that it has there.

    `given` is that of the stage without values, `meta` its copy, `tensor` the one with values.
    """

    given: Tensor
    meta: Tensor
    names: list[str] = field(default_factory=list)
    places: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    is_saved: bool = False  # by state_dict
    tensor: Tensor = field(init=False)
    is_made_here: bool = False  # not by another stage with the same weight

    def put(self, tensor: Tensor, only: str | None = None) -> None:
        """In all places, or in that of one name."""
        for name, (holder, key) in zip(self.names, self.places, strict=True):
            if only is None or name == only:
                holder[key] = tensor


class StageBuilder:
    """Builds one stage when it is called; builders of one model share the weights that are tied.

    Args:
        stage: the module, or a builder of it, which is called under `torch.device("meta")`.
        device: where to build it.
        dtype: of floating-point parameters and saved buffers; None: the stage's own.
        sources: of values.
        shared: the tied parameters of this process, by their first name and device.
        lock: of `shared`.

    Attributes:
        skeleton: the stage before it has values.
    """

    def __init__(
        self,
        stage: Any,
        device: torch.device,
        dtype: torch.dtype | None,
        sources: Sources,
        shared: MutableMapping[tuple[str, torch.device], nn.Parameter],
        lock: threading.Lock,
    ) -> None:
        self._stage = stage
        self.skeleton = getattr(stage, "skeleton", stage)
        self._device = device
        self._dtype = dtype
        self._sources = sources
        self._shared = shared
        self._lock = lock

    def __call__(self) -> nn.Module:
        """The stage.

        Raises:
            ValueError: its values can't be had; nothing was read then.
        """
        given = self._given()
        stage = on_meta(given)
        slots = _slots(given, stage)
        with self._lock:
            self._check(slots)
            try:
                for slot in slots:
                    self._make(slot)
                self._initialize(stage, slots)
                self._load(slots)
            except BaseException:  # others, or a second try, shall not find what has no values yet
                self._forget(slots)
                raise
        return stage

    def _given(self) -> nn.Module:
        if isinstance(self._stage, nn.Module):
            return self._stage
        with torch.device("meta"):
            built = self._stage()
        if not isinstance(built, nn.Module):
            raise TypeError(f"a builder must build a module, got {type(built).__name__}")
        return built

    def _check(self, slots: list[_Slot]) -> None:
        files = self._sources.files
        for slot in slots:
            name = self._name_in_files(slot)
            if files is not None and name is not None:
                files.check(name, slot.given)

    def _make(self, slot: _Slot) -> None:
        """An empty tensor, or the one that another stage has made."""
        key = (self._names_of(slot)[0], self._device)
        shared = self._shared.get(key)
        slot.tensor = self._empty(slot) if shared is None else shared
        slot.is_made_here = shared is None
        if isinstance(slot.tensor, nn.Parameter) and key[0] in self._sources.aliases:
            self._shared[key] = slot.tensor

    def _forget(self, slots: list[_Slot]) -> None:
        for slot in slots:
            if slot.is_made_here:
                self._shared.pop((self._names_of(slot)[0], self._device), None)

    def _names_of(self, slot: _Slot) -> tuple[str, ...]:
        """All names that it has in the model, its owner's first."""
        return self._sources.aliases.get(slot.names[0], tuple(slot.names))

    def _empty(self, slot: _Slot) -> Tensor:
        dtype = slot.given.dtype
        if self._dtype is not None and slot.is_saved and dtype.is_floating_point:
            dtype = self._dtype
        empty = torch.empty(slot.given.shape, dtype=dtype, device=self._device)
        if isinstance(slot.given, nn.Parameter):
            return nn.Parameter(empty, slot.given.requires_grad)
        return empty

    def _initialize(self, stage: nn.Module, slots: list[_Slot]) -> None:
        """First values for what no source has.

        A tied weight is in the place of its owner alone meanwhile: the others' modules would draw
        it anew.
        """
        unset = []
        for slot in slots:
            slot.put(slot.meta)
            if slot.is_made_here:
                owner = self._names_of(slot)[0]
                name = owner if owner in slot.names else slot.names[0]
                slot.put(slot.tensor, only=name)
                if slot.given.is_meta and self._name_in_files(slot) is None:
                    unset.append((name, slot.tensor))
        initialize(
            stage,
            unset,
            seed=self._sources.seed,
            init_weights=self._sources.init_weights or getattr(stage, "pipert_init_weights", None),
            device=self._device,
        )
        for slot in slots:
            slot.put(slot.tensor)

    def _load(self, slots: list[_Slot]) -> None:
        files = self._sources.files
        for slot in slots:
            if not slot.is_made_here:
                continue
            name = self._name_in_files(slot)
            if files is not None and name is not None:
                files.read_into(name, slot.tensor)
            elif not slot.given.is_meta:
                with torch.no_grad():
                    slot.tensor.copy_(slot.given)
        if files is not None:
            files.close()

    def _name_in_files(self, slot: _Slot) -> str | None:
        return self._sources.name_in_files(slot.names[0]) if slot.is_saved else None


def _slots(given: nn.Module, stage: nn.Module) -> list[_Slot]:
    """The parameters and buffers of `given`, with their places in `stage`, its copy."""
    slots: dict[Tensor, _Slot] = {}
    saved = given.state_dict(keep_vars=True).keys()
    holders = dict(_holders(stage))
    for path, module in _holders(given):
        for kind in ("_parameters", "_buffers"):
            for name, tensor in getattr(module, kind).items():
                if tensor is None:
                    continue
                holder = getattr(holders[path], kind)
                slot = slots.setdefault(tensor, _Slot(tensor, holder[name]))
                slot.names.append(f"{path}{name}")
                slot.places.append((holder, name))
                slot.is_saved = slot.is_saved or f"{path}{name}" in saved
    return list(slots.values())


def _holders(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by path, those that are at several places at each."""
    for path, inner in module.named_modules(remove_duplicate=False):
        yield f"{path}." if path else "", inner
