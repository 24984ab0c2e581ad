import published_table
import pytest
from schedule_tables import drawn, in_comment

from pipert import Costs, Schedule


def build(p, m):
    return Schedule.build("1f1b", num_ranks=p, num_microbatches=m)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("one_f_one_b.cpp")
    assert len(table) == 3
    assert drawn(build(3, 4), with_stage=False) == table


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 9])
def test_bubble_and_memory_formulas(p, m):
    timeline = build(p, m).simulate(Costs(forward=2.0, input=1.0, weight=3.0))
    assert timeline.makespan == (m + p - 1) * 6.0
    assert timeline.peak_memory == [min(m, p - r) for r in range(p)]


@pytest.mark.parametrize(("p", "m"), [(2, 2), (2, 6), (3, 9), (4, 4), (4, 16), (8, 32)])
def test_latency_formula_where_ranks_divide_microbatches(p, m):
    latency = 0.25
    timeline = build(p, m).simulate(Costs(latency=latency))
    idle = max(timeline.spans) - m * 3.0
    assert idle == pytest.approx((p - 1) * 3.0 + (2 * (p - 1) * (m / p + 1) - 2) * latency)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 9])
def test_one_message_in_flight_on_each_edge_is_enough(p, m):
    assert build(p, m).verify(capacity=1), build(p, m).verify(capacity=1).message


@pytest.mark.parametrize("row", published_table.rows(), ids=published_table.name)
def test_published_bubble_rates_to_four_decimals(row):
    rate = published_table.bubble_rate(build(*published_table.sizes(row)), row)
    assert f"{rate:.4f}" == row["bubble_1f1b"]


def test_several_stages_a_rank_point_to_interleaved_1f1b():
    message = r"num_stages must be 2 \(num_ranks\) for .*'1f1b', got 4; 'interleaved_1f1b' takes"
    with pytest.raises(ValueError, match=message):
        Schedule.build("1f1b", num_ranks=2, num_microbatches=4, num_stages=4)
