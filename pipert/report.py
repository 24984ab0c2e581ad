"""Where the time of a step went: measured on every rank, beside what the schedule predicts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pipert._C import Action, Costs, Schedule, Timeline
from pipert.memory import RankMemory, RawMemory, put_together, summarize_memory, table
from pipert.transports import EdgeTransport

# (rank, start, end, [(kind, action, start, ready, end), ...]) in nanoseconds, as _C gives it.
RawTrace = tuple[int, int, int, list[tuple[str, Action | None, int, int, int]]]


class TraceEvent(NamedTuple):
    """One instruction of the last step, times in seconds from the step's start.

    Attributes:
        rank: that ran it.
        kind: "recv", "run", "send", "release" or "move".
        action: of a "run" or a "move"; else None.
        start: the rank came to it.
        ready: what it waited for was there.
        end: it was done.
    """

    rank: int
    kind: str
    action: Action | None
    start: float
    ready: float
    end: float


class UnsplitNode(NamedTuple):
    """A node of a stage's autograd graph that can't run its backward in two halves.

    Attributes:
        name: as autograd calls it, such as "MyFunctionBackward".
        reason: why, in words.
    """

    name: str
    reason: str


class Trace:
    """What the ranks of this process did in the last step.

    Attributes:
        events: a list of TraceEvent, by rank and in order. The halves of a pair that ran jointly
            stand one after the other, and share the time that it took.
        peak_activations: {rank: the most (stage, microbatch) pairs that held activations at once},
            counted in the stages while they ran. `Program.peak_activations` is the promise.
    """

    def __init__(
        self, raw: Sequence[RawTrace], peak_activations: Mapping[int, int] | None = None
    ) -> None:
        self.peak_activations = dict(peak_activations or {})
        origin = min(start for _, start, _, _ in raw)
        self._raw = raw
        self.events = [
            TraceEvent(rank, kind, action, *((t - origin) * 1e-9 for t in times))
            for rank, _, _, events in raw
            for kind, action, *times in events
        ]

    def timeline(self) -> Timeline:
        """The actions alone, to be drawn beside a simulated timeline."""
        ranks = sorted({event.rank for event in self.events})
        return Timeline.from_spans(
            [
                [
                    (event.action, event.ready, event.end)
                    for event in self.events
                    if event.rank == rank and event.action is not None
                ]
                for rank in ranks
            ]
        )


@dataclass(frozen=True)
class RankReport:
    """One rank's step, in seconds. `step_s` is the sum of the four parts.

    Attributes:
        rank: position in the pipeline group.
        step_s: from the start of the pass to the end of the rank's last instruction.
        compute_s: inside stages.
        wait_s: waiting for a message that the next action reads.
        transfer_s: posting receives, sending, making sure that sends were received, and moving
            activations to the host and back.
        host_s: the rest: until the rank's thread came to its first instruction.
    """

    rank: int
    step_s: float
    compute_s: float
    wait_s: float
    transfer_s: float
    host_s: float


@dataclass(frozen=True)
class Report:
    """The last step, on all ranks.

    Attributes:
        ranks: by rank.
        bubble_measured: by rank, 1 - compute / the longest rank's step.
        bubble_predicted: by rank, simulated from this step's mean stage times, transfers free.
        step_s: the longest rank's step.
        predicted_step_s: the simulated makespan.
        costs: what was simulated: mean seconds of forward and backward, by stage.
        memory: by rank, what it held; empty if the last pass didn't train.
        unsplit: by stage, what kept its backward from being split; see Pipeline.unsplit_nodes.
        stage_kinds: by stage, how it ran; see Pipeline.stage_kinds.
        recomputed: stages some of whose forwards run twice because of Pipeline's `recompute`: what
            `memory` predicts is the schedule's promise, which knows nothing of it.
        transports: what carries each edge, and why.
    """

    ranks: list[RankReport]
    bubble_measured: list[float]
    bubble_predicted: list[float]
    step_s: float
    predicted_step_s: float
    costs: Costs
    memory: list[RankMemory]
    unsplit: dict[int, list[UnsplitNode]]
    stage_kinds: dict[int, str]
    recomputed: list[int]
    transports: list[EdgeTransport]

    def __str__(self) -> str:
        head = "rank  compute ms  wait ms  transfer ms  host ms  bubble measured  predicted"
        rows = [
            f"{r.rank:4}  {r.compute_s * 1e3:10.3f}  {r.wait_s * 1e3:7.3f}"
            f"  {r.transfer_s * 1e3:11.3f}  {r.host_s * 1e3:7.3f}"
            f"  {measured:15.1%}  {predicted:9.1%}"
            for r, measured, predicted in zip(
                self.ranks, self.bubble_measured, self.bubble_predicted, strict=True
            )
        ]
        foot = f"step {self.step_s * 1e3:.3f} ms, {self.predicted_step_s * 1e3:.3f} ms predicted"
        held = table(self.memory) if self.memory else []
        return "\n".join([head, *rows, foot, *held, *self._edges(), *self._notes()])

    def _edges(self) -> Iterator[str]:
        """What carries them, those of a kind and reason in one line."""
        alike: dict[tuple[str, str], list[str]] = {}
        for edge in self.transports:
            names = alike.setdefault((edge.transport, edge.reason), [])
            names.append(f"{edge.source}->{edge.destination}")
        for (transport, reason), names in alike.items():
            some = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            yield f"{transport} carries {some}: {reason}"

    def _notes(self) -> Iterator[str]:
        """Where a stage didn't run as its user may think."""
        for stage, kind in self.stage_kinds.items():
            if kind.startswith("module: "):
                yield f"stage {stage} runs as its module: {kind.removeprefix('module: ')}"
        for stage, nodes in self.unsplit.items():
            for node in nodes:
                yield f"stage {stage} does not split the backward of {node.name}: {node.reason}"
        if self.recomputed and self.memory:
            yield (
                f"recompute of stages {', '.join(map(str, self.recomputed))}: activations are "
                "predicted as if nothing were recomputed"
            )


def summarize(raw: RawTrace, memory: RawMemory) -> dict[str, Any]:
    """One rank's part of a report, as JSON values."""
    rank, start, end, events = raw
    parts = {"compute_s": 0.0, "wait_s": 0.0, "transfer_s": 0.0}
    stages: dict[str, list[float]] = {}  # "F0" -> seconds of each microbatch
    for kind, action, begin, ready, finish in events:
        if kind == "run" and action is not None:
            parts["compute_s"] += (finish - ready) * 1e-9
            parts["wait_s"] += (ready - begin) * 1e-9
            stages.setdefault(f"{action.kind}{action.stage}", []).append((finish - ready) * 1e-9)
        else:
            parts["transfer_s"] += (finish - begin) * 1e-9
    step_s = (end - start) * 1e-9
    times = RankReport(rank=rank, step_s=step_s, host_s=step_s - sum(parts.values()), **parts)
    return {
        "times": asdict(times),
        "stages": {key: sum(values) / len(values) for key, values in stages.items()},
        "memory": summarize_memory(memory, events),
    }


def summarize_stages(
    unsplit: Mapping[int, Sequence[tuple[str, str]]],
    kinds: Mapping[int, str],
    recomputed: Sequence[int],
    transports: Sequence[EdgeTransport],
) -> dict[str, Any]:
    """A process's part of a report about its stages and edges, as JSON values."""
    return {
        "transports": [asdict(edge) for edge in transports],
        "unsplit": [[stage, *node] for stage, nodes in unsplit.items() for node in nodes],
        "kinds": [[stage, kind] for stage, kind in kinds.items()],
        "recomputed": list(recomputed),
    }


def make_report(
    parts: Sequence[dict[str, Any]], stages_of: Sequence[dict[str, Any]], schedule: Schedule
) -> Report:
    """Puts the parts of all ranks together.

    Args:
        parts: what `summarize` gave on each rank.
        stages_of: what `summarize_stages` gave in each process.
        schedule: the schedule that ran.
    """
    ranks = sorted((RankReport(**part["times"]) for part in parts), key=lambda r: r.rank)
    means: dict[str, float] = {}
    for part in parts:
        means.update(part["stages"])
    stages = range(schedule.num_stages)
    costs = Costs(
        forward=[means.get(f"F{stage}", 0.0) for stage in stages],
        input=[means.get(f"B{stage}", means.get(f"I{stage}", 0.0)) for stage in stages],
        weight=[means.get(f"W{stage}", 0.0) for stage in stages],
    )
    timeline = schedule.simulate(costs, messages=False)
    step_s = max(r.step_s for r in ranks)
    unsplit: dict[int, list[UnsplitNode]] = {}
    for stage, name, reason in sorted(node for part in stages_of for node in part["unsplit"]):
        unsplit.setdefault(stage, []).append(UnsplitNode(name, reason))
    return Report(
        ranks=ranks,
        bubble_measured=[1 - r.compute_s / step_s for r in ranks],
        bubble_predicted=list(timeline.bubble),
        step_s=step_s,
        predicted_step_s=timeline.makespan,
        costs=costs,
        memory=(
            put_together([part["memory"] for part in parts], schedule)
            if any(key[0] in "BI" for key in means)
            else []
        ),
        unsplit=unsplit,
        stage_kinds=dict(sorted(kind for part in stages_of for kind in part["kinds"])),
        recomputed=sorted(stage for part in stages_of for stage in part["recomputed"]),
        transports=sorted(
            {EdgeTransport(**edge) for part in stages_of for edge in part["transports"]},
            key=lambda edge: (edge.source, edge.destination),
        ),
    )
