"""What stages and messages took in traced passes, as the costs of a simulation or a search."""

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from pipert._C import Costs, Schedule
from pipert.reports.trace import Trace

_Average = Callable[[Sequence[float]], float]


def stage_costs(
    traces: Iterable[Trace], schedule: Schedule, average: _Average, **others: Any
) -> Costs:
    """Times of each stage's actions, and whatever `others` adds.

    A stage whose backward always ran whole has half of its time in each half, as nobody knows how
    it would be split.

    Args:
        traces: of all ranks.
        schedule: that ran.
        average: of a list of times.
        **others: arguments of Costs.
    """
    took: dict[tuple[str, int], list[float]] = {}
    for trace in traces:
        for event in trace.events:
            if event.action is not None:
                key = (event.action.kind, event.action.stage)
                took.setdefault(key, []).append(event.ended - event.started)
    times = {key: average(values) for key, values in took.items()}
    stages = range(schedule.num_stages)
    whole = [times.get(("B", stage), 0.0) / 2 for stage in stages]
    forward = [times.get(("F", stage), 0.0) for stage in stages]
    if any(kind == "R" for kind, _ in times):
        others["recompute"] = [times.get(("R", stage), forward[stage]) for stage in stages]
    for name, kind in (("offload", "OFFLOAD"), ("reload", "RELOAD")):
        others[name] = [times.get((kind, stage), 0.0) for stage in stages]
    return Costs(
        forward=forward,
        input=[times.get(("I", stage), whole[stage]) for stage in stages],
        weight=[times.get(("W", stage), whole[stage]) for stage in stages],
        **others,
    )


def measured_costs(traces: Sequence[Trace], schedule: Schedule) -> Costs:
    """Medians of all that can be had from traces of all ranks: stages, edges and messages."""
    return stage_costs(
        traces,
        schedule,
        median,
        latency=_latencies(traces),
        bytes=_sizes(traces, schedule, "activation", 0),
        gradient_bytes=_sizes(traces, schedule, "gradient", 1),
    )


def _latencies(traces: Sequence[Trace]) -> dict[tuple[int, int] | None, float]:
    """By edge, from a send until the data could be read, of messages that were waited for.

    Of several that a run reads it is taken to be the one that was sent last. Others arrived at a
    time that nobody looked. An edge of which there is none has what all have.
    """
    took: dict[tuple[int, int], list[float]] = {}
    for trace in traces:
        for event in trace.events:
            sends = [send for each in event.reads if (send := trace.sender_of(each)) is not None]
            if not sends or event.is_joint:
                continue
            sent = max(sends, key=lambda send: send.ended)
            if event.issued > sent.ended:
                continue
            edge = (sent.rank, event.rank)
            took.setdefault(edge, []).append(max(0.0, event.started - sent.ended))
    latencies: dict[tuple[int, int] | None, float] = {
        edge: median(values) for edge, values in took.items()
    }
    if latencies:
        latencies[None] = median(seconds for values in took.values() for seconds in values)
    return latencies or {None: 0.0}


def _sizes(traces: Sequence[Trace], schedule: Schedule, kind: str, first_stage: int) -> list[float]:
    """By the stage before it, the bytes of a message between two stages; 0 inside of a rank.

    A message to the rank of a stage's neighbour counts whole, whoever else reads it there.
    """
    rank_of = schedule.placement.ranks
    sizes: dict[int, list[int]] = {}
    for trace in traces:
        for event in trace.events:
            message = event.message
            if event.kind != "send" or message is None or message.kind != kind:
                continue
            stage = message.stage - first_stage
            if message.destination == rank_of[stage + 1 - first_stage]:
                sizes.setdefault(stage, []).append(event.bytes)
    return [
        float(median(sizes[stage])) if stage in sizes else 0.0
        for stage in range(schedule.num_stages)
    ]
