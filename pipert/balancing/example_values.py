"""What layers are run on to see what they take: values like those of a run, and of none."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


def state_of(layer: Callable[..., Any]) -> list[Tensor]:
    """Its parameters and buffers."""
    return [*layer.parameters(), *layer.buffers()] if isinstance(layer, nn.Module) else []


def is_on_meta(given: Any) -> bool:
    """Whether any tensor in it, or any module's state in it, is on the meta device."""
    return any(
        tensor.is_meta
        for leaf in tree_leaves(given)
        for tensor in ([leaf] if isinstance(leaf, Tensor) else state_of(leaf))
    )


def cut_off(given: Any) -> Any:
    """The same values as leaves of no graph, that require a gradient where they did."""
    leaves, structure = tree_flatten(given)
    cut = [
        leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf
        for leaf in leaves
    ]
    return tree_unflatten(cut, structure)


def copies(given: Any) -> Any:
    """The same values in memory of their own, parts of the graphs that they are of."""
    leaves, structure = tree_flatten(given)
    copied = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return tree_unflatten(copied, structure)


def to_meta(given: Any) -> Any:
    """The same structure, its tensors on the meta device."""
    leaves, structure = tree_flatten(given)
    moved = [
        leaf
        if not isinstance(leaf, Tensor)
        else leaf.detach().requires_grad_(leaf.requires_grad)
        if leaf.is_meta
        else torch.empty_like(leaf, device="meta", requires_grad=leaf.requires_grad)
        for leaf in leaves
    ]
    return tree_unflatten(moved, structure)


@contextmanager
def left_as_it_was(layer: Callable[..., Any], given: Any) -> Iterator[None]:
    """Puts random generators, of the devices of layer and arguments, and its buffers back."""
    state = state_of(layer)
    tensors = [*state, *(t for t in tree_leaves(given) if isinstance(t, Tensor))]
    devices = sorted({t.device.index or 0 for t in tensors if t.is_cuda})
    buffers = [t for t in state if not isinstance(t, nn.Parameter) and not t.is_meta]
    before = [(buffer, buffer.clone()) for buffer in buffers]
    fork: AbstractContextManager[None] = torch.random.fork_rng(devices)
    with fork:
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, values in before:
                    buffer.copy_(values)
