import pytest
from schedule_tables import drawn, in_comment

from pipert import Costs, Schedule


def build(p, m):
    return Schedule.build("eager_1f1b", num_ranks=p, num_microbatches=m)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("eager_1f1b.cpp")
    assert len(table) == 3
    assert drawn(build(3, 5), with_stage=False) == table


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 9, 20])
def test_bubble_and_memory_formulas(p, m):
    schedule = build(p, m)
    assert schedule.verify(), schedule.verify().message
    timeline = schedule.simulate(Costs(forward=2.0, input=1.0, weight=3.0))
    assert timeline.makespan == (m + p - 1) * 6.0
    assert timeline.peak_memory == [min(m, 2 * (p - r) - 1) for r in range(p)]


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("m", [1, 4, 5, 16, 30])
@pytest.mark.parametrize("latency", [0.25, 1.0, 1.5])
def test_a_latency_of_up_to_half_a_turn_is_paid_once_down_and_once_up(p, m, latency):
    timeline = build(p, m).simulate(Costs(latency=latency))
    assert max(timeline.spans) - m * 3.0 == (p - 1) * 3.0 + 2 * (p - 1) * latency


def test_a_longer_latency_is_paid_again_and_again():
    timeline = build(4, 20).simulate(Costs(latency=2.0))
    assert max(timeline.spans) - 20 * 3.0 > 3 * 3.0 + 2 * 3 * 2.0


def test_several_stages_a_rank_point_to_interleaved_1f1b():
    message = r"num_stages must be 2 \(num_ranks\) for .*'eager_1f1b', got 4; 'interleaved_1f1b'"
    with pytest.raises(ValueError, match=message):
        Schedule.build("eager_1f1b", num_ranks=2, num_microbatches=4, num_stages=4)
