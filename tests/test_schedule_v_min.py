import pytest
from schedule_tables import drawn_v, in_comment

from pipert import Costs, Placement, Schedule


def build(p, m, **options):
    return Schedule.build("v_min", num_ranks=p, num_microbatches=m, **options)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("v_min.cpp")
    assert len(table) == 3
    assert drawn_v(build(3, 3)) == table


def test_two_stages_a_rank_in_a_v():
    assert build(3, 5).placement == Placement.v_shaped(3, 6)


@pytest.mark.parametrize("p", [*range(2, 17), 32, 33])
@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_bubble_and_memory_formulas(p, factor):
    m = factor * p
    timeline = build(p, m).simulate()  # F = I = W = t = 1
    promised = 4 * p - 7 if p % 3 == 0 else 4 * p - 5
    assert max(timeline.spans) - m * 6.0 == promised
    assert timeline.makespan - m * 6.0 == promised
    # Of one stage each, two stages a rank: the unit is half of the formula's; alive until W.
    assert max(timeline.peak_memory) == 2 * ((p + 4) // 3)


def test_one_rank_does_not_idle():
    assert build(1, 8).simulate().makespan == 8 * 6.0


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 6, 9])
def test_every_number_of_microbatches_verifies_within_the_memory(p):
    for m in range(1, 3 * p + 2):
        schedule = build(p, m)
        assert schedule.verify(), (m, schedule.verify().message)
        assert max(schedule.simulate().peak_memory) <= min(2 * m, 2 * ((p + 4) // 3))


def test_other_times_cost_in_every_period():
    costs = Costs(forward=1.0, input=1.5, weight=0.5)
    short, long = (build(8, m).simulate(costs).makespan - m * 6.0 for m in (32, 64))
    assert long > 1.5 * short


@pytest.mark.parametrize("num_stages", [2, 3, 8])
def test_another_number_of_stages_is_rejected(num_stages):
    message = rf"num_stages must be 4 \(2 x num_ranks\) for schedule 'v_min', got {num_stages}"
    with pytest.raises(ValueError, match=message):
        build(2, 4, num_stages=num_stages)
