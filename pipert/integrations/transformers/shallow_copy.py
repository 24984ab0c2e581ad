"""ShallowCopy: a module whose children can be exchanged while everything else is shared."""

import copy

from torch import nn


class ShallowCopy:
    """A copy of a module that shares its children, parameters and buffers.

    Attributes:
        module: the copy.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = _copied(module)
        self._copies = {"": self.module}

    def at(self, path: str) -> nn.Module:
        """The submodule at `path`, copied likewise, as everything on the way to it."""
        if path not in self._copies:
            parent, _, name = path.rpartition(".")
            holder = self.at(parent)
            self._copies[path] = _copied(holder.get_submodule(name))
            holder._modules[name] = self._copies[path]
        return self._copies[path]

    def get(self, path: str) -> nn.Module | None:
        """What is at `path`, not copied; None: there is nothing."""
        parent, _, name = path.rpartition(".")
        return self.at(parent)._modules.get(name)

    def put(self, path: str, module: nn.Module) -> None:
        """Exchanges what is at `path`."""
        parent, _, name = path.rpartition(".")
        self.at(parent)._modules[name] = module


def _copied(module: nn.Module) -> nn.Module:
    copied = copy.copy(module)
    copied._modules = module._modules.copy()
    # Tables that the module itself has: each stage may be on another device.
    copied._buffers = {
        name: None if buffer is None else buffer.clone() for name, buffer in module._buffers.items()
    }
    copied._forward_pre_hooks = module._forward_pre_hooks.copy()
    copied._forward_pre_hooks_with_kwargs = module._forward_pre_hooks_with_kwargs.copy()
    return copied
