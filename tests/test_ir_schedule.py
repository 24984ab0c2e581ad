import copy
import pickle

import pytest
from hypothesis import given, settings
from schedule_strategies import good_schedules

from pipert import Action, Placement, Schedule


def test_text_has_one_line_for_each_rank():
    schedule = Schedule([["0F0", "0B0"], ["1F0", "1B0"]])
    assert str(schedule) == "rank 0: 0F0 0B0\nrank 1: 1F0 1B0\n"


def test_repr_tells_the_sizes():
    schedule = Schedule.build("1f1b", num_ranks=2, num_microbatches=4)
    assert repr(schedule) == "<Schedule '1f1b': 2 ranks, 2 stages, 4 microbatches>"


def test_sizes_are_read_off_the_actions():
    schedule = Schedule([["0F0", "0F2", "3F0"], ["1F0", Action("F", 2, 1)]])
    assert schedule.num_ranks == 2
    assert schedule.num_stages == 4
    assert schedule.num_microbatches == 3
    assert schedule.placement == Placement(2, [0, 1, 1, 0])


def test_sizes_that_are_given_are_kept():
    schedule = Schedule([["0F0"], ["1F0"]], placement=Placement.loop(2, 4), num_microbatches=8)
    assert (schedule.num_stages, schedule.num_microbatches) == (4, 8)


def test_a_name_does_not_count_in_equality():
    assert Schedule([["0F0", "0B0"]], name="a") == Schedule([["0F0", "0B0"]], name="b")
    assert Schedule([["0F0", "0B0"]]) != Schedule([["0F0", "0I0", "0W0"]])


@given(good_schedules())
@settings(deadline=None, max_examples=30)
def test_schedules_are_copied_and_pickled_by_value(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert copy.deepcopy(schedule) == schedule


def test_forward_only_keeps_the_forwards_in_order_and_what_they_need():
    schedule = Schedule(
        [
            ["0UNSHARD", "0F0", "0SEND_F0", "0F1", "0RECV_B0", "0B0", "0RESHARD", "0REDUCE_GRAD"],
            ["1RECV_F0", "(1F0;1B0)OVERLAP_F_B", "1SEND_B0", "1W0"],
        ]
    )
    assert str(schedule.forward_only()) == (
        "rank 0: 0UNSHARD 0F0 0SEND_F0 0F1 0RESHARD\nrank 1: 1RECV_F0 1F0\n"
    )


@given(good_schedules())
@settings(deadline=None, max_examples=50)
def test_the_forwards_of_a_good_schedule_are_a_good_inference_schedule(schedule):
    assert schedule.forward_only().verify(forward_only=True)


def test_a_bad_action_text_is_rejected():
    with pytest.raises(ValueError, match='bad action "0F1xyz"'):
        Schedule([["0F1xyz"]])
