import pytest
import torch_schedules
from schedule_tables import drawn_v, in_comment

from pipert import Costs, Placement, Schedule


def build(p, m, **options):
    return Schedule.build("zb_v", num_ranks=p, num_microbatches=m, **options)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("zb_v.cpp")
    assert len(table) == 2
    assert drawn_v(build(2, 4)) == table


def test_two_stages_a_rank_in_a_v():
    assert build(3, 5).placement == Placement.v_shaped(3, 6)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("more", [0, 1, 2, 17])
def test_no_rank_idles_and_each_keeps_p_activations_when_all_take_equally_long(p, more):
    m = 2 * p - 1 + more
    schedule = build(p, m)
    assert schedule.verify(), schedule.verify().message
    timeline = schedule.simulate()
    assert timeline.spans == [m * 2 * 3.0] * p
    assert timeline.makespan == m * 2 * 3.0 + p - 1
    # Of one stage each, two stages a rank: the unit is half of the formula's; alive until W.
    assert timeline.peak_memory == [2 * p] * p


def test_a_rank_idles_when_forwards_are_shorter_than_input_halves():
    timeline = build(4, 16).simulate(Costs(forward=1.0, input=1.5, weight=0.5))
    assert max(timeline.spans) > 16 * 2 * 3.0


@pytest.mark.parametrize("p", [1, 2, 3, 5])
def test_fewer_microbatches_verify_with_no_more_memory(p):
    for m in range(1, 2 * p - 1):
        schedule = build(p, m)
        assert schedule.verify(), (m, schedule.verify().message)
        assert max(schedule.simulate().peak_memory) <= min(2 * m, 2 * p)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("m", [1, 2, 4, 7, 8, 12])
def test_the_order_is_pytorchs(p, m):
    theirs = torch_schedules.build("ScheduleZBVZeroBubble", p, 2, m)
    ours = [[str(action) for action in actions] for actions in build(p, m).actions]
    assert ours == torch_schedules.texts(theirs.pipeline_order)


@pytest.mark.parametrize("num_stages", [2, 3, 8])
def test_another_number_of_stages_is_rejected(num_stages):
    message = rf"num_stages must be 4 \(2 x num_ranks\) for schedule 'zb_v', got {num_stages}"
    with pytest.raises(ValueError, match=message):
        build(2, 4, num_stages=num_stages)
