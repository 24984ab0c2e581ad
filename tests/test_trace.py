"""What the ranks did in a pass, as data: the ring, the waits, the parts of the time.

Traces made by hand come from `trace_of`: their arithmetic has exact answers.
"""

import json
import threading
import time
from collections import defaultdict
from itertools import pairwise

import pytest
import torch
from plain_loop import batch, mlp
from torch import nn

import pipert
from pipert.reports.clocks import Clock
from pipert.reports.gathering import _pack, _unpack
from pipert.reports.measured_costs import measured_costs
from pipert.reports.report import report_rank

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss
PARTS = ("compute_s", "transfer_s", "upstream_s", "downstream_s", "end_s", "host_s")


def make_pipe(schedule="1f1b", num_stages=2, num_microbatches=4, **options):
    return pipert.Pipeline(
        pipert.split(mlp(4), num_stages),
        schedule=schedule,
        num_microbatches=num_microbatches,
        loss_fn=mse,
        **options,
    )


def trace_of(schedule, times, ends=()):
    """A trace of a schedule, by hand.

    Args:
        schedule: a Schedule.
        times: of each rank, (issued, started, ended) in seconds of each instruction of its program.
        ends: of each rank, (begun, done, ended); by default 0, and its last instruction's end.
    """
    ns = 1_000_000_000
    raw = []
    for rank, rows in enumerate(times):
        begun, done, ended = ends[rank] if ends else (0, rows[-1][2], rows[-1][2])
        events = [(*(round(t * ns) for t in row), 0) for row in rows]
        raw.append((rank, True, begun * ns, done * ns, ended * ns, events))
    return pipert.Trace(raw, dict(enumerate(pipert.lower(schedule))))


# --- the ring -----------------------------------------------------------------------------------


def test_the_last_passes_are_kept_newest_first():
    x, y = batch(8)
    with make_pipe(trace=3) as pipe:
        pipe.evaluate(x, target=y)
        for _ in range(4):
            pipe.step(x, target=y)
        pipe.evaluate(x, target=y)
        traces = [pipe.trace(ago=ago) for ago in range(3)]
        assert [trace.training for trace in traces] == [False, True, True]
        for later, earlier in pairwise(traces):
            assert later.origin_ns > earlier.origin_ns
        assert len(traces[1].events) == sum(map(len, pipe.program))
        for ago in (3, -1, True, "last"):
            with pytest.raises(ValueError, match="ago must be from 0 to 2"):
                pipe.trace(ago=ago)


def test_a_failed_pass_is_not_kept_and_those_before_it_are():
    x, y = batch(8)
    with make_pipe(trace=2) as pipe:
        pipe.step(x, target=y)
        first = pipe.trace().origin_ns
        with pytest.raises(pipert.PipelineError):
            pipe.step(x[:, :3], target=y)
        with pytest.raises(ValueError, match="the last pass failed"):
            pipe.trace()
        pipe.step(x, target=y)
        assert pipe.trace(ago=1).origin_ns == first


def test_without_a_trace_steps_are_the_same_and_there_is_nothing_to_show():
    x, y = batch(8)
    with make_pipe(trace="off") as pipe, make_pipe() as traced:
        traced.load_state_dict(pipe.state_dict())
        assert torch.equal(pipe.step(x, target=y).loss, traced.step(x, target=y).loss)
        for look in (pipe.trace, pipe.report, pipe.costs):
            with pytest.raises(ValueError, match="trace='off'"):
                look()


@pytest.mark.parametrize("wrong", [0, -1, True, "all", 1.5, None])
def test_a_trace_is_the_last_off_or_a_number(wrong):
    with pytest.raises(ValueError, match="trace must be 'last', 'off' or how many"):
        make_pipe(trace=wrong)


# --- what an instruction waited for --------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_1f1b", "zb_h1"])
def test_an_event_says_what_it_waited_for_and_where_it_came_from(schedule):
    x, y = batch(8)
    stages = 4 if schedule == "interleaved_1f1b" else 2
    with make_pipe(schedule, stages, num_ranks=2) as pipe:
        pipe.step(x, target=y)
        trace = pipe.trace()
        placement = pipe.schedule.placement
        for event in trace.events:
            for other in event.waits:
                assert trace.events_of(event.rank)[other].ended <= event.ended
            if event.kind != "run" or event.action.kind not in "FBI":
                continue
            towards = -1 if event.action.kind == "F" else 1
            source = event.action.stage + towards
            if not 0 <= source < placement.num_stages:
                assert event.message is None
                continue
            assert event.peer == placement.rank_of(source)
            assert event.message.stage == source
            assert event.message.microbatch == event.action.microbatch
            assert event.peer_is == ("upstream" if towards < 0 else "downstream")
            sent = trace.send_of(event)
            assert sent.rank == event.peer
            assert sent.issued <= event.started
            assert sent.bytes == 2 * 8 * 4  # rows, width, float32
            assert sent.lane == f"send {event.peer}->{event.rank}"


def test_marks_lead_from_a_send_to_its_run_and_from_a_receive_to_the_one_that_freed_its_slot():
    x, y = batch(8)
    with make_pipe() as pipe:
        pipe.step(x, target=y)
        events = pipe.trace().events_of(0)
    for event in events:
        before = [events[at] for at in event.waits]
        if event.kind == "send":
            assert [str(each.action) for each in before] == [f"0F{event.message.microbatch}"]
        if event.kind == "release":
            assert [each.name for each in before] == [f"send {event.message}"]


# --- where the time went -------------------------------------------------------------------------

TWO = pipert.Schedule.build("gpipe", num_ranks=2, num_microbatches=1)


def two_ranks(last_release=(8.5, 8.5, 8.5)):
    """Rank 0: recv, run 0F0, send, run 0B0, release. Rank 1: recv, run 1F0, run 1B0, send, release.

    Checked by the test below.
    """
    first = [(1, 1, 1), (1, 1, 3), (3, 3, 3.5), (3.5, 9, 10), (10, 10, 10)]
    second = [(0.5, 0.5, 1), (1, 4, 6), (6, 6, 8), (8, 8, 8.5), last_release]
    kinds = [[each["kind"] for each in program.instructions] for program in pipert.lower(TWO)]
    rows = [
        [
            rows.pop(next(i for i, (_, kind) in enumerate(rows) if kind == wanted))[0]
            for wanted in order
        ]
        for order, rows in zip(
            kinds,
            (
                list(zip(first, ("recv", "run", "send", "run", "release"), strict=True)),
                list(zip(second, ("recv", "run", "run", "send", "release"), strict=True)),
            ),
            strict=True,
        )
    ]
    return trace_of(TWO, rows, ends=[(0, 10, 12), (0, last_release[2], 12)])


def test_waiting_is_the_peers_time_until_it_sends_and_the_transfers_from_then_on():
    trace = two_ranks()
    first, second = (report_rank(trace, rank, 10.0) for rank in trace.ranks)
    assert [getattr(first, part) for part in PARTS] == pytest.approx(
        [3, 0.5 + 1, 0, 8 - 3.5, 0, 1 + 2]  # 0B0 waits from 3.5 to 8, when 1B0's gradient leaves
    )
    assert [getattr(second, part) for part in PARTS] == pytest.approx(
        [4, 0.5 + 1 + 0.5, 2, 0, 1.5, 0.5 + 2]  # 1F0 waits from 1 to 3, when 0F0's leaves
    )
    assert first.step_s == second.step_s == 12
    assert first.wait_s == first.downstream_s


ONE_F_ONE_B = pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=8)
OFFLOADED = pipert.Schedule.build("gpipe", num_ranks=2, num_microbatches=8).with_offload(ahead=0)


def with_recomputation(schedule):
    """The same, with an R right before each B."""
    rows = []
    for actions in schedule.actions:
        rows.append(row := [])
        for action in map(str, actions):
            row += [action.replace("B", "R"), action] if "B" in action else [action]
    return pipert.Schedule(rows)


def test_a_release_that_waits_is_the_time_of_the_rank_that_has_not_taken_the_message():
    forwards = TWO.forward_only()
    first = [(0, 0, 2), (2, 2, 3), (3, 7, 7.5)]  # run, send, release
    second = [(0, 0, 0.5), (0.5, 3, 7)]  # receive, run
    trace = trace_of(forwards, [first, second])
    activation = report_rank(trace, trace.ranks[0], 7.5)
    assert [getattr(activation, part) for part in PARTS] == pytest.approx([2, 1, 0, 4, 0, 0.5])
    gradients = two_ranks(last_release=(8.5, 9.5, 9.75))
    gradient = report_rank(gradients, gradients.ranks[1], 10)
    assert gradient.upstream_s == pytest.approx(2 + 1)
    assert gradient.downstream_s == 0


def side_by_side(forward, backward):
    other = threading.Thread(target=backward)
    other.start()
    forward()
    other.join()


@pytest.mark.parametrize(
    ("schedule", "stages", "options"),
    [
        ("1f1b", 2, {}),
        ("gpipe", 3, {}),
        ("interleaved_1f1b", 4, {"num_ranks": 2}),
        ("zb_v", 4, {"num_ranks": 2}),
        ("dualpipe_v", 4, {"num_ranks": 2, "overlap_fn": lambda f, b: (b(), f())}),
        ("chimera", 2, {}),
        ("dualpipe", 2, {}),
        ("dualpipe", 2, {"overlap_fn": side_by_side}),
        (OFFLOADED, 2, {}),
        (with_recomputation(ONE_F_ONE_B), 2, {}),
        ("zb_h1", 2, {"recompute": "all"}),
        ("1f1b", 2, {"network": pipert.Costs(latency=1e-3)}),
    ],
)
def test_the_parts_add_up_to_the_steps_wall_time_on_every_rank(schedule, stages, options):
    x, y = batch(16)
    with make_pipe(schedule, stages, 8, **options) as pipe:
        for run in (pipe.step, pipe.step, pipe.evaluate):
            called = time.monotonic_ns()
            run(x, target=y)
            returned = time.monotonic_ns()
            report, trace = pipe.report(), pipe.trace()
            assert [rank.rank for rank in report.ranks] == list(range(pipe.schedule.num_ranks))
            for rank, frame in zip(report.ranks, trace.ranks, strict=True):
                parts = [getattr(rank, part) for part in PARTS]
                assert min(parts) >= -1e-12
                assert sum(parts) == pytest.approx(rank.step_s, rel=0.02)
                assert called <= trace.origin_ns + round(frame.begun * 1e9)
                assert trace.origin_ns + round(frame.ended * 1e9) <= returned
                runs = [e for e in trace.events_of(rank.rank) if e.kind == "run"]
                assert rank.compute_s == pytest.approx(sum(e.ended - e.started for e in runs))


def test_moves_to_the_host_are_transfer_and_no_bubble():
    x, y = batch(16)
    with make_pipe(OFFLOADED, 2, 8) as pipe:
        pipe.step(x, target=y)
        report, trace = pipe.report(), pipe.trace()
    actions = [event for event in trace.events if event.action is not None]
    makespan = max(e.ended for e in actions) - min(e.started for e in actions)
    for rank, bubble in zip(report.ranks, report.bubble_measured, strict=True):
        moves = [e for e in trace.events_of(rank.rank) if e.kind == "move"]
        assert moves
        moving = sum(e.ended - e.started for e in moves)
        assert rank.transfer_s >= moving
        assert bubble == pytest.approx(1 - (rank.compute_s + moving) / makespan)


def test_the_bubble_is_predicted_from_the_stage_times_of_that_very_step():
    x, y = batch(8)
    with make_pipe() as pipe:
        pipe.step(x, target=y)
        report, trace = pipe.report(), pipe.trace()
    forwards = [
        e.ended - e.started for e in trace.events if e.kind == "run" and str(e.action)[:2] == "1F"
    ]
    assert report.costs.forward[1] == pytest.approx(sum(forwards) / 4)
    expected = pipe.schedule.simulate(report.costs)
    assert report.bubble_predicted == expected.bubble
    assert report.predicted_step_s == expected.makespan
    assert report.bubble_measured == trace.timeline().bubble


# --- costs ---------------------------------------------------------------------------------------


def test_costs_are_medians_of_all_steps_in_the_trace():
    x, y = batch(8)
    with make_pipe(trace=8) as pipe:
        for _ in range(3):
            pipe.step(x, target=y)
        pipe.evaluate(x, target=y)  # doesn't count
        costs = pipe.costs()
        traces = [pipe.trace(ago=ago) for ago in (1, 2, 3)]
        took = sorted(
            e.ended - e.started for t in traces for e in t.events if str(e.action)[:2] == "0B"
        )
        assert costs.input[0] == costs.weight[0] == pytest.approx((took[5] + took[6]) / 4)
        assert costs.bytes == [64.0, 0.0]
        assert costs.gradient_bytes == [64.0, 0.0]
        assert None in costs.latency
        assert pipe.schedule.simulate(costs).makespan > 0
        found = pipert.Schedule.search(costs, 2, 4, iterations=10)
        assert found.schedule.num_microbatches == 4


def test_a_split_backward_is_measured_in_its_halves():
    x, y = batch(8)
    with make_pipe("zb_h1") as pipe:
        pipe.step(x, target=y)
        costs = pipe.costs()
        halves = defaultdict(list)
        for event in pipe.trace().events:
            if event.action is not None and event.action.stage == 1:
                halves[event.action.kind].append(event.ended - event.started)
    for kind, cost in (("F", costs.forward), ("I", costs.input), ("W", costs.weight)):
        middle = sorted(halves[kind])
        assert cost[1] == pytest.approx((middle[1] + middle[2]) / 2)


def test_an_edges_latency_is_that_of_messages_that_were_waited_for():
    costs = measured_costs([two_ranks()], TWO)
    assert costs.forward == pytest.approx([2, 2])
    assert costs.input == costs.weight == pytest.approx([0.5, 1])
    assert costs.latency == pytest.approx({(0, 1): 0.5, (1, 0): 0.5, None: 0.5})


def test_a_slow_links_latency_is_measured_and_counts_as_transfer():
    x, y = batch(8)
    with make_pipe(network=pipert.Costs(latency=0.01)) as pipe:
        pipe.step(x, target=y)
        costs, report = pipe.costs(), pipe.report()
    assert all(latency >= 0.0099 for latency in costs.latency.values())
    assert all(rank.transfer_s >= 0.0099 for rank in report.ranks)


def test_costs_need_a_step():
    x, y = batch(8)
    with make_pipe() as pipe:
        with pytest.raises(ValueError, match="no pass has run yet"):
            pipe.costs()
        pipe.evaluate(x, target=y)
        with pytest.raises(ValueError, match="the trace has evaluations, and no step"):
            pipe.costs()


# --- gathering -----------------------------------------------------------------------------------


def test_packed_traces_come_back_in_the_time_of_rank_0():
    raw = (1, True, 1000, 1900, 2000, [(1100, 1150, 1300, 0), (1300, 1300, 1900, 64)])
    packed = json.loads(json.dumps(_pack(raw)))
    assert _unpack(packed, Clock(0, 0)) == raw
    earlier = (1, True, 900, 1800, 1900, [(1000, 1050, 1200, 0), (1200, 1200, 1800, 64)])
    assert _unpack(packed, Clock(100, 5)) == earlier


def test_in_one_process_all_ranks_are_here():
    x, y = batch(8)
    with make_pipe() as pipe:
        pipe.step(x, target=y)
        assert pipe.trace(all_ranks=True).events == pipe.trace().events


# --- a device's own times -------------------------------------------------------------------------


def device_timed(rows_of, device_timed=(0, 1)):
    """A trace of gpipe's one microbatch whose ranks' devices took the times, by kind of event."""
    times = [
        [rows_of[rank].pop(0) for _ in program.instructions]
        for rank, program in enumerate(pipert.lower(TWO))
    ]
    by_hand = trace_of(TWO, times, ends=[(0, 10, 12), (0, 10, 12)])
    ns = 1_000_000_000
    raw = [
        (
            frame.rank,
            True,
            0,
            round(frame.done * ns),
            round(frame.ended * ns),
            [
                (*(round(t * ns) for t in (e.issued, e.started, e.ended)), 0)
                for e in by_hand.events_of(frame.rank)
            ],
        )
        for frame in by_hand.ranks
    ]
    programs = dict(enumerate(pipert.lower(TWO)))
    return pipert.Trace(raw, programs, device_timed=device_timed)


def rows_in_order(rank, rows):
    """By the kinds of the rank's program; `rows`: {kind: rows in order}."""
    kinds = [each["kind"] for each in pipert.lower(TWO)[rank].instructions]
    return [rows[kind].pop(0) for kind in kinds]


def two_devices():
    """0F0 runs from 1 to 3, its message is there at 4, 1F0 runs from 4 to 6, 1B0 from 6 to 8, the
    gradient is there at 8.5 and 0B0 runs from 9 to 10.
    """
    first = rows_in_order(
        0,
        {
            "recv": [(8.5, 8.5, 8.5)],
            "run": [(1, 1, 3), (3, 9, 10)],
            "send": [(3, 3, 3)],
            "release": [(10, 10, 10)],
        },
    )
    second = rows_in_order(
        1,
        {
            "recv": [(4, 4, 4)],
            "run": [(1, 4, 6), (6, 6, 8)],
            "send": [(8, 8, 8)],
            "release": [(8, 8, 8)],
        },
    )
    return device_timed([first, second])


def test_a_message_on_a_device_begins_when_it_was_sent_and_ends_when_it_was_there():
    trace = two_devices()
    spans = {e.rank: (e.started, e.ended) for e in trace.events if e.kind == "recv"}
    assert spans == {0: (8, 8.5), 1: (3, 4)}
    assert trace.transfers(0).took == pytest.approx(0.5)
    assert trace.transfers(0).share == 0.0


def test_what_runs_beside_compute_takes_none_of_a_ranks_time():
    trace = two_devices()
    first, second = (report_rank(trace, rank, 10.0) for rank in trace.ranks)
    assert [getattr(first, part) for part in PARTS] == pytest.approx([3, 1, 0, 8 - 3, 0, 1 + 2])
    assert [getattr(second, part) for part in PARTS] == pytest.approx([4, 1, 2, 0, 0, 1 + 2 + 2])
    assert trace.timeline().bubble == pytest.approx([1 - 3 / 9, 1 - 4 / 9])


def test_a_transfer_is_hidden_as_far_as_its_reader_computes():
    trace = two_devices()
    moved = [
        e._replace(started=2.5, ended=4.0) if e.kind == "recv" and e.rank == 1 else e
        for e in trace.events
    ]
    trace.events[:] = [
        e._replace(started=3.5) if e.kind == "run" and e.rank == 1 and e.started == 4 else e
        for e in moved
    ]
    hidden = trace.transfers(1)
    assert hidden.took == pytest.approx(1.5)
    assert hidden.hidden == pytest.approx(0.5)
    assert hidden.share == pytest.approx(1 / 3)


def test_on_the_cpu_the_hosts_times_are_the_devices():
    x, y = batch(8)
    with make_pipe(device_times=True) as pipe:
        pipe.step(x, target=y)
        trace, report = pipe.trace(), pipe.report()
    assert trace.device_timed == frozenset()
    assert trace.transfers(0) is None
    assert report.transfer_hidden == [None, None]
    assert "hidden" not in str(report)


def test_device_times_is_a_flag():
    with pytest.raises(TypeError, match="device_times must be True or False, got 1"):
        make_pipe(device_times=1)
