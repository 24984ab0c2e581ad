"""A trace in Chrome's trace-event format, which ui.perfetto.dev reads."""

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipert.trace import Trace, TraceEvent

_Record = dict[str, Any]


def write_chrome(trace: "Trace", path: str | os.PathLike[str]) -> None:
    """Writes the whole trace to a file."""
    content = {"traceEvents": list(_records(trace)), "displayTimeUnit": "ms"}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


def _records(trace: "Trace") -> Iterator[_Record]:
    for rank in trace.ranks:
        yield _metadata("process_name", rank.rank, name=f"rank {rank.rank}")
        yield _metadata("process_sort_index", rank.rank, sort_index=rank.rank)
        events = trace.events_of(rank.rank)
        lanes = _lanes(events)
        for lane, track in lanes.items():
            yield _metadata("thread_name", rank.rank, track, name=lane)
            yield _metadata("thread_sort_index", rank.rank, track, sort_index=track)
        for at, event in enumerate(events):
            yield from _instruction(event, at, events, lanes[event.lane])
        yield from _arrivals(trace, events, lanes)
    yield from _arrows(trace)


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
        what = f"wait for {event.message}" if event.message is not None else "begin"
        wait = _slice(what, event, track, event.issued, event.started)
        yield {**wait, "cat": "wait", "args": args}
    begin = event.issued if event.kind == "release" else event.started
    yield {**_slice(event.name, event, track, begin, event.ended), "args": args}


def _arrivals(
    trace: "Trace", events: "list[TraceEvent]", lanes: dict[str, int]
) -> Iterator[_Record]:
    """On the receive lanes: the message that comes next, until it is read."""
    posts = {event.message: event for event in events if event.kind == "recv"}
    busy: dict[str, float] = {}  # by lane, until when its last slice goes
    for event in events:
        if event.kind != "run" or event.message is None:
            continue
        post = posts[event.message]
        sent = trace.send_of(event)
        begin = post.issued if sent is None else sent.issued
        begin = min(max(begin, busy.get(post.lane, begin)), event.started)
        busy[post.lane] = event.started
        arrival = _slice(str(event.message), event, lanes[post.lane], begin, event.started)
        args = {"posted": _microseconds(post.issued), "slot": event.slot, "peer": event.peer}
        yield {**arrival, "cat": "message", "args": args}


def _arrows(trace: "Trace") -> Iterator[_Record]:
    """From each send to the arrival, and on to the run that reads it."""
    tracks = {rank.rank: _lanes(trace.events_of(rank.rank)) for rank in trace.ranks}
    number = 0
    for event in trace.events:
        sent = trace.send_of(event)
        if event.kind != "run" or sent is None or event.message is None:
            continue
        number += 1
        message = event.message
        arrival = f"receive {message.source}->{message.destination}"
        started = _microseconds(event.started)
        for phase, rank, lane, when in (
            ("s", sent.rank, sent.lane, min(_microseconds(sent.issued), started)),
            ("t", event.rank, arrival, started),
            ("f", event.rank, event.lane, started),
        ):
            arrow = {
                "ph": phase,
                "id": number,
                "name": message.kind,
                "cat": "message",
                "pid": rank,
                "tid": tracks[rank][lane],
                "ts": when,
            }
            yield {**arrow, "bp": "e"} if phase == "f" else arrow
