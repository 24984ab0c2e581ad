"""StageModule: what a traced stage becomes, with the model's own modules at their paths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn


class TracedStage(fx.GraphModule):
    """A stage that knows which layers it calls, so that each draws its own random numbers."""

    def pipert_layers(self) -> list[nn.Module]:
        """The modules that it calls, in order; itself if there are none."""
        return [self.get_submodule(path) for path in self.meta["layers"]] or [self]


class StageModule:
    """Builds an fx.GraphModule that shares modules, parameters and buffers of a model.

    Args:
        model: the unpartitioned one.

    Attributes:
        module: the stage; its graph is set at the end.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._constants: dict[int, str] = {}
        self.module = TracedStage(nn.Module(), fx.Graph(), type(model).__name__)
        self.module.training = model.training
        self.module.meta["not_saved"] = []
        self.module.meta["layers"] = []
        self.module._register_deepcopy_hook(_restore_not_saved)

    def place_module(self, path: str) -> None:
        """Puts one of the model's modules at its path."""
        parent, _, name = path.rpartition(".")
        module = self._model.get_submodule(path)
        holder = self.container(parent)
        if getattr(holder, name, None) is not module:
            holder.add_module(name, module)

    def place_state(self, path: str) -> None:
        """Puts one of the model's parameters or buffers at its path."""
        parent, _, name = path.rpartition(".")
        holder = self.container(parent)
        if hasattr(holder, name):
            return
        owner = self._model.get_submodule(parent)
        state = getattr(owner, name)
        if isinstance(state, nn.Parameter):
            holder.register_parameter(name, state)
        else:
            is_saved = name not in owner._non_persistent_buffers_set
            holder.register_buffer(name, state, persistent=is_saved)
            if not is_saved:
                self.module.meta["not_saved"].append(path)

    def container(self, path: str) -> nn.Module:
        """What stands for a module that the trace has looked into, and holds what is placed."""
        holder: nn.Module = self.module
        original = self._model
        for name in filter(None, path.split(".")):
            original = getattr(original, name)
            if not hasattr(holder, name):
                holder.add_module(name, nn.Module())
                getattr(holder, name).training = original.training
            holder = getattr(holder, name)
        return holder

    def place_constant(self, value: Any, name: str) -> str:
        """Keeps an object that has no place in code; its attribute's name."""
        if id(value) not in self._constants:
            attribute = self._free_name(name)
            if isinstance(value, Tensor):
                self.module.register_buffer(attribute, value, persistent=False)
                self.module.meta["not_saved"].append(attribute)
            else:
                setattr(self.module, attribute, value)
            self._constants[id(value)] = attribute
        return self._constants[id(value)]

    def place_region(self, body: fx.GraphModule) -> str:
        """Keeps the body of a region; its attribute's name."""
        attribute = self._free_name("region")
        self.module.add_module(attribute, body)
        return attribute

    def depth_of(self, path: str) -> int:
        """How many of the modules on the way to something are here."""
        holder: Any = self.module
        for depth, name in enumerate(path.split(".")):
            holder = getattr(holder, name, None)
            if holder is None:
                return depth
        return depth + 1

    def arrange(self) -> None:
        """Brings what was placed into the order that it has in the model."""
        _arrange(self.module, self._model)

    def _free_name(self, name: str) -> str:
        taken = set(vars(self.module)) | set(dir(self._model))
        taken |= set(self.module._modules) | set(self.module._buffers)
        number = 0
        while f"{name}_{number}" in taken:
            number += 1
        return f"{name}_{number}"


def _arrange(holder: nn.Module, original: nn.Module) -> None:
    if holder is original:
        return
    for kind in ("_modules", "_parameters", "_buffers"):
        own = getattr(holder, kind)
        order = [name for name in getattr(original, kind) if name in own]
        order += [name for name in own if name not in order]
        entries = {name: own[name] for name in order}
        own.clear()
        own.update(entries)
    for name, child in holder._modules.items():
        if child is not None and (inner := original._modules.get(name)) is not None:
            _arrange(child, inner)


def _restore_not_saved(copy: fx.GraphModule) -> None:
    """torch.fx's copies would save buffers that aren't to be saved."""
    for path in copy.meta["not_saved"]:
        parent, _, name = path.rpartition(".")
        copy.get_submodule(parent)._non_persistent_buffers_set.add(name)


def device_of(model: nn.Module, tensors: list[Tensor]) -> torch.device | None:
    """The one device of a model and its example; None: it has several, or none."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers(), *tensors)}
    return devices.pop() if len(devices) == 1 else None
