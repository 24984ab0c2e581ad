"""Trace: when each instruction of a pass was issued, started and ended, and what it waited for."""

import os
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from pipert._C import Action, Program, Timeline
from pipert.reports.chrome import write_chrome

# (rank, whether it trained, begun, done, ended, [(issued, started, ended, bytes), ...]) in
# nanoseconds, as _C gives it.
RawTrace = tuple[int, bool, int, int, int, list[tuple[int, int, int, int]]]


class Message(NamedTuple):
    """What one rank sends to another, named after the action that made it.

    Attributes:
        kind: "activation" or "gradient".
        stage: that made it.
        microbatch: of which.
        source: the rank that sends it.
        destination: the rank that gets it.
    """

    kind: str
    stage: int
    microbatch: int
    source: int
    destination: int

    def __str__(self) -> str:
        return f"{self.kind} of stage {self.stage}, microbatch {self.microbatch}"

    def peer_is(self, rank: int) -> str:
        """Where the other end of it is for `rank`: "upstream" if its stage is earlier, or not."""
        sends_on = (self.kind == "activation") == (self.source == rank)
        return "downstream" if sends_on else "upstream"


class TraceEvent(NamedTuple):
    """One instruction of a pass, times in seconds from its begin on the first rank that began.

    Attributes:
        rank: that ran it.
        kind: "recv", "run", "send", "release" or "move".
        action: of a "run" or a "move"; else None.
        lane: that it is on: "compute", "offload", "reload", or the way of an edge, "send 0->1".
        issued: the rank came to it.
        started: what it waited for was there.
        ended: it was done, as far as the rank's thread is concerned.
        message: that it posts, sends or releases, or the first that a run reads; else None.
        reads: the messages of other ranks that a run reads, the nearest stage's first.
        slot: of the message, among those of its edge on this rank; None where there is none.
        waits: the instructions of this rank whose marks it waits for, by position.
        bytes: of the tensors that a "send" sent.
        is_joint: whether the next one is a run that went along with it, once both had what they
            read: the halves of an overlapped pair, with `overlap_fn`.
    """

    rank: int
    kind: str
    action: Action | None
    lane: str
    issued: float
    started: float
    ended: float
    message: Message | None
    reads: tuple[Message, ...]
    slot: int | None
    waits: tuple[int, ...]
    bytes: int
    is_joint: bool

    @property
    def peer(self) -> int | None:
        """The rank at the other end of the message; None where there is none."""
        if self.message is None:
            return None
        is_mine = self.message.source == self.rank
        return self.message.destination if is_mine else self.message.source

    @property
    def peer_is(self) -> str | None:
        """Where the peer stands: "upstream" if it has the earlier stage, else "downstream"."""
        return None if self.message is None else self.message.peer_is(self.rank)

    @property
    def name(self) -> str:
        """In words: the action, or what happens to the message."""
        return str(self.action) if self.action is not None else f"{self.kind} {self.message}"


class Transfers(NamedTuple):
    """The time that a rank's messages and moves were on their way, on their lanes.

    Attributes:
        took: seconds, each transfer's added up: a message's from when it was sent, and those before
            it on its lane were there, until it was there.
        hidden: of them, those in which the rank computed.
    """

    took: float
    hidden: float

    @property
    def share(self) -> float:
        """The hidden part, from 0 to 1."""
        return self.hidden / self.took


class RankPass(NamedTuple):
    """The frame of one rank's pass, times as in TraceEvent.

    Attributes:
        rank: position in the pipeline group.
        begun: the caller, in the rank's process, called `step` or `evaluate`.
        done: the rank's last instruction was done.
        ended: the caller had its result.
    """

    rank: int
    begun: float
    done: float
    ended: float


class Trace:
    """What the ranks did in one pass: those of this process, or all.

    Attributes:
        events: a list of TraceEvent, by rank and in order. The halves of a pair that ran jointly
            stand one after the other, and share the time that it took.
        ranks: a list of RankPass.
        training: whether it was a step, or an evaluation.
        peak_activations: {rank: the most (stage, microbatch) pairs that held activations at once},
            counted in the stages while they ran; empty for a pass before the last.
            `Program.peak_activations` is the promise.
        origin_ns: what time.monotonic_ns() showed at time 0, in the process of rank 0 if it is in
            the trace.
        device_timed: ranks whose times are their device's own: when it ran their actions and moves,
            and when messages were there. Posting, sending and releasing then take no time.
        clock_error_s: how far the clocks of two ranks may be apart, in seconds; 0 on one host.
    """

    def __init__(
        self,
        raw: Sequence[RawTrace],
        programs: Mapping[int, Program],
        peak_activations: Mapping[int, int] | None = None,
        clock_error_s: float = 0.0,
        device_timed: Collection[int] = (),
    ) -> None:
        self.device_timed = frozenset(device_timed)
        self.peak_activations = dict(peak_activations or {})
        self.clock_error_s = clock_error_s
        raw = sorted(raw, key=lambda each: each[0])
        self.origin_ns = origin = min(begun for _, _, begun, *_ in raw)
        self.training = raw[0][1]
        self.ranks = [
            RankPass(rank, *((t - origin) * 1e-9 for t in times)) for rank, _, *times, _ in raw
        ]
        self.events = [
            _event(rank, planned, measured, origin)
            for rank, *_, events in raw
            for planned, measured in zip(_plan(programs[rank]), events, strict=True)
        ]
        if self.device_timed:
            self._place_transfers()

    def _place_transfers(self) -> None:
        """Lets a message's "recv" begin when it could: a device says when it was there, alone."""
        last: dict[tuple[int, str], float] = {}
        for at, event in enumerate(self.events):
            if event.kind != "recv" or event.rank not in self.device_timed:
                continue
            sent = self.send_of(event)
            lane = (event.rank, event.lane)
            began = event.ended if sent is None else max(sent.ended, last.get(lane, sent.ended))
            began = min(began, event.ended)
            last[lane] = event.ended
            self.events[at] = event._replace(issued=began, started=began)

    @cached_property
    def _sends(self) -> dict[Message, TraceEvent]:
        return {e.message: e for e in self.events if e.kind == "send" and e.message is not None}

    def send_of(self, event: TraceEvent) -> TraceEvent | None:
        """The event that sent the message of `event`; None where its rank isn't in the trace."""
        return None if event.message is None else self.sender_of(event.message)

    def sender_of(self, message: Message) -> TraceEvent | None:
        """The event that sent the message; None where its rank isn't in the trace."""
        return self._sends.get(message)

    def events_of(self, rank: int) -> list[TraceEvent]:
        """Those of one rank, in order."""
        return self._by_rank.get(rank, [])

    @cached_property
    def _by_rank(self) -> dict[int, list[TraceEvent]]:
        events: dict[int, list[TraceEvent]] = {}
        for event in self.events:
            events.setdefault(event.rank, []).append(event)
        return events

    def is_beside(self, event: TraceEvent) -> bool:
        """Whether it ran on a lane of its own, beside compute, and has times of its own for that.

        With the device's times, moves to the host and back, and messages ("recv"), do.
        """
        return event.rank in self.device_timed and event.kind in ("recv", "move")

    def transfers(self, rank: int) -> "Transfers | None":
        """What a rank's messages and moves took, and how much of it compute hid.

        None where the device's times were not taken, or the rank got and moved nothing.
        """
        events = self.events_of(rank)
        spans = [(e.started, e.ended) for e in events if self.is_beside(e) and e.ended > e.started]
        if not spans:
            return None
        computing = [(e.started, e.ended) for e in events if e.kind == "run"]
        hidden = sum(
            max(0.0, min(ended, until) - max(started, begin))
            for started, ended in spans
            for begin, until in computing
        )
        return Transfers(sum(ended - started for started, ended in spans), hidden)

    def timeline(self) -> Timeline:
        """The actions alone, and what they sent each other, to be drawn beside a simulated one."""
        ranks = [
            [e for e in self.events_of(rank.rank) if e.action is not None and not self.is_beside(e)]
            for rank in self.ranks
        ]
        makers = {
            made: (at, position)
            for at, events in enumerate(ranks)
            for position, event in enumerate(events)
            if (made := _made_by(event)) is not None
        }
        messages = [
            (maker, (at, position))
            for at, events in enumerate(ranks)
            for position, event in enumerate(events)
            for message in event.reads
            if (maker := makers.get(message[:3])) is not None
        ]
        return Timeline.from_spans(
            [
                [(e.action, e.started, e.ended) for e in events if e.action is not None]
                for events in ranks
            ],
            messages=messages,
        )

    def to_chrome(self, path: str | os.PathLike[str]) -> None:
        """Writes the trace for ui.perfetto.dev and chrome://tracing: JSON in Chrome's format.

        A process for each rank, a track for each of its lanes, arrows from a send through the
        message's arrival to the action that reads it; each event's arguments say what it waited
        for. A receive lane shows the message that comes next, from when it was sent (as far as the
        sender is in the trace) until it is read.
        """
        write_chrome(self, path)


def _made_by(event: TraceEvent) -> tuple[str, int, int | None] | None:
    """What a run makes for other stages: the kind, stage and microbatch of a message."""
    if event.action is None or event.action.kind not in ("F", "B", "I"):
        return None
    kind = "activation" if event.action.kind == "F" else "gradient"
    return kind, event.action.stage, event.action.microbatch


class _Planned(NamedTuple):
    """What a program says of one instruction; see TraceEvent."""

    kind: str
    action: Action | None
    lane: str
    message: Message | None
    reads: tuple[Message, ...]
    slot: int | None
    waits: tuple[int, ...]
    is_joint: bool


def _event(
    rank: int, planned: _Planned, measured: tuple[int, int, int, int], origin: int
) -> TraceEvent:
    issued, started, ended, size = measured
    return TraceEvent(
        rank=rank,
        kind=planned.kind,
        action=planned.action,
        lane=planned.lane,
        issued=(issued - origin) * 1e-9,
        started=(started - origin) * 1e-9,
        ended=(ended - origin) * 1e-9,
        message=planned.message,
        reads=planned.reads,
        slot=planned.slot,
        waits=planned.waits,
        bytes=size,
        is_joint=planned.is_joint,
    )


def _plan(program: Program) -> list[_Planned]:
    lanes = [_lane_name(lane) for lane in program.lanes]
    slots = program.slots
    instructions = program.instructions
    setters = {op["mark"]: at for at, op in enumerate(instructions)}
    arriving: dict[int, Message] = {}  # by receive slot: what was posted last
    joint = set(program.joint_pairs)
    planned = []
    for at, op in enumerate(instructions):
        message, slot = None, op.get("slot")
        if slot is not None:
            edge = slots[slot]
            message = Message(*op["message"], edge["source"], edge["destination"])
        if op["kind"] == "recv" and message is not None and slot is not None:
            arriving[slot] = message
        received = [read for read in op.get("reads", ()) if slots[read]["kind"] == "receive"]
        if received:
            message, slot = arriving[received[0]], received[0]
        planned.append(
            _Planned(
                kind=op["kind"],
                action=op.get("action"),
                lane=lanes[op["lane"]],
                message=message,
                reads=tuple(arriving[read] for read in received),
                slot=None if slot is None else slots[slot]["index"],
                waits=tuple(setters[mark] for mark in op["waits"]),
                is_joint=at in joint,
            )
        )
    return planned


def _lane_name(lane: Any) -> str:
    kind: str = lane["kind"]
    is_edge = kind in ("send", "receive")
    return f"{kind} {lane['source']}->{lane['destination']}" if is_edge else kind
