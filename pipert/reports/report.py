"""Where the time of a step went: measured on every rank, beside what the schedule predicts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from statistics import fmean
from typing import Any, NamedTuple

from pipert._C import Costs, Schedule
from pipert.processes.transports import EdgeTransport
from pipert.reports.measured_costs import stage_costs
from pipert.reports.memory import RankMemory, put_together, table
from pipert.reports.trace import Message, RankPass, Trace, TraceEvent


class UnsplitNode(NamedTuple):
    """A node of a stage's autograd graph that can't run its backward in two halves.

    Attributes:
        name: as autograd calls it, such as "MyFunctionBackward".
        reason: why, in words.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class RankReport:
    """One rank's step, in seconds. The parts, all but the first two fields, add up to `step_s`.

    Attributes:
        rank: position in the pipeline group.
        step_s: wall time: from the caller's call of `step` until it had its result.
        compute_s: inside stages.
        transfer_s: in which compute had to wait for transfers: posting receives, packing and
            sending, messages that had been sent and were still on the way, and moving activations
            to the host and back.
        upstream_s: waiting for a rank with an earlier stage: until it sent the activation that the
            next action reads, or took a gradient.
        downstream_s: waiting for a rank with a later stage: until it sent the gradient that the
            next action reads, or took an activation.
        end_s: waiting for the last rank to come to its end, nothing left to do.
        host_s: the runtime's own: checking and handing out the batch, waking the rank's thread,
            going from one instruction to the next, agreeing that all ranks are done, the result.
    """

    rank: int
    step_s: float
    compute_s: float
    transfer_s: float
    upstream_s: float
    downstream_s: float
    end_s: float
    host_s: float

    @property
    def wait_s(self) -> float:
        """Waiting for other ranks on the way: upstream and downstream together."""
        return self.upstream_s + self.downstream_s


_PARTS = [field.name for field in fields(RankReport)[2:]]


@dataclass(frozen=True)
class Report:
    """The last step, on all ranks.

    Attributes:
        ranks: by rank.
        bubble_measured: by rank, 1 - what its actions took (computing, and moving activations to
            the host and back) / the time from the first one's start on any rank to the last one's
            end on any.
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
        transfer_hidden: by rank, the share of its transfers' time in which it computed; None where
            that isn't known. See Trace.transfers.
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
    transfer_hidden: list[float | None]

    def __str__(self) -> str:
        heads = [f"{part.removesuffix('_s')} ms" for part in _PARTS]
        head = "  ".join(["rank", *heads, "bubble measured  predicted"])
        columns = list(zip(_PARTS, map(len, heads), strict=True))
        rows = [
            "  ".join(
                [
                    f"{r.rank:4}",
                    *(f"{getattr(r, part) * 1e3:{width}.3f}" for part, width in columns),
                    f"{measured:15.1%}  {predicted:9.1%}",
                ]
            )
            for r, measured, predicted in zip(
                self.ranks, self.bubble_measured, self.bubble_predicted, strict=True
            )
        ]
        foot = f"step {self.step_s * 1e3:.3f} ms, {self.predicted_step_s * 1e3:.3f} ms predicted"
        held = table(self.memory) if self.memory else []
        lines = [head, *rows, foot, *held, *self._edges(), *self._hidden(), *self._notes()]
        return "\n".join(lines)

    def _hidden(self) -> Iterator[str]:
        shares = [
            f"{share:.1%} on rank {rank.rank}"
            for rank, share in zip(self.ranks, self.transfer_hidden, strict=True)
            if share is not None
        ]
        if shares:
            yield f"transfers hidden behind compute: {', '.join(shares)}"

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


def report_rank(trace: Trace, rank: RankPass, last_done: float) -> RankReport:
    """One rank's part, in a trace of all ranks.

    Args:
        trace: of all ranks.
        rank: which.
        last_done: when the last rank's last instruction was done.
    """
    parts = dict.fromkeys(_PARTS, 0.0)
    at = rank.begun
    all_events = trace.events_of(rank.rank)
    events = [event for event in all_events if not trace.is_beside(event)]
    for event, following in zip_longest(events, events[1:]):
        parts["host_s"] += event.issued - at
        runs = [event, following] if event.is_joint else [event]
        awaits_move = any(trace.is_beside(all_events[i]) for i in event.waits)
        reads = [(each, trace.sender_of(each)) for run in runs for each in run.reads]
        for part, seconds in _split(event, reads, awaits_move):
            parts[part] += seconds
        at = event.ended
    all_done = min(max(last_done, rank.done), rank.ended)
    parts["end_s"] += all_done - rank.done
    parts["host_s"] += (rank.done - at) + (rank.ended - all_done)
    return RankReport(rank=rank.rank, step_s=rank.ended - rank.begun, **parts)


def _split(
    event: TraceEvent,
    reads: Sequence[tuple[Message, TraceEvent | None]],
    awaits_move: bool,
) -> Iterator[tuple[str, float]]:
    """The time of one instruction, by the parts that it belongs to.

    Args:
        event: the instruction.
        reads: the messages that it and the one that is joint with it read; each with its send.
        awaits_move: whether it waits for a transfer of its own rank, on a lane beside it.
    """
    waited, took = event.started - event.issued, event.ended - event.started
    if event.kind == "run":
        yield "compute_s", took
        sends = [
            (event.started if sent is None else sent.issued, message.peer_is(event.rank))
            for message, sent in reads
        ]
        if not sends:
            yield "transfer_s" if awaits_move else "host_s", waited
            return
        # Until the last one was sent it was the peer's time; from then on the transfer's.
        left, peer_is = max(sends)
        left = min(max(left, event.issued), event.started)
        yield f"{peer_is}_s", left - event.issued
        yield "transfer_s", event.started - left
    elif event.kind == "release":
        yield f"{event.peer_is}_s", waited
        yield "host_s", took
    else:
        yield "transfer_s", waited + took


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
    trace: Trace,
    memory: Sequence[dict[str, Any]],
    stages_of: Sequence[dict[str, Any]],
    schedule: Schedule,
) -> Report:
    """Puts the parts of all ranks together.

    Args:
        trace: of all ranks.
        memory: what `summarize_memory` gave on each rank.
        stages_of: what `summarize_stages` gave in each process.
        schedule: the schedule that ran.
    """
    last_done = max(rank.done for rank in trace.ranks)
    ranks = [report_rank(trace, rank, last_done) for rank in trace.ranks]
    costs = stage_costs([trace], schedule, fmean)
    predicted = schedule if trace.training else schedule.forward_only()
    timeline = predicted.simulate(costs, messages=False)
    transfers = [trace.transfers(rank.rank) for rank in trace.ranks]
    unsplit: dict[int, list[UnsplitNode]] = {}
    for stage, name, reason in sorted(node for part in stages_of for node in part["unsplit"]):
        unsplit.setdefault(stage, []).append(UnsplitNode(name, reason))
    return Report(
        ranks=ranks,
        bubble_measured=list(trace.timeline().bubble),
        bubble_predicted=list(timeline.bubble),
        step_s=max(r.step_s for r in ranks),
        predicted_step_s=timeline.makespan,
        costs=costs,
        memory=put_together(memory, trace, schedule, timeline) if trace.training else [],
        unsplit=unsplit,
        stage_kinds=dict(sorted(kind for part in stages_of for kind in part["kinds"])),
        recomputed=sorted(stage for part in stages_of for stage in part["recomputed"]),
        transports=sorted(
            {EdgeTransport(**edge) for part in stages_of for edge in part["transports"]},
            key=lambda edge: (edge.source, edge.destination),
        ),
        transfer_hidden=[None if took is None else took.share for took in transfers],
    )
