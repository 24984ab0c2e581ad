"""What a call that is traced must leave as it was: attributes of its modules, and generators."""

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from pipert.native.attributes import CONTAINERS, INHERITED, MAX_DEPTH, RNN_CACHES, TABLES
from pipert.native.error import NativeError
from pipert.native.modules import roots_of

_IMMUTABLE = (tuple, frozenset)


@contextlib.contextmanager
def attributes_unchanged(call: Any) -> Iterator[None]:
    """Refuses a call that sets attributes of its modules, or what is in them, and takes it back."""
    modules = [named for root in roots_of(call) for named in root.named_modules()]
    before = [(_attributes(module), list(_containers(module))) for _, module in modules]
    try:
        yield
    finally:
        changed = [
            f"{name}.{attribute}".lstrip(".")
            for (name, module), (old, containers) in zip(modules, before, strict=True)
            for attribute in [*_restore(module, old), *_restore_elements(containers)]
            if not (isinstance(module, nn.RNNBase) and attribute in RNN_CACHES)
        ]
    if changed:
        raise NativeError(f"its forward sets {', '.join(dict.fromkeys(changed))}")


def _attributes(module: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        "__dict__": {k: v for k, v in module.__dict__.items() if k not in TABLES},
        **{table: dict(module.__dict__[table]) for table in TABLES},
    }


def _restore(module: nn.Module, before: dict[str, dict[str, Any]]) -> list[str]:
    """The names of attributes that are not what they were; they are again afterwards."""
    changed = []
    for table, old in before.items():
        now = module.__dict__ if table == "__dict__" else module.__dict__[table]
        for name in [name for name in now if name not in old and name not in TABLES]:
            changed.append(name)
            del now[name]
        for name, value in old.items():
            if name not in now or now[name] is not value:
                changed.append(name)
                now[name] = value
    return changed


def _containers(module: nn.Module) -> Iterator[tuple[str, Any, list[Any]]]:
    """(attribute, container in it, elements)."""
    for name, value in module.__dict__.items():
        if name not in INHERITED:
            yield from _nested(name, value, MAX_DEPTH)


def _nested(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any, list[Any]]]:
    if not depth or not isinstance(value, CONTAINERS):
        return
    elements = _elements(value)
    if not isinstance(value, _IMMUTABLE):
        yield name, value, elements
    for element in elements:
        yield from _nested(name, element, depth - 1)


def _elements(container: Any) -> list[Any]:
    """Of a dict, keys and values in turn."""
    if isinstance(container, dict):
        return [part for item in container.items() for part in item]
    return list(container)


def _restore_elements(containers: list[tuple[str, Any, list[Any]]]) -> list[str]:
    """As _restore."""
    changed = []
    for name, container, old in containers:
        now = _elements(container)
        if len(now) == len(old) and all(a is b for a, b in zip(now, old, strict=True)):
            continue
        changed.append(name)
        container.clear()
        if isinstance(container, dict):
            container.update(zip(old[::2], old[1::2], strict=True))
        elif isinstance(container, set):
            container.update(old)
        else:
            container.extend(old)
    return changed


@contextlib.contextmanager
def random_state_unchanged() -> Iterator[None]:
    """Refuses a call that draws from another generator than torch's, or sets torch's."""
    python, ours = random.getstate(), torch.get_rng_state()
    numpy: Any = sys.modules.get("numpy.random")
    numbers = numpy.get_state() if numpy else None
    try:
        yield
        if random.getstate() != python:
            raise NativeError("it draws from Python's random numbers")
        if numpy and not _same_state(numpy.get_state(), numbers):
            raise NativeError("it draws from NumPy's random numbers")
        if not torch.equal(torch.get_rng_state(), ours):
            raise NativeError("it sets or reads torch's generator in a way that a graph can't hold")
    finally:
        random.setstate(python)
        torch.set_rng_state(ours)
        if numpy:
            numpy.set_state(numbers)


def _same_state(a: Any, b: Any) -> bool:
    """Of two states of NumPy's: a name, an array, and numbers."""
    return a[0] == b[0] and a[2:] == b[2:] and bool((a[1] == b[1]).all())
