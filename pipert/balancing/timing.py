"""How long a forward and the halves of its backward take: measured, or estimated."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pipert.balancing.roofline import Roofline

_WARM_UP = 2
_LEAST_RUNS, _MOST_RUNS = 5, 50
_ENOUGH_S = 0.01  # of one layer: short ones run more often


def measure(
    layer: Callable[..., Any],
    given: Callable[[], tuple[Any, Any]],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> tuple[float, float, float]:
    """Seconds of forward, and of the two halves of backward.

    Args:
        layer: what is measured.
        given: makes what it is called with, args and kwargs, each time; that doesn't count.
        inputs: leaves in there that require a gradient.
        weights: the layer's own.
    """
    devices = {t.device for t in (*inputs, *weights) if t.is_cuda}
    runs: list[tuple[float, float, float]] = []
    spent = 0.0
    while len(runs) < _WARM_UP + _LEAST_RUNS or (
        len(runs) < _WARM_UP + _MOST_RUNS and spent < _ENOUGH_S
    ):
        parts = _parts_of(layer, given(), inputs, weights)
        marks = [_now(devices)]
        for part in parts:
            part()
            marks.append(_now(devices))
        runs.append((marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]))
        spent += marks[3] - marks[0] if len(runs) > _WARM_UP else 0.0
    forward, input_half, whole = (median(times) for times in zip(*runs[_WARM_UP:], strict=True))
    return _halves(forward, input_half, whole, bool(inputs), bool(weights))


def estimate(
    layer: Callable[..., Any],
    given: Callable[[], tuple[Any, Any]],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> tuple[float, float, float]:
    """As `measure`, of a device whose speed Roofline tells."""
    times = []
    for part in _parts_of(layer, given(), inputs, weights):
        with Roofline() as roofline:
            part()
        times.append(roofline.seconds)
    return _halves(times[0], times[1], times[2], bool(inputs), bool(weights))


def _halves(
    forward: float, input_half: float, whole: float, has_inputs: bool, has_weights: bool
) -> tuple[float, float, float]:
    """The weight half is what the whole backward takes beyond its input half."""
    if not has_inputs:
        return forward, 0.0, whole
    if not has_weights:
        return forward, whole, 0.0
    return forward, min(input_half, whole), max(0.0, whole - input_half)


def _parts_of(
    layer: Callable[..., Any],
    given: tuple[Any, Any],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> Iterator[Callable[[], None]]:
    """Forward, the gradients of inputs, those of inputs and weights. To be called in order."""
    roots: list[Tensor] = []
    seeds: list[Tensor] = []

    def forward() -> None:
        args, kwargs = given
        outputs = tree_leaves(layer(*args, **kwargs))
        roots.extend(t for t in outputs if isinstance(t, Tensor) and t.requires_grad)

    def backward(targets: Sequence[Tensor], keep: bool) -> Callable[[], None]:
        def part() -> None:
            if roots and targets:
                torch.autograd.grad(roots, targets, seeds, retain_graph=keep, allow_unused=True)

        return part

    yield forward
    seeds = [torch.ones_like(root) for root in roots]
    yield backward(inputs, keep=True)
    yield backward([*inputs, *weights], keep=False)


def _now(devices: Iterable[torch.device]) -> float:
    for device in devices:
        torch.cuda.synchronize(device)
    return time.perf_counter()
