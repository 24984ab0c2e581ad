"""LayerMarks: where, in a graph, layers are entered whose draws are their own."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.fx.node import has_side_effect

from pipert import _C
from pipert.native.modules import modules_of
from pipert.native.state import layer_hooks

# Stands in a graph for a hook. Nobody runs it: C++ has an instruction of its own.
_library = torch.library.Library("pipert", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("enter_layer(int index) -> ()")  # type: ignore[no-untyped-call]
_library.impl(  # type: ignore[no-untyped-call]
    "enter_layer", lambda _: None, "CompositeExplicitAutograd"
)
MARK = torch.ops.pipert.enter_layer.default
has_side_effect(MARK)


class LayerMarks:
    """What the hooks of layers leave in a graph that is traced.

    Attributes:
        hooks: those of the last call; a node with the target MARK has an index of them.
    """

    def __init__(self) -> None:
        self.hooks: list[_C.LayerHook] = []

    @contextlib.contextmanager
    def in_place_of_hooks(self, call: Any) -> Iterator[None]:
        """While it lasts, a call makes a mark where its hooks were called."""
        self.hooks.clear()
        hooked = [m._forward_pre_hooks for m in modules_of(call) if layer_hooks(m)]
        before = [dict(hooks) for hooks in hooked]
        try:
            for hooks in hooked:
                for key, hook in hooks.items():
                    hooks[key] = partial(self._mark, hook)
            yield
        finally:
            for hooks, old in zip(hooked, before, strict=True):
                hooks.update(old)

    def _mark(self, hook: Any, _module: Any, _args: Any) -> None:
        self.hooks.append(hook)
        MARK(len(self.hooks) - 1)
