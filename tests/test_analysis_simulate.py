from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_strategies import good_schedules

from pipert import Costs, Schedule, Timeline

ONE_EACH = [["0F0", "0B0"], ["1F0", "1B0"]]


def times(timeline):
    return [[(str(s.action), s.start, s.end) for s in rank] for rank in timeline.ranks]


def plain_simulation(schedule, forward, input, weight, latency):  # noqa: A002
    """Start times by fixed point: raise every start until nothing changes."""
    length = {"F": forward, "I": input, "W": weight, "B": input + weight}
    place = {str(a): (r, i) for r, rank in enumerate(schedule.actions) for i, a in enumerate(rank)}
    rank_of = schedule.placement.ranks
    start = dict.fromkeys(place, 0.0)

    def inputs(a):
        if a.kind == "F":
            return [f"{a.stage - 1}F{a.microbatch}"] if a.stage else []
        if a.kind == "W":
            return []
        after = [f"{a.stage + 1}{k}{a.microbatch}" for k in "BI"]
        return [text for text in after if text in place]

    changed = True
    while changed:
        changed = False
        for rank in schedule.actions:
            for i, a in enumerate(rank):
                ready = [0.0]
                if i:
                    ready.append(start[str(rank[i - 1])] + length[rank[i - 1].kind])
                for text in inputs(a):
                    stage = a.stage + (-1 if a.kind == "F" else 1)
                    kind = text[len(str(stage))]
                    crosses = rank_of[stage] != rank_of[a.stage]
                    ready.append(start[text] + length[kind] + (latency if crosses else 0.0))
                if max(ready) > start[str(a)]:
                    start[str(a)] = max(ready)
                    changed = True
    return start


@given(good_schedules(), *[st.integers(0, 8) for _ in range(4)])
@settings(deadline=None, max_examples=100)
def test_start_times_are_those_of_a_plain_fixed_point(schedule, forward, input, weight, latency):  # noqa: A002
    costs = Costs(forward=forward, input=input, weight=weight, latency=latency)
    timeline = schedule.simulate(costs)
    found = {str(s.action): s.start for rank in timeline.ranks for s in rank}
    assert found == plain_simulation(schedule, forward, input, weight, latency)


@given(good_schedules(), st.floats(0.1, 10), st.floats(0, 10))
@settings(deadline=None, max_examples=100)
def test_a_timeline_is_consistent(schedule, forward, latency):
    timeline = schedule.simulate(Costs(forward=forward, latency=latency))
    ends = [s.end for rank in timeline.ranks for s in rank]
    starts = [s.start for rank in timeline.ranks for s in rank]
    assert timeline.makespan == pytest.approx(max(ends) - min(starts))
    for rank, spans in enumerate(timeline.ranks):
        assert [s.action for s in spans] == schedule.actions[rank]
        assert timeline.spans[rank] == pytest.approx(spans[-1].end - spans[0].start)
        assert timeline.busy[rank] == pytest.approx(sum(s.end - s.start for s in spans))
        assert timeline.bubble[rank] == pytest.approx(1 - timeline.busy[rank] / timeline.makespan)
        assert all(a.end <= b.start for a, b in pairwise(spans))


@given(good_schedules(), st.floats(0, 10))
@settings(deadline=None, max_examples=100)
def test_the_critical_path_explains_the_whole_makespan(schedule, latency):
    timeline = schedule.simulate(Costs(latency=latency))
    path = timeline.critical_path
    assert path[0].start == 0.0
    assert path[-1].end == timeline.makespan
    for before, after in pairwise(path):
        gap = 0.0 if before.rank == after.rank else latency
        assert after.start == pytest.approx(before.end + gap)


@given(good_schedules())
@settings(deadline=None, max_examples=100)
def test_peak_memory_counts_activations_from_their_forward_to_their_last_backward(schedule):
    peaks = []
    for actions in schedule.actions:
        alive, peak = 0, 0
        for action in actions:
            alive += {"F": 1, "B": -1, "I": 0, "W": -1}[action.kind]
            peak = max(peak, alive)
        peaks.append(peak)
    assert schedule.simulate().peak_memory == peaks


def test_costs_of_each_stage_and_each_half():
    costs = Costs(forward=[1, 2], input=[3, 4], weight=[5, 6])
    assert times(Schedule(ONE_EACH).simulate(costs)) == [
        [("0F0", 0, 1), ("0B0", 13, 21)],
        [("1F0", 1, 3), ("1B0", 3, 13)],
    ]
    split = Schedule([["0F0", "0I0", "0W0"], ["1F0", "1I0", "1W0"]])
    assert times(split.simulate(costs)) == [
        [("0F0", 0, 1), ("0I0", 7, 10), ("0W0", 10, 15)],
        [("1F0", 1, 3), ("1I0", 3, 7), ("1W0", 7, 13)],
    ]


def test_a_message_takes_its_latency_and_its_bytes_over_the_bandwidth():
    costs = Costs(latency=0.5, bandwidth=10, bytes=[20, 70])
    assert times(Schedule(ONE_EACH).simulate(costs)) == [
        [("0F0", 0, 1), ("0B0", 9.0, 11.0)],
        [("1F0", 3.5, 4.5), ("1B0", 4.5, 6.5)],
    ]


def test_a_gradient_weighs_as_much_as_the_activation_it_belongs_to():
    costs = Costs(forward=0, input=0, weight=0, bandwidth=1, bytes=[3, 100])
    timeline = Schedule(ONE_EACH).simulate(costs)
    assert timeline.makespan == 6.0


def test_inside_a_rank_a_message_takes_no_time():
    schedule = Schedule([["0F0", "1F0", "1B0", "0B0"]])
    assert schedule.simulate(Costs(latency=100, bandwidth=1, bytes=100)).makespan == 6.0


def test_a_lowered_schedule_takes_as_long_unless_it_sends_late():
    prompt = [["0F0", "0SEND_F0", "0F1", "0SEND_F1"], ["1RECV_F0", "1RECV_F1", "1F0", "1F1"]]
    late = [["0F0", "0F1", "0SEND_F0", "0SEND_F1"], ["1RECV_F0", "1RECV_F1", "1F0", "1F1"]]
    assert Schedule(prompt).simulate().makespan == 3.0
    assert Schedule(late).simulate().makespan == 4.0
    assert [[str(s.action) for s in rank] for rank in Schedule(late).simulate().ranks] == [
        ["0F0", "0F1"],
        ["1F0", "1F1"],
    ]


def test_an_inference_schedule_keeps_no_activations():
    schedule = Schedule.build("gpipe", num_ranks=3, num_microbatches=5).forward_only()
    timeline = schedule.simulate()
    assert timeline.makespan == 7.0
    assert timeline.peak_memory == [1, 1, 1]


def test_costs_of_nothing_make_a_timeline_of_nothing():
    timeline = Schedule(ONE_EACH).simulate(Costs(forward=0, input=0, weight=0))
    assert (timeline.makespan, timeline.bubble) == (0.0, [0.0, 0.0])


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"forward": [1, 2, 3]}, r"forward must be one number or 2 \(num_stages\), got 3"),
        ({"weight": []}, r"weight must be one number or 2 \(num_stages\), got 0"),
        ({"input": -1}, "input must be finite and at least 0, got -1"),
        ({"bytes": [1, float("nan")]}, "bytes must be finite and at least 0, got nan"),
        ({"latency": float("inf")}, "latency must be finite and at least 0, got inf"),
        ({"bandwidth": -1}, "bandwidth must be finite and at least 0, got -1"),
    ],
)
def test_costs_that_do_not_fit_are_rejected(costs, message):
    with pytest.raises(ValueError, match=message):
        Schedule(ONE_EACH).simulate(Costs(**costs))


def test_a_schedule_that_can_not_finish_is_rejected_with_the_counterexample():
    stuck = Schedule([["0B0", "0F0"], ["1F0", "1B0"]], name="mine")
    message = "bad schedule 'mine': 0B0 on rank 0 runs before its input 0F0 on the same rank"
    with pytest.raises(ValueError, match=message):
        stuck.simulate()


def test_a_timeline_is_made_of_what_really_happened():
    schedule = Schedule(ONE_EACH)
    simulated = schedule.simulate()
    measured = Timeline.from_spans(
        [[(s.action, s.start + 7, s.end + 7) for s in rank] for rank in simulated.ranks]
    )
    for field in ("makespan", "spans", "busy", "bubble", "peak_memory"):
        assert getattr(measured, field) == getattr(simulated, field)
    assert measured.critical_path == []
    forward = schedule.actions[0][0]
    with pytest.raises(ValueError, match=r"0F0 on rank 0 has \[2, 1\]"):
        Timeline.from_spans([[(forward, 2.0, 1.0)]])


def test_a_million_actions_take_what_the_formula_says():
    num_ranks, num_microbatches = 4, 125_000
    schedule = Schedule.build("1f1b", num_ranks=num_ranks, num_microbatches=num_microbatches)
    timeline = schedule.simulate(Costs(forward=1, input=1, weight=1))
    assert timeline.makespan == 3 * (num_microbatches + num_ranks - 1)
    assert timeline.busy == [3 * num_microbatches] * num_ranks
    assert timeline.peak_memory == [4, 3, 2, 1]
