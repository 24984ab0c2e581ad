"""What the ranks held in a step: measured, beside what the schedule predicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from pipert._C import Costs, Schedule, Timeline
from pipert.reports import in_flight
from pipert.reports.trace import Trace, TraceEvent

# (rank, activations, peak in bytes or None, bytes at the start of each instruction and at the end)
RawMemory = tuple[int, int, int | None, list[int]]


@dataclass(frozen=True)
class RankMemory:
    """What one rank held in a training step.

    Bytes are those of its tensors on its device above what was there when the step began; None
    without `measure_memory`, and where a profiler was active.

    Attributes:
        rank: position in the pipeline group.
        peak_activations: most (stage, microbatch) pairs whose activations were there at a time.
        predicted_activations: the schedule's promise.
        peak_bytes: the most at any moment: activations, gradients, what operators need meanwhile.
        kept_bytes: the most between two actions: what stays.
        predicted_bytes: the most that activations take, simulated with what each stage's forward
            left behind in this step.
        transfer_bytes: the most that messages took at a time which this rank had sent, and not been
            told that they were read. Where ranks are threads, those are the activations themselves.
        predicted_transfer_bytes: the same in the simulated step, where a message is gone as soon as
            it is read.
    """

    rank: int
    peak_activations: int
    predicted_activations: int
    transfer_bytes: int
    predicted_transfer_bytes: int
    peak_bytes: int | None = None
    kept_bytes: int | None = None
    predicted_bytes: int | None = None


def summarize_memory(raw: RawMemory, events: Sequence[TraceEvent]) -> dict[str, Any]:
    """One rank's part of a report, as JSON values."""
    rank, activations, peak, levels = raw
    part: dict[str, Any] = {"rank": rank, "activations": activations}
    if peak is None:
        return part
    starts = [i for i, event in enumerate(events) if event.action is not None]
    starts.append(len(events))
    grown: dict[str, list[int]] = {}  # "F0" -> bytes that each microbatch left behind
    for at, following in pairwise(starts):
        action = events[at].action
        if action is not None:
            grown.setdefault(f"{action.kind}{action.stage}", []).append(
                levels[following] - levels[at]
            )
    return {
        **part,
        "peak": peak,
        "kept": max(levels[at] for at in starts),
        "grown": {key: median(values) for key, values in grown.items()},
    }


def put_together(
    parts: Sequence[dict[str, Any]], trace: Trace, schedule: Schedule, simulated: Timeline
) -> list[RankMemory]:
    """The parts of all ranks, by rank, beside what the schedule predicts.

    Args:
        parts: what `summarize_memory` gave on each rank.
        trace: of all ranks, of the same step.
        schedule: the schedule that ran.
        simulated: it, with the step's own stage times.
    """
    grown: dict[str, float] = {}
    for part in parts:
        grown.update(part.get("grown", {}))
    timeline = schedule.simulate(_costs(grown, schedule), messages=False)
    predicted = timeline.peak_bytes
    return [
        RankMemory(
            rank=part["rank"],
            peak_activations=part["activations"],
            predicted_activations=timeline.peak_memory[part["rank"]],
            transfer_bytes=in_flight.measured(trace, part["rank"]),
            predicted_transfer_bytes=in_flight.predicted(trace, simulated, part["rank"]),
            peak_bytes=part.get("peak"),
            kept_bytes=part.get("kept"),
            predicted_bytes=(
                None if predicted is None or "peak" not in part else round(predicted[part["rank"]])
            ),
        )
        for part in sorted(parts, key=lambda part: part["rank"])
    ]


def _costs(grown: dict[str, float], schedule: Schedule) -> Costs:
    """Sizes of activations; no times."""
    stages = range(schedule.num_stages)
    if not any(f"F{stage}" in grown for stage in stages):
        return Costs()
    inputs = [grown.get(f"F{s}", 0.0) if f"R{s}" in grown else 0.0 for s in stages]
    whole = [max(0.0, grown.get(f"F{s}", 0.0) + grown.get(f"R{s}", 0.0)) for s in stages]
    left = [
        min(1.0, max(0.0, 1 + grown.get(f"I{s}", 0.0) / size)) if size else 1.0
        for s, size in zip(stages, whole, strict=True)
    ]
    return Costs(
        activation_bytes=whole,
        weight_share=left,
        bytes=[*(max(0.0, size) for size in inputs[1:]), 0.0],
    )


def table(memory: Sequence[RankMemory]) -> list[str]:
    """Lines of text, a head and one for each rank."""
    columns = {
        "rank": [str(r.rank) for r in memory],
        "activations": [str(r.peak_activations) for r in memory],
        "predicted": [str(r.predicted_activations) for r in memory],
        "transfer MB": [_megabytes(r.transfer_bytes) for r in memory],
        "predicted MB": [_megabytes(r.predicted_transfer_bytes) for r in memory],
    }
    if any(r.peak_bytes is not None for r in memory):
        columns |= {
            "peak MB": [_megabytes(r.peak_bytes) for r in memory],
            "kept MB": [_megabytes(r.kept_bytes) for r in memory],
            "activations predicted MB": [_megabytes(r.predicted_bytes) for r in memory],
        }
    rows = zip(*([head, *cells] for head, cells in columns.items()), strict=True)
    return [
        "  ".join(f"{cell:>{len(head)}}" for cell, head in zip(row, columns, strict=True))
        for row in rows
    ]


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.3f}"
