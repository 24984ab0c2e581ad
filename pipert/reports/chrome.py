"""A trace in Chrome's trace-event format, which ui.perfetto.dev reads.

An arrow has no slice of its own: a viewer hangs its begin ("s") and its steps ("t") on the slice
that began last on their track, and its end ("f") on the next one. So each stands at the begin of
its slice, and records of one time in the order of `_order`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pipert.reports.trace import Message, Trace, TraceEvent

_Record = dict[str, Any]


def write_chrome(trace: "Trace", path: str | os.PathLike[str]) -> None:
    """Writes the whole trace to a file."""
    content = {"traceEvents": list(_records(trace)), "displayTimeUnit": "ms"}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


def _records(trace: "Trace") -> Iterator[_Record]:
    """What names the tracks, then all else by time."""
    timed: list[_Record] = []
    tracks = {rank.rank: _lanes(trace.events_of(rank.rank)) for rank in trace.ranks}
    for rank in trace.ranks:
        yield _metadata("process_name", rank.rank, name=f"rank {rank.rank}")
        yield _metadata("process_sort_index", rank.rank, sort_index=rank.rank)
        for lane, track in tracks[rank.rank].items():
            yield _metadata("thread_name", rank.rank, track, name=lane)
            yield _metadata("thread_sort_index", rank.rank, track, sort_index=track)
        events = trace.events_of(rank.rank)
        for at, event in enumerate(events):
            timed += _instruction(event, at, events, tracks[rank.rank][event.lane])
    for number, arrival in enumerate(_arrivals(trace)):
        timed += _arrival(arrival, number, tracks)
    yield from sorted(timed, key=lambda record: (record["ts"], _order(record)))


def _order(record: _Record) -> int:
    """Of records of one time: an arrow's begin and steps behind their slices, its end before."""
    if record["ph"] in "stf":
        return 1 + "stf".index(record["ph"])
    return 4 if record["cat"] == "run" else 0


def _lanes(events: "list[TraceEvent]") -> dict[str, int]:
    """The track of each lane, the compute lane first."""
    used = dict.fromkeys(["compute", *sorted(event.lane for event in events)])
    return {lane: track for track, lane in enumerate(used)}


def _metadata(what: str, rank: int, track: int = 0, **values: object) -> _Record:
    return {"ph": "M", "name": what, "pid": rank, "tid": track, "args": values}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _slice(name: str, event: "TraceEvent", track: int, begin: float, end: float) -> _Record:
    start = _microseconds(begin)
    return {
        "ph": "X",
        "name": name,
        "cat": event.kind,
        "pid": event.rank,
        "tid": track,
        "ts": start,
        "dur": round(_microseconds(end) - start, 3),
    }


def _instruction(
    event: "TraceEvent", at: int, events: "list[TraceEvent]", track: int
) -> Iterator[_Record]:
    args: _Record = {"instruction": at}
    if event.waits:
        args["waits for"] = [events[other].name for other in event.waits]
    if event.message is not None:
        args |= {"message": str(event.message), "peer": event.peer, "slot": event.slot}
        args["peer is"] = event.peer_is
    if len(event.reads) > 1:
        args["reads"] = [str(message) for message in event.reads]
    if event.kind == "send":
        args["bytes"] = event.bytes
    if event.kind == "recv":  # an instant: the lane's slices are its messages
        yield {
            "ph": "i",
            "s": "t",
            "name": f"post {event.message}",
            "cat": "recv",
            "pid": event.rank,
            "tid": track,
            "ts": _microseconds(event.issued),
            "args": args,
        }
        return
    if event.kind != "release" and event.started > event.issued:
        awaited = ", ".join(map(str, event.reads or filter(None, [event.message])))
        what = f"wait for {awaited}" if awaited else "begin"
        wait = _slice(what, event, track, event.issued, event.started)
        yield {**wait, "cat": "wait", "args": args}
    begin = event.issued if event.kind == "release" else event.started
    yield {**_slice(event.name, event, track, begin, event.ended), "args": args}


class _Arrival(NamedTuple):
    """A message on its receive lane.

    Attributes:
        message: it.
        reader: the run that reads it.
        post: its receive.
        sent: its send; None where the sender isn't in the trace.
        begin: from when it is the one that comes next.
    """

    message: "Message"
    reader: "TraceEvent"
    post: "TraceEvent"
    sent: "TraceEvent | None"
    begin: float


def _arrivals(trace: "Trace") -> Iterator[_Arrival]:
    for rank in trace.ranks:
        events = trace.events_of(rank.rank)
        posts = {event.message: event for event in events if event.kind == "recv"}
        busy: dict[str, float] = {}  # by lane, until when its last slice goes
        for event in events:
            # In the order in which they come, where several come over one edge.
            for message in sorted(event.reads, key=lambda each: posts[each].issued):
                post = posts[message]
                sent = trace.sender_of(message)
                begin = post.issued if sent is None else sent.issued
                begin = min(max(begin, busy.get(post.lane, begin)), event.started)
                busy[post.lane] = event.started
                yield _Arrival(message, event, post, sent, begin)


def _arrival(
    arrival: _Arrival, number: int, tracks: Mapping[int, Mapping[str, int]]
) -> Iterator[_Record]:
    """A slice until the message is read, and an arrow from its send, through it, to the run."""
    message, reader, post, sent, begin = arrival
    here = tracks[reader.rank]
    args = {"posted": _microseconds(post.issued), "slot": post.slot, "peer": message.source}
    shown = _slice(str(message), reader, here[post.lane], begin, reader.started)
    yield {**shown, "cat": "message", "args": args}
    if sent is None or sent.issued > reader.started:  # clocks of two hosts that differ by so much
        return
    steps = [
        ("s", sent.rank, tracks[sent.rank][sent.lane], sent.issued),
        ("t", reader.rank, here[post.lane], begin),
        ("f", reader.rank, here[reader.lane], reader.started),
    ]
    for phase, rank, track, when in steps:
        if phase == "t" and shown["dur"] == 0:
            continue
        yield {
            "ph": phase,
            "id": number,
            "name": message.kind,
            "cat": "message",
            "pid": rank,
            "tid": track,
            "ts": _microseconds(when),
        }
