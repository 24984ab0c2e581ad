"""Hooks of modules that are taken apart."""

from torch import nn


def has_hooks(module: nn.Module) -> bool:
    """Whether calling it runs hooks of its own."""
    return any(
        (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )


def refuse_hooks(module: nn.Module, path: str, problem: str) -> None:
    """Refuses to take apart a module whose hooks would then never run.

    Args:
        module: the module.
        path: its path in the model; "" of the model itself.
        problem: what is done to it.

    Raises:
        ValueError: it has hooks.
    """
    if has_hooks(module):
        name = path or type(module).__name__
        raise ValueError(f"{name} has hooks, and is {problem}: they would be lost")
