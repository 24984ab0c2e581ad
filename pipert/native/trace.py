"""Tracing a callable with torch.export, and the refusal of what a graph would lose silently."""

import contextlib
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pipert import _C
from pipert.native.error import NativeError
from pipert.native.layer_marks import LayerMarks
from pipert.native.stand_ins import StandIns
from pipert.native.state import autocast_state
from pipert.native.unchanged import attributes_unchanged, random_state_unchanged
from pipert.native.watch import watching

Leaves = list[Tensor]
_EMPTY = torch.empty(0)  # stands for an output


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
        self._stand_ins = StandIns(call)
        self._stand_ins.register(self)
        self._arguments = (args, kwargs)
        self._result = _Result()
        self._marks = LayerMarks()

    @property
    def places(self) -> dict[str, tuple[dict[str, Any], str]]:
        """By the name of a buffer: the attribute that it stands for."""
        return self._stand_ins.places

    @property
    def output(self) -> Any:
        """After the trace, what the call returned, tensors replaced by empty ones."""
        return self._result.output

    @property
    def layers(self) -> list[_C.LayerHook]:
        """After the trace, the hooks that the marks in the graph stand for, by index."""
        return self._marks.hooks

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The call, of which torch.export sees tensors alone."""
        given = iter(tensors)
        args, kwargs = replace_tensors(self._arguments, lambda _: next(given))
        with (
            _as_if_not_exporting(),
            self._stand_ins.put(self),
            attributes_unchanged(self._call[0]),
            watching(self._stand_ins.own) as watch,
        ):
            modes = torch.is_grad_enabled(), autocast_state()
            with self._marks.in_place_of_hooks(self._call[0]):
                output = self._call[0](*args, **kwargs)
            if (torch.is_grad_enabled(), autocast_state()) != modes:
                raise NativeError("it leaves gradients or autocast switched on or off")
        leaves: Leaves = []

        def take(tensor: Tensor) -> Tensor:
            leaves.append(tensor)
            return _EMPTY

        self._result.output = replace_tensors(output, take)
        watch.check(leaves)
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
    with _quiet(), random_state_unchanged(), _modes_unchanged(), _no_questions():
        return torch.export.export(
            traced, tuple(example), dynamic_shapes=(sizes,) if sizes else None, strict=False
        )


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
    try:
        for name in flags:
            setattr(compiler, name, False)
        overrides.has_torch_function = lambda _: False  # type: ignore[assignment]
        yield
    finally:
        for name, value in flags.items():
            setattr(compiler, name, value)
        overrides.has_torch_function = has_torch_function


@contextlib.contextmanager
def _no_questions() -> Iterator[None]:
    """Refuses a call that asks for its microbatch: an export is for none."""
    before = _C.num_microbatch_questions()

    def check() -> None:
        if _C.num_microbatch_questions() != before:
            raise NativeError("it asks which microbatch it is")

    try:
        yield
    except Exception:  # the answer may be why; Ctrl-C is no answer
        check()
        raise
    check()


@contextlib.contextmanager
def _modes_unchanged() -> Iterator[None]:
    """Switches gradients and autocast back."""
    grad_enabled, autocast, depth = torch.is_grad_enabled(), autocast_state(), _autocast_depth()
    try:
        yield
    finally:
        torch._C._set_grad_enabled(grad_enabled)
        while _autocast_depth() > depth:
            torch.autocast_decrement_nesting()
        for device, enabled, dtype in autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)


def _autocast_depth() -> int:
    depth: int = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """An export that fails is nothing to be told of: the stage says why it runs as a module."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(_OtherThreads(sys.stderr)):
            yield
    finally:
        logging.disable(before)


class _OtherThreads(io.TextIOBase):
    """A stream that this thread writes to in vain."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            self._stream.write(text)
        return len(text)
