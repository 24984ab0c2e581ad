"""What each kind of action takes, and how a step ends."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_strategies import good_schedules

from pipert import Costs, Schedule

EVERY_KIND = [
    "0UNSHARD",
    "0F0",
    "0OFFLOAD0",
    "0RELOAD0",
    "0R0",
    "0I0",
    "0W0",
    "0F1",
    "0B1",
    "0REDUCE_GRAD",
    "0RESHARD",
    "0UPDATEv1",
]


def times(schedule, **costs):
    ranks = schedule.simulate(Costs(**costs)).ranks
    return [[(str(s.action), s.start, s.end) for s in rank] for rank in ranks]


def test_each_kind_takes_what_is_said_of_it():
    costs = {
        "unshard": 1,
        "forward": 2,
        "offload": 3,
        "reload": 4,
        "recompute": 5,
        "input": 6,
        "weight": 7,
        "reduce": 8,
        "reshard": 9,
        "update": 10,
    }
    (spans,) = times(Schedule([EVERY_KIND]), **costs)
    assert [text for text, _, _ in spans] == EVERY_KIND
    assert [end - start for _, start, end in spans] == [1, 2, 3, 4, 5, 6, 7, 2, 13, 8, 9, 10]
    assert all(before[2] == after[1] for before, after in pairwise(spans))


def test_what_moves_data_in_no_time_is_not_seen():
    (spans,) = times(Schedule([EVERY_KIND]))
    assert [text for text, _, _ in spans] == ["0F0", "0R0", "0I0", "0W0", "0F1", "0B1"]
    assert spans[-1][2] == 7.0


def test_a_forward_that_is_run_again_takes_as_long_as_the_first():
    schedule = Schedule([["0F0", "0R0", "0B0"], ["1F0", "1R0", "1B0"]])
    assert schedule.simulate(Costs(forward=[2, 3])).busy == [2 + 2 + 2, 3 + 3 + 2]
    assert schedule.simulate(Costs(forward=[2, 3], recompute=1)).busy == [2 + 1 + 2, 3 + 1 + 2]


def test_each_slice_takes_its_part_of_the_microbatch():
    whole = Schedule([["0F0", "0B0"], ["1F0", "1B0"]])
    sliced = Schedule([["0F0s0", "0F0s1", "0B0s1", "0B0s0"], ["1F0s0", "1F0s1", "1B0s1", "1B0s0"]])
    costs = Costs(forward=2, bandwidth=1, bytes=2)
    assert whole.simulate(costs).busy == sliced.simulate(costs).busy
    assert [m.arrived - m.begun for m in whole.simulate(costs).messages] == [2, 2]
    assert [m.arrived - m.begun for m in sliced.simulate(costs).messages] == [1, 1, 1, 1]


def test_reductions_and_updates_come_at_the_end_of_a_schedule_that_has_none():
    schedule = Schedule([["0F0", "2F0", "2B0", "0B0"], ["1F0", "1B0"]])
    assert times(schedule, reduce=[1, 2, 3], update=0.5) == [
        [
            ("0F0", 0, 1),
            ("2F0", 2, 3),
            ("2B0", 3, 5),
            ("0B0", 7, 9),
            ("0REDUCE_GRAD", 9, 10),
            ("2REDUCE_GRAD", 10, 13),
            ("0UPDATEv1", 13, 13.5),
            ("2UPDATEv1", 13.5, 14),
        ],
        [("1F0", 1, 2), ("1B0", 5, 7), ("1REDUCE_GRAD", 7, 9), ("1UPDATEv1", 9, 9.5)],
    ]


def test_a_schedule_that_says_when_to_reduce_is_left_as_it_is():
    schedule = Schedule([["0F0", "0B0", "0REDUCE_GRAD"]])
    (spans,) = times(schedule, reduce=1, update=1)
    assert [text for text, _, _ in spans] == ["0F0", "0B0", "0REDUCE_GRAD", "0UPDATEv1"]


@given(good_schedules(), st.integers(0, 5), st.integers(1, 5))
@settings(deadline=None, max_examples=50)
def test_the_end_of_a_step_counts_in_span_makespan_and_critical_path(schedule, reduce, update):
    before = schedule.simulate()
    after = schedule.simulate(Costs(reduce=reduce, update=update))
    of_rank = [
        (reduce + update) * len(schedule.placement.stages_of(rank))
        for rank in range(schedule.num_ranks)
    ]
    assert after.spans == [span + extra for span, extra in zip(before.spans, of_rank, strict=True)]
    assert after.busy == [busy + extra for busy, extra in zip(before.busy, of_rank, strict=True)]
    ends = [spans[-1].end for spans in before.ranks]
    assert after.makespan == max(end + extra for end, extra in zip(ends, of_rank, strict=True))
    assert after.critical_path[-1].action.kind == "UPDATE"
    assert after.peak_memory == before.peak_memory


def test_an_inference_schedule_has_no_update():
    schedule = Schedule.build("gpipe", num_ranks=2, num_microbatches=3).forward_only()
    assert schedule.simulate(Costs(reduce=9, update=9)).makespan == 4.0


def test_bubbles_are_of_the_makespan_and_of_the_span():
    timeline = Schedule.build("1f1b", num_ranks=4, num_microbatches=8).simulate()
    for rank, busy in enumerate(timeline.busy):
        assert timeline.bubble[rank] == pytest.approx(1 - busy / timeline.makespan)
        assert timeline.span_bubble[rank] == pytest.approx(1 - busy / timeline.spans[rank])
    assert timeline.span_bubble[3] == 0.0
    empty = Schedule([["0F0"]]).simulate(Costs(forward=0))
    assert (empty.bubble, empty.span_bubble) == ([0.0], [0.0])
