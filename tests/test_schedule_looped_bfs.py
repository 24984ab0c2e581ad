import pytest
import torch_schedules
from schedule_tables import drawn, in_comment

from pipert import Costs, Placement, Schedule


def build(p, m, v):
    return Schedule.build("looped_bfs", num_ranks=p, num_microbatches=m, num_stages=p * v)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("looped_bfs.cpp")
    assert len(table) == 2
    assert drawn(build(2, 3, 2), with_stage=True) == table


def test_two_stages_a_rank_by_default_in_a_loop():
    schedule = Schedule.build("looped_bfs", num_ranks=3, num_microbatches=3)
    assert schedule.placement == Placement.loop(3, 6)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("v", [1, 2, 3])
def test_every_number_of_microbatches_verifies_with_the_promised_memory(p, v):
    for m in range(1, 3 * p + 2):
        schedule = build(p, m, v)
        assert schedule.verify(), (m, schedule.verify().message)
        assert schedule.simulate().peak_memory == [m * v] * p


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("v", [1, 2, 4])
@pytest.mark.parametrize("more", [0, 1, 9])
def test_bubble_formula_where_there_are_as_many_microbatches_as_ranks(p, v, more):
    m = p + more
    timeline = build(p, m, v).simulate(Costs(forward=2.0 / v, input=1.0 / v, weight=3.0 / v))
    assert timeline.makespan == pytest.approx(m * 6.0 + (p - 1) * 6.0 / v)


def test_fewer_microbatches_than_ranks_idle_between_the_chunks():
    timeline = build(4, 2, 2).simulate(Costs(forward=1.0, input=0.5, weight=0.5))
    assert timeline.makespan > 2 * 4.0 + 3 * 4.0 / 2


@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize("v", [1, 2, 3])
@pytest.mark.parametrize("m", [1, 4, 9])
def test_the_order_is_pytorchs(p, v, m):
    theirs = torch_schedules.build("ScheduleLoopedBFS", p, v, m)
    ours = [[str(action) for action in actions] for actions in build(p, m, v).actions]
    assert ours == torch_schedules.texts(theirs.pipeline_order)


def test_a_stage_count_that_the_ranks_do_not_divide_is_rejected():
    message = r"num_stages must be a multiple of 2 \(num_ranks\), got 3"
    with pytest.raises(ValueError, match=message):
        Schedule.build("looped_bfs", num_ranks=2, num_microbatches=4, num_stages=3)
