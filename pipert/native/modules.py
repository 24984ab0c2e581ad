"""Modules whose modes, hooks and attributes a callable may read."""

from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import nn

_MAX_DEPTH = 3  # of functions in functions


def roots_of(call: Any, depth: int = _MAX_DEPTH) -> Iterator[nn.Module]:
    """The module; the one whose method it is; those that a function or an object has at hand."""
    if isinstance(call, nn.Module):
        yield call
        return
    if not depth:
        return
    if isinstance(call, MethodType):
        yield from roots_of(call.__self__, depth)
    elif isinstance(call, FunctionType):
        for cell in call.__closure__ or ():
            try:
                yield from _inner_roots(cell.cell_contents, depth)
            except ValueError:  # the cell is empty
                continue
    elif isinstance(call, partial):
        for value in (call.func, *call.args, *call.keywords.values()):
            yield from _inner_roots(value, depth)
    elif not isinstance(call, type):
        for value in getattr(call, "__dict__", {}).values():
            yield from _inner_roots(value, depth)


def modules_of(call: Any) -> tuple[nn.Module, ...]:
    """All of them, each once: as nn.Module.modules, which takes several times as long."""
    found: dict[nn.Module, None] = {}
    pending: list[nn.Module | None] = [*roots_of(call)]
    while pending:
        module = pending.pop()
        if module is not None and module not in found:
            found[module] = None
            pending += module._modules.values()
    return tuple(found)


def _inner_roots(value: Any, depth: int) -> Iterator[nn.Module]:
    if isinstance(value, (nn.Module, MethodType, FunctionType, partial)):
        yield from roots_of(value, depth - 1)
