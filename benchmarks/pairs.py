"""Runs contenders in turns within one run, and compares them pair by pair.

A shared machine drifts by more than the difference that a benchmark looks for. So every round runs
each contender once, the next round runs them in the opposite order (A B, B A, A B, ...), and a
ratio is taken within a round, between two measurements that are milliseconds apart.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch.distributed as dist

Samples = Mapping[str, Sequence[float]]  # contender → seconds, one for each round


def _nothing() -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Under torchrun every process holds every contender; in a process that has no part in one, its
    `run` does nothing.

    Attributes:
        name: Its name in tables and JSON.
        run: The timed work.
        prepare: What comes before it, untimed (clearing gradients).
    """

    name: str
    run: Callable[[], object] = _nothing
    prepare: Callable[[], object] = _nothing


@dataclasses.dataclass(frozen=True)
class Summary:
    """Middle and spread of some numbers."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float], digits: int = 4) -> Summary:
        """Returns median, 10th and 90th percentile of `values` (one at least)."""
        if len(values) == 1:
            return cls(*[round(values[0], digits)] * 3)
        tenths = statistics.quantiles(values, n=10, method="inclusive")
        numbers = (statistics.median(values), tenths[0], tenths[-1])
        return cls(*[round(number, digits) for number in numbers])


def median_interval(values: Sequence[float], digits: int = 4) -> tuple[float, float]:
    """Between which the median lies in 95 of 100 such runs, whatever the values' distribution.

    By order statistics: that many of `values` on either side of the middle as a coin would throw.
    """
    ordered = sorted(values)
    half = 0.98 * math.sqrt(len(ordered))
    low = max(0, math.floor(len(ordered) / 2 - half))
    high = min(len(ordered) - 1, math.ceil(len(ordered) / 2 + half))
    return round(ordered[low], digits), round(ordered[high], digits)


def alternate(
    contenders: Sequence[Contender], rounds: int, warmup: int = 3, collect_every: int = 1
) -> dict[str, list[float]]:
    """Times the contenders in turns.

    Where torch.distributed is initialised, all processes must call this with the same names; each
    timed run starts after a barrier, and its time is that of the slowest process.

    Args:
        contenders: The contenders, with distinct names.
        rounds: How many times each one is timed.
        warmup: How many rounds come before, untimed.
        collect_every: Garbage is collected before the first of so many rounds: never while anything
            is timed, and seldom where a collection takes longer than a round.

    Returns:
        For each contender its seconds, one for each round.
    """
    samples: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    gc_was_enabled = gc.isenabled()
    gc.disable()
    try:
        for index in range(-warmup, rounds):
            if (index + warmup) % collect_every == 0:
                gc.collect()
            for contender in contenders if index % 2 == 0 else reversed(contenders):
                contender.prepare()
                _barrier()
                start = time.perf_counter()
                contender.run()
                seconds = time.perf_counter() - start
                if index >= 0:
                    samples[contender.name].append(seconds)
    finally:
        if gc_was_enabled:
            gc.enable()
    return _slowest_process(samples)


def times_faster(samples: Samples, name: str, than: str) -> dict[str, float]:
    """Says how many times faster `name` is than `than`.

    Returns:
        `of_medians`: ratio of the two medians; `median`, `p10`, `p90`: of the ratios by round.
    """
    ratios = [slow / fast for slow, fast in zip(samples[than], samples[name], strict=True)]
    of_medians = statistics.median(samples[than]) / statistics.median(samples[name])
    return {"of_medians": round(of_medians, 3), **dataclasses.asdict(Summary.of(ratios, 3))}


def milliseconds(samples: Samples) -> dict[str, dict[str, object]]:
    """Returns median, p10, p90 and all samples of each contender, in milliseconds, for JSON."""
    answer: dict[str, dict[str, object]] = {}
    for name, seconds in samples.items():
        values = [round(1e3 * second, 4) for second in seconds]
        answer[name] = {**dataclasses.asdict(Summary.of(values)), "samples": values}
    return answer


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns the rows as aligned text, numbers to the right."""
    cells = [list(head)] + [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = []
    for first, *others in cells:
        aligned = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *aligned]))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def _slowest_process(samples: dict[str, list[float]]) -> dict[str, list[float]]:
    if not dist.is_initialized():
        return samples
    everyone: list[dict[str, list[float]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, samples)
    by_round = {name: zip(*(one[name] for one in everyone), strict=True) for name in samples}
    return {name: [max(seconds) for seconds in rounds] for name, rounds in by_round.items()}
