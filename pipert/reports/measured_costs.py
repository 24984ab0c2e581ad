"""What stages and messages took in traced passes, as the costs of a simulation or a search."""

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from pipert._C import Costs, Schedule, StageGraph
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


def measured_costs(
    traces: Sequence[Trace], schedule: Schedule, stage_graph: StageGraph | None = None
) -> Costs:
    """Medians of all that can be had from traces of all ranks: stages, edges and messages.

    Args:
        traces: of all ranks.
        schedule: that ran.
        stage_graph: what its stages exchanged beyond the chain; None: nothing.
    """
    return stage_costs(
        traces,
        schedule,
        median,
        latency=_latencies(traces),
        bytes=_sizes(traces, schedule, "activation", 0),
        gradient_bytes=_sizes(traces, schedule, "gradient", 1),
        skips=[] if stage_graph is None else _skips(traces, schedule, stage_graph),
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


def _skips(
    traces: Sequence[Trace], schedule: Schedule, graph: StageGraph
) -> list[tuple[int, list[int], float]]:
    """What goes beyond the chain, one skip for each stage and rank that reads it there.

    Nothing is known of what stays on its rank, and what goes to the rank of the stage's neighbour
    is counted with the chain's: both have 0 bytes.
    """
    rank_of = schedule.placement.ranks
    of_copy = schedule.placement.stages_per_copy
    sizes: dict[tuple[int, int], list[int]] = {}  # by maker and the first reader on its rank
    for trace in traces:
        for event in trace.events:
            message = event.message
            if event.kind != "send" or message is None:
                continue
            maker = message.stage % of_copy
            pairs = graph.activations if message.kind == "activation" else graph.gradients
            on = rank_of[message.stage - maker :]
            readers = [to for by, to in pairs if by == maker and on[to] == message.destination]
            if readers:
                first = min(readers, key=lambda to: abs(to - maker))
                sizes.setdefault((maker, first), []).append(event.bytes)
    skips = []
    for pairs, step in ((graph.activations, 1), (graph.gradients, -1)):
        groups: dict[tuple[int, int], list[int]] = {}  # by maker and rank
        for maker, reader in sorted(pairs, key=lambda pair: abs(pair[0] - pair[1])):
            groups.setdefault((maker, rank_of[reader]), []).append(reader)
        for (maker, rank), readers in groups.items():
            counts = rank not in (rank_of[maker], rank_of[maker + step])
            size = median(sizes.get((maker, readers[0]), [0])) if counts else 0
            skips.append((maker, readers, float(size)))
    return skips
