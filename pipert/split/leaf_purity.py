"""Whether a leaf can be called again by other stages, found out by running it on fakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn

from pipert.split.hooks import has_hooks
from pipert.split.leaf_call import LeafCall
from pipert.split.purity import Purity


def run_watched(
    call: LeafCall, run: Callable[..., Any], args: Any, kwargs: Any, tensors: Sequence[Tensor]
) -> Any:
    """Runs a leaf, and notes in `call` which tensors it reads, and whether it is pure.

    Modules with parameters or hooks aren't, nor are those that draw random numbers or write to
    buffers or attributes, in the mode that they are in or in the other one.

    Args:
        call: the leaf's.
        run: what to run.
        args: for it.
        kwargs: for it.
        tensors: those in `args` and `kwargs`.
    """
    modules = list(call.target.modules()) if call.is_module else []
    if _may_not_be_pure(call, modules):
        return run(*args, **kwargs)
    buffers = [buffer for module in modules for buffer in module.buffers(recurse=False)]
    before = _attributes(modules)
    with Purity(tensors, buffers) as watch:
        result = run(*args, **kwargs)
    is_pure = watch.is_pure and (
        not modules or _runs_in_the_other_mode(modules, watch, args, kwargs)
    )
    call.is_pure = is_pure and watch.is_pure and _attributes(modules) == before
    call.reads = frozenset(i for i, tensor in enumerate(tensors) if watch.reads(tensor))
    return result


def _may_not_be_pure(call: LeafCall, modules: Sequence[nn.Module]) -> bool:
    if not call.is_module:
        others = [*pytree.tree_leaves(call.inputs.leaves), getattr(call.target, "__self__", None)]
        return any(isinstance(value, nn.Module) for value in others)
    return any(has_hooks(module) or module._parameters for module in modules)


def _runs_in_the_other_mode(
    modules: Sequence[nn.Module], watch: Purity, args: Any, kwargs: Any
) -> bool:
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = not module.training
        with watch:
            modules[0].forward(*args, **kwargs)
    except Exception:
        return False
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
    return True


def _attributes(modules: Sequence[nn.Module]) -> list[dict[str, int]]:
    """Which objects the modules have, by name."""
    return [
        {name: id(value) for name, value in {**vars(module), **module._buffers}.items()}
        for module in modules
    ]
