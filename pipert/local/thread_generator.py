"""Lets torch.random's functions speak of the generator that the calling thread draws from."""

from typing import Any

import torch

from pipert import _C


class _ThreadGenerator:
    """In place of `torch.random.default_generator`; outside of stages it is that."""

    def __init__(self, default: torch.Generator) -> None:
        self._default = default

    def __getattr__(self, name: str) -> Any:
        return getattr(_C.thread_generator() or self._default, name)


def follow_thread_generator() -> None:
    """From here on get_rng_state, set_rng_state, manual_seed and the like follow the thread.

    torch.utils.checkpoint saves the state with them and draws again from there: on a rank with a
    generator of its own that must be the state of that one.
    """
    functions: Any = torch.random
    if not isinstance(functions.default_generator, _ThreadGenerator):
        functions.default_generator = _ThreadGenerator(functions.default_generator)
