"""KeyedRandom: random numbers keyed as a pipeline keys them, for a loop without one."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn

from pipert import _C
from pipert.layers import LayerHooks, layers_of, next_owner
from pipert.local.thread_generator import follow_thread_generator


class KeyedRandom:
    """Lets a model draw what it would draw in a pipeline with this `rng_seed`.

    For the loop without a pipeline that a run is compared with:

        with pipert.KeyedRandom(model, rng_seed=0) as keyed:
            for index, (x, y) in enumerate(microbatches):
                with keyed.microbatch(step, index):
                    loss = loss_fn(model(x), y)
                loss.backward()

    Args:
        model: the unpartitioned model. Its layers are those of the pipeline if it is an
            nn.Sequential (or runs as one); any other is one layer.
        rng_seed: the pipeline's.
        device: where the model draws.
    """

    def __init__(self, model: nn.Module, rng_seed: int, device: Any = "cpu") -> None:
        check_seed(rng_seed)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        follow_thread_generator()
        self._seed = rng_seed
        self._device = str(torch.device(device))
        self._owner = next_owner()
        self._hooks = LayerHooks()
        self._hooks.key(self._owner, {0: 0}, {0: model})
        # What is drawn after the model is the loss function's.
        self._after = model.register_forward_hook(_enter_loss)
        weakref.finalize(self, self._after.remove).atexit = False
        self.num_layers = len(layers_of(model))

    @contextmanager
    def microbatch(self, step: int, index: int, *, training: bool = True) -> Iterator[None]:
        """Within it this thread's draws are those of microbatch `index` of training step `step`.

        Args:
            step: training steps before this one.
            index: from 0.
            training: False: those of an evaluation before that step.

        Raises:
            ValueError: a number is negative, too large or no integer.
        """
        _check_number("step", step, 2**63)
        _check_number("index", index, 2**31)
        scope = _C.KeyedScope(
            seed=self._seed,
            owner=self._owner,
            device=self._device,
            training=training,
            step=step,
            microbatch=index,
        )
        scope.enter()
        try:
            yield
        finally:
            scope.exit()

    def close(self) -> None:
        """Takes the hooks off the model."""
        self._hooks.remove()
        self._after.remove()

    def __enter__(self) -> "KeyedRandom":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def check_seed(rng_seed: Any) -> None:
    """Checks that it is an integer of 64 bits."""
    if isinstance(rng_seed, bool) or not isinstance(rng_seed, int) or not 0 <= rng_seed < 2**64:
        raise ValueError(f"rng_seed must be an integer from 0 to 2**64 - 1, got {rng_seed!r}")


def _check_number(name: str, value: Any, end: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < end:
        raise ValueError(f"{name} must be an integer from 0 to {end - 1}, got {value!r}")


def _enter_loss(*_: Any) -> None:
    _C.enter_loss()
