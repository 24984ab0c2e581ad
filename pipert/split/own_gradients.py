"""What a trace can't see of the user's own gradients: autograd functions, and hooks of tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

Call = Callable[..., Any]
Record = Callable[[str, Call, tuple[Any, ...], dict[str, Any]], Any]
_HOOKS = ("register_hook", "register_post_accumulate_grad_hook")


@contextlib.contextmanager
def own_gradients_kept(is_inside_leaf: Callable[[], bool], record: Record) -> Iterator[None]:
    """Keeps autograd functions whole: a trace has nothing of them but their forward's operators.

    Of torch's checkpoint, which computes no other gradients than what it runs, that is traced.

    Args:
        is_inside_leaf: whether what is called now is no part of the trace anyway.
        record: called in place of one, with its name, `call_autograd_function`, and the arguments.
    """
    original = vars(torch.autograd.Function)["apply"]

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if is_inside_leaf():
            return original.__get__(None, cls)(*args, **kwargs)
        if cls is CheckpointFunction:
            run, _, *its_args = args
            return run(*its_args)
        return record(cls.__name__, call_autograd_function, (cls, *args), kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment, method-assign]
    try:
        with contextlib.ExitStack() as undo:
            for name in _HOOKS:
                undo.enter_context(_hooks_refused(name, is_inside_leaf))
            yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]


def call_autograd_function(
    function: type[torch.autograd.Function], *args: Any, **kwargs: Any
) -> Any:
    """What a stage calls: its code has objects as arguments alone."""
    return function.apply(*args, **kwargs)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _hooks_refused(name: str, is_inside_leaf: Callable[[], bool]) -> Iterator[None]:
    original = getattr(Tensor, name)

    def register(tensor: Tensor, hook: Call) -> Any:
        if is_inside_leaf():
            return original(tensor, hook)
        raise RuntimeError(f"a trace would lose what Tensor.{name} registers")

    setattr(Tensor, name, register)
    try:
        yield
    finally:
        setattr(Tensor, name, original)
