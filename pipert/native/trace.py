"""Tracing a callable with torch.export, and the refusal of what a graph would lose silently."""

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode

Leaves = list[Tensor]
_EMPTY = torch.empty(0)  # stands for an output


class NativeError(Exception):
    """A callable can't run natively; the text says why."""


class _Result:
    """Out of the sight of torch.export, which looks at a module's attributes."""

    output: Any = None


class Traced(nn.Module):
    """What torch.export sees: the call as a function of its tensors alone, in depth-first order.

    Args:
        call: the module or function.
        args, kwargs: of an example; what isn't a tensor is a constant.
    """

    def __init__(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> None:
        super().__init__()
        if isinstance(call, nn.Module):
            self.call = call  # its parameters are named "call.<name>"
        self._call = [call]  # in a list: a module would be registered twice
        self._arguments = (args, kwargs)
        self._result = _Result()

    @property
    def output(self) -> Any:
        """After the trace, what the call returned, tensors replaced by empty ones."""
        return self._result.output

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        args, kwargs = replace_tensors(self._arguments, lambda _: next(given))
        with _as_if_not_exporting(), _refusing(), _attributes_unchanged(self._call[0]):
            output = self._call[0](*args, **kwargs)
        leaves: Leaves = []

        def take(tensor: Tensor) -> Tensor:
            leaves.append(tensor)
            return _EMPTY

        self._result.output = replace_tensors(output, take)
        return tuple(leaves)


def trace(traced: Traced, example: Leaves) -> ExportedProgram:
    """Exports `traced`: with every size that may differ left open, or with none if that fails.

    Raises:
        NativeError: it can't be exported, or would lose something.
    """
    try:
        return _export(traced, example, dynamic=True)
    except NativeError:
        raise
    except Exception:  # torch.export raises whatever it likes
        return export_static(traced, example)


def export_static(traced: Traced, example: Leaves) -> ExportedProgram:
    """Exports `traced` for the example's sizes alone.

    Raises:
        NativeError: it can't be exported, or would lose something.
    """
    try:
        return _export(traced, example, dynamic=False)
    except NativeError:
        raise
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        raise NativeError(f"torch.export failed: {type(error).__name__}: {text}") from error


def _export(traced: Traced, example: Leaves, *, dynamic: bool) -> ExportedProgram:
    sizes = tuple(
        {i: Dim.AUTO for i, size in enumerate(t.shape) if size > 1} if dynamic else None
        for t in example
    )
    with _quiet(), _random_state_unchanged():
        return torch.export.export(traced, tuple(example), dynamic_shapes=(sizes,) if sizes else None, strict=False)


def replace_tensors(value: Any, replace: Callable[[Tensor], Any]) -> Any:
    """The same value with other tensors, depth first; dicts in their own order."""
    if isinstance(value, Tensor):
        return replace(value)
    if type(value) in (tuple, list):
        return type(value)(replace_tensors(element, replace) for element in value)
    if isinstance(value, dict):
        return {key: replace_tensors(element, replace) for key, element in value.items()}
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        raise NativeError("it returns a size")
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise NativeError(f"it returns a {type(value).__name__}")


@contextlib.contextmanager
def _as_if_not_exporting() -> Iterator[None]:
    """Code that asks whether it is being exported must go the way that it goes when it isn't.

    nn.TransformerEncoderLayer, for one, has a faster path that it doesn't take then.
    """
    compiler, overrides = torch.compiler, torch.overrides
    flags = {name: getattr(compiler, name) for name in ("_is_exporting_flag", "_is_compiling_flag")}
    has_torch_function = overrides.has_torch_function
    grad_enabled = torch.is_grad_enabled()
    try:
        for name in flags:
            setattr(compiler, name, False)
        overrides.has_torch_function = lambda tensors: False
        with _Watch():
            yield
        if torch.is_grad_enabled() != grad_enabled:
            raise NativeError("it leaves gradients switched on or off")
    finally:
        torch.set_grad_enabled(grad_enabled)
        for name, value in flags.items():
            setattr(compiler, name, value)
        overrides.has_torch_function = has_torch_function


class _Watch(TorchFunctionMode):
    """Refuses calls that leave no trace in a graph."""

    _LOST = {
        Tensor.register_hook: "registers a hook on a tensor",
        Tensor.register_post_accumulate_grad_hook: "registers a hook on a tensor",
        Tensor.retain_grad: "retains the gradient of a tensor",
        Tensor.requires_grad_: "changes whether a tensor requires a gradient",
        Tensor.requires_grad.__set__: "changes whether a tensor requires a gradient",
        Tensor.data.__set__: "sets a tensor's data",
        Tensor.grad.__get__: "reads a gradient",
        Tensor.grad.__set__: "sets a gradient",
        Tensor.backward: "runs a backward of its own",
        torch.autograd.grad: "runs a backward of its own",
        torch.autograd.backward: "runs a backward of its own",
    }

    def __init__(self) -> None:
        super().__init__()
        self._switches: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if reason := self._LOST.get(func):
            raise NativeError(f"it {reason}")
        if func is torch._C._set_grad_enabled:
            self._note("grad")
        elif func is torch.amp.autocast_mode._enter_autocast:
            self._note("autocast")
        return func(*args, **(kwargs or {}))

    def _note(self, switch: str) -> None:
        # torch.export forgets a grad mode that is set inside of an autocast.
        self._switches.add(switch)
        if len(self._switches) > 1:
            raise NativeError("it switches both autocast and gradients")


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Refuses, on this thread, what torch.export looks through and so forgets."""
    thread = threading.get_ident()

    def refuse(owner: Any, name: str, reason: str, but: Callable[[Any], bool]) -> None:
        original = owner.__dict__[name]
        function = original.__func__ if isinstance(original, classmethod) else original

        def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == thread and not but(self):
                raise NativeError(f"it {reason}")
            return function(self, *args, **kwargs)

        replaced = classmethod(guarded) if isinstance(original, classmethod) else guarded
        setattr(owner, name, replaced)
        undo.callback(setattr, owner, name, original)

    with contextlib.ExitStack() as undo:
        refuse(
            torch.autograd.Function,
            "apply",
            "uses a torch.autograd.Function",
            # the backward of a torch.library operator, which is part of the operator
            lambda cls: cls.__name__.startswith("GeneratedBackwardFor_"),
        )
        refuse(
            torch.autograd.graph.saved_tensors_hooks,
            "__enter__",
            "uses hooks on saved tensors, as torch.utils.checkpoint does",
            lambda _: False,
        )
        refuse(
            torch.inference_mode, "__enter__", "switches inference mode", lambda _: False
        )
        yield


@contextlib.contextmanager
def _attributes_unchanged(call: Any) -> Iterator[None]:
    """Refuses a call that sets attributes of its modules, and takes them back."""
    modules = list(call.named_modules()) if isinstance(call, nn.Module) else []
    before = [_attributes(module) for _, module in modules]
    try:
        yield
    finally:
        changed = [
            f"{name}.{attribute}".lstrip(".")
            for (name, module), old in zip(modules, before, strict=True)
            for attribute in _restore(module, old)
        ]
    if changed:
        raise NativeError(f"its forward sets {', '.join(changed)}")


_TABLES = ("_parameters", "_buffers", "_modules")


def _attributes(module: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        "__dict__": {k: v for k, v in module.__dict__.items() if k not in _TABLES},
        **{table: dict(module.__dict__[table]) for table in _TABLES},
    }


def _restore(module: nn.Module, before: dict[str, dict[str, Any]]) -> list[str]:
    """The names of attributes that are not what they were; they are again afterwards."""
    changed = []
    for table, old in before.items():
        now = module.__dict__ if table == "__dict__" else module.__dict__[table]
        for name in [name for name in now if name not in old and name not in _TABLES]:
            changed.append(name)
            del now[name]
        for name, value in old.items():
            if name not in now or now[name] is not value:
                changed.append(name)
                now[name] = value
    return changed


@contextlib.contextmanager
def _random_state_unchanged() -> Iterator[None]:
    """Refuses a call that draws from another generator than torch's, or sets torch's."""
    python, ours = random.getstate(), torch.get_rng_state()
    try:
        yield
        if random.getstate() != python:
            raise NativeError("it draws from Python's random numbers")
        if not torch.equal(torch.get_rng_state(), ours):
            raise NativeError("it sets or reads torch's generator in a way that a graph can't hold")
    finally:
        random.setstate(python)
        torch.set_rng_state(ours)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """An export that fails is nothing to be told of: the stage says why it runs as a module."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
