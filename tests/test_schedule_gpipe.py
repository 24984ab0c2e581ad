import pytest
from schedule_tables import drawn, in_comment

from pipert import Costs, Schedule


def build(p, m):
    return Schedule.build("gpipe", num_ranks=p, num_microbatches=m)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("gpipe.cpp")
    assert len(table) == 3
    assert drawn(build(3, 3), with_stage=False) == table


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 9])
def test_bubble_and_memory_formulas(p, m):
    schedule = build(p, m)
    assert schedule.verify(capacity=1), schedule.verify(capacity=1).message
    timeline = schedule.simulate(Costs(forward=2.0, input=1.0, weight=3.0))
    assert timeline.makespan == (m + p - 1) * 6.0
    assert timeline.peak_memory == [m] * p


def test_gradients_accumulate_in_the_order_of_the_microbatches():
    for actions in build(3, 5).actions:
        assert [a.microbatch for a in actions if a.kind == "B"] == [0, 1, 2, 3, 4]


def test_several_stages_a_rank_point_to_interleaved_1f1b():
    message = r"num_stages must be 2 \(num_ranks\) for .*'gpipe', got 4; 'interleaved_1f1b' takes"
    with pytest.raises(ValueError, match=message):
        Schedule.build("gpipe", num_ranks=2, num_microbatches=4, num_stages=4)
