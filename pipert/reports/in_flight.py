"""How many bytes of messages were on their way at a time: in a trace, and in a simulated step."""

import itertools
from collections.abc import Iterator

from pipert._C import Timeline
from pipert.reports.trace import Message, Trace, TraceEvent


def measured(trace: Trace, rank: int) -> int:
    """The most bytes of messages that `rank` had sent, and not been told that they were read.

    Args:
        trace: of one pass.
        rank: in the trace.
    """
    sent: dict[Message | None, int] = {}
    most = 0
    for event in trace.events_of(rank):
        if event.kind == "send":
            sent[event.message] = event.bytes
            most = max(most, sum(sent.values()))
        elif event.kind == "release":
            del sent[event.message]
    return most


def predicted(trace: Trace, timeline: Timeline, rank: int) -> int:
    """As `measured`, where each message is read, and known to be, as soon as it can be.

    Args:
        trace: of all ranks: which messages there are, and their bytes.
        timeline: of the same actions, simulated.
        rank: in the trace.
    """
    spans = {span.action: span for ranks in timeline.ranks for span in ranks}
    made_by = trace.events_of(rank)
    changes: list[tuple[float, int]] = []
    for reader, send in _read(trace):
        if send.rank != rank or reader.action is None:
            continue
        changes.append((spans[reader.action].start, -send.bytes))
        changes += [
            (spans[action].end, send.bytes)
            for at in send.waits
            if (action := made_by[at].action) is not None
        ]
    # At one time, what comes counts before what goes.
    ordered = sorted(changes, key=lambda change: (change[0], -change[1]))
    return max(itertools.accumulate((size for _, size in ordered), initial=0))


def _read(trace: Trace) -> Iterator[tuple[TraceEvent, TraceEvent]]:
    """Each message's (the run that reads it, its send)."""
    for event in trace.events:
        for message in event.reads:
            send = trace.sender_of(message)
            if send is not None:
                yield event, send
