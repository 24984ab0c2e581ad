"""Chrome's trace-event format: what the format asks for, and what its viewers make of it."""

import json
from collections import defaultdict
from itertools import pairwise

import pytest
from plain_loop import batch, mlp
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(60)


def check_chrome(records):
    """What the format asks for, and what its viewers need to draw it. Returns {id: slices}."""
    slices, named, last = defaultdict(list), set(), 0.0
    for record in records:
        assert isinstance(record["name"], str)
        assert isinstance(record["pid"], int)
        assert isinstance(record["tid"], int)
        track = (record["pid"], record["tid"])
        phase = record["ph"]
        assert phase in "MXistf"
        if phase == "M":
            assert last == 0.0, "a name comes behind an event"
            if record["name"] == "thread_name":
                assert isinstance(record["args"]["name"], str)
                named.add(track)
            continue
        assert track in named, "an event comes before its track's name"
        assert record["ts"] >= last, "out of order"
        last = record["ts"]
        if phase == "X":
            assert record["dur"] >= 0
            slices[track].append((record["ts"], record["ts"] + record["dur"]))
        if phase == "i":
            assert record["s"] == "t"
    for of_track in slices.values():  # viewers stack what is nested and drop what overlaps
        for before, after in pairwise(sorted(of_track)):
            assert before[1] <= after[0] + 1e-6
    return hang(records)


def hang(records):
    """{id: the slices that an arrow hangs on}, as Perfetto has it.

    It takes records one at a time: an arrow's begin and its steps go to the slice that began last
    on their track, its end to the next that begins.
    """
    top, arrows, pending = {}, {}, defaultdict(list)
    for record in records:
        track = (record["pid"], record["tid"])
        if record["ph"] == "X":
            top[track] = record
            for arrow in pending.pop(track, ()):
                arrow.append(record)
        elif record["ph"] == "s":
            assert record["id"] not in arrows
            arrows[record["id"]] = [top[track]]
        elif record["ph"] == "t":
            arrows[record["id"]].append(top[track])
        elif record["ph"] == "f":
            assert "bp" not in record
            pending[track].append(arrows[record["id"]])
    assert not pending
    return arrows


def traced(schedule, stages):
    """A pipeline of one step, and what it gave."""
    pipe = pipert.Pipeline(
        pipert.split(mlp(4), stages),
        schedule=schedule,
        num_ranks=min(2, stages),
        num_microbatches=4,
        loss_fn=nn.functional.mse_loss,
    )
    x, y = batch(8)
    pipe.step(x, target=y)
    return pipe


def records_of(trace, path):
    trace.to_chrome(path)
    content = json.loads(path.read_text())
    assert content["displayTimeUnit"] == "ms"
    return content["traceEvents"]


@pytest.mark.parametrize(
    ("schedule", "stages"), [("1f1b", 2), ("interleaved_1f1b", 4), ("zb_v", 4), ("gpipe", 1)]
)
def test_chromes_form_has_tracks_for_lanes_and_arrows_between_ranks(tmp_path, schedule, stages):
    with traced(schedule, stages) as pipe:
        trace = pipe.trace()
    records = records_of(trace, tmp_path / "trace.json")
    arrows = check_chrome(records)
    assert len(arrows) == sum(event.kind == "send" for event in trace.events)
    for send, *arrival, run in arrows.values():
        message = send["args"]["message"]
        assert send["name"] == f"send {message}"
        assert [each["name"] for each in arrival] == [message]
        assert run["cat"] == "run"
        assert run["args"]["message"] == message
        assert send["pid"] == run["args"]["peer"]
        assert {each["pid"] for each in arrival} == {run["pid"]}
    for rank in trace.ranks:
        tracks = {
            r["args"]["name"]
            for r in records
            if r["name"] == "thread_name" and r["pid"] == rank.rank
        }
        assert {event.lane for event in trace.events_of(rank.rank)} <= tracks
    actions = [r["name"] for r in records if r["ph"] == "X" and r["cat"] == "run"]
    assert sorted(actions) == sorted(str(e.action) for e in trace.events if e.kind == "run")
    for record in records:
        if record["ph"] == "X" and record["cat"] == "wait" and "message" in record["args"]:
            assert record["args"]["peer is"] in ("upstream", "downstream")


def test_no_arrow_goes_back_in_time_where_clocks_disagree(tmp_path):
    with traced("1f1b", 2) as pipe:
        first, (rank, training, *times, events) = pipe._ranks.last_passes().traces()
        late = 10**9  # nanoseconds: rank 0's clock shows more than rank 1's
        second = (
            *(rank, training, *(time - late for time in times)),
            [(*(time - late for time in each[:3]), each[3]) for each in events],
        )
        trace = pipert.Trace([first, second], {p.rank: p for p in pipe.program})
    arrows = check_chrome(records_of(trace, tmp_path / "trace.json"))
    assert {slices[0]["pid"] for slices in arrows.values()} == {1}
    assert len(arrows) == 4
