"""What an export takes for granted of a callable and of the calling thread."""

import contextlib
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pipert import _C
from pipert.native.attributes import Attributes
from pipert.native.modules import modules_of
from pipert.signatures import parameter_names

_GLOBAL_HOOKS = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
_CONTEXT = {"is_first_microbatch", "is_last_microbatch", "microbatch_index"}
_known_contexts: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()
_ScriptModule = torch.jit.ScriptModule
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule")


def state_of(call: Callable[..., Any]) -> Hashable:
    """What graphs of `call` depend on, beside the input; a str says why it can have none.

    Two equal states stand for the same modules with the same attributes in the same modes, on a
    thread in the same modes.
    """
    if any(getattr(global_hooks, name, None) for name in _GLOBAL_HOOKS):
        return "there are hooks on all modules"
    if _get_current_dispatch_mode() is not None:
        return "a dispatch mode is active"
    for mode in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
        if type(mode) is not DeviceContext:
            return f"the function mode {type(mode).__name__} is active"
    if names := _context_names(call):
        return f"its forward takes {names}"
    modules = modules_of(call)
    for module in modules:
        if reason := _reason_against(module):
            return reason
    return (
        modules,  # equal if they are the same
        tuple(layer_hooks(module) for module in modules),
        tuple(module.training for module in modules),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        autocast_state(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        Attributes(call, modules),
    )


def difference(state: Any, other: Any) -> str:
    """The names of attributes that differ between two states; empty: something else does."""
    found: str = state[-1].difference(other[-1])
    return found


def _context_names(call: Any) -> str:
    """Those parameters that differ from call to call; found once for each function."""
    forward = call.forward if isinstance(call, nn.Module) else call
    function = getattr(forward, "__func__", forward)
    try:
        return _known_contexts[function]
    except (KeyError, TypeError):
        names = ", ".join(sorted(_CONTEXT & set(parameter_names(call))))
    with contextlib.suppress(TypeError):  # not everything that can be called can be a key
        _known_contexts[function] = names
    return names


def _reason_against(module: nn.Module) -> str | None:
    kind = type(module).__name__
    if isinstance(module, _ScriptModule):
        return f"{kind} is TorchScript"
    if kind in _WRAPPERS or module._compiled_call_impl is not None:
        return f"{kind} does more around its forward than a graph can hold"
    if hooks := module._forward_pre_hooks:
        if any(isinstance(hook, _C.ContextHook) for hook in hooks.values()):
            return f"{kind}'s forward takes {_context_names(module)}"
        if len(hooks) != len(layer_hooks(module)):
            return f"{kind} has hooks"
    if module._forward_hooks or module._backward_hooks or module._backward_pre_hooks:
        return f"{kind} has hooks"
    return None


def layer_hooks(module: nn.Module) -> tuple[_C.LayerHook, ...]:
    """Those of pipelines with `rng_seed`, which a graph can do without Python."""
    hooks = module._forward_pre_hooks
    return tuple(hook for hook in hooks.values() if isinstance(hook, _C.LayerHook)) if hooks else ()


def autocast_state() -> tuple[tuple[str, bool, torch.dtype], ...]:
    """Of the calling thread: (device, whether it is on, dtype), for the CPU and the accelerator."""
    devices = {"cpu", torch._C._get_accelerator().type}
    return tuple(
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        for device in sorted(devices)
    )
