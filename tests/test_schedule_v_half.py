import pytest
from schedule_tables import drawn_v, in_comment

from pipert import Placement, Schedule


def build(p, m, **options):
    return Schedule.build("v_half", num_ranks=p, num_microbatches=m, **options)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("v_half.cpp")
    assert len(table) == 4
    assert drawn_v(build(4, 4)) == table


def test_two_stages_a_rank_in_a_v():
    assert build(3, 5).placement == Placement.v_shaped(3, 6)


@pytest.mark.parametrize("p", [*range(4, 17, 2), 32])
@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_bubble_and_memory_formulas_for_an_even_number_of_ranks(p, factor):
    m = factor * p
    timeline = build(p, m).simulate()  # F = I = W = t = 1
    assert max(timeline.spans) - m * 6.0 == 3 * p - 7
    assert timeline.makespan - m * 6.0 == 3 * p - 7
    # Of one stage each, two stages a rank: the unit is half of the formula's; alive until W.
    assert max(timeline.peak_memory) == 2 * ((p + 2) // 2)


@pytest.mark.parametrize("p", [*range(3, 17, 2), 33])
@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_bubble_and_memory_formulas_for_an_odd_number_of_ranks(p, factor):
    m = factor * p
    timeline = build(p, m).simulate()
    assert max(timeline.spans) - m * 6.0 == 3 * p - 4
    assert max(timeline.peak_memory) == 2 * ((p + 2) // 2)


@pytest.mark.parametrize(("p", "idle"), [(1, 0), (2, 1)])
def test_the_smallest_pipelines(p, idle):
    assert build(p, 8).simulate().makespan == 8 * 6.0 + idle


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 6, 9])
def test_every_number_of_microbatches_verifies_within_the_memory(p):
    for m in range(1, 3 * p + 2):
        schedule = build(p, m)
        assert schedule.verify(), (m, schedule.verify().message)
        assert max(schedule.simulate().peak_memory) <= min(2 * m, 2 * ((p + 2) // 2))


@pytest.mark.parametrize("num_stages", [2, 3, 8])
def test_another_number_of_stages_is_rejected(num_stages):
    message = rf"num_stages must be 4 \(2 x num_ranks\) for schedule 'v_half', got {num_stages}"
    with pytest.raises(ValueError, match=message):
        build(2, 4, num_stages=num_stages)
