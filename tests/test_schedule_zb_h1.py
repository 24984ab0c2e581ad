import published_table
import pytest
from schedule_tables import EQUAL_HALVES, drawn, in_comment
from split_memory import peaks_until_input_half

from pipert import Costs, Schedule


def build(p, m):
    return Schedule.build("zb_h1", num_ranks=p, num_microbatches=m)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("zb_h1.cpp")
    assert len(table) == 3
    assert drawn(build(3, 4), with_stage=False, costs=EQUAL_HALVES) == table


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 9, 20])
def test_every_size_verifies_with_the_promised_memory(p, m):
    schedule = build(p, m)
    assert schedule.verify(), schedule.verify().message
    assert schedule.simulate().peak_memory == [min(m, p)] * p  # each alive until its W
    assert peaks_until_input_half(schedule) == [min(m, p - r) for r in range(p)]


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("more", [0, 1, 9])
@pytest.mark.parametrize(("f", "i", "w"), [(1, 1, 1), (2, 3, 1), (3, 2, 2), (2, 1, 2)])
def test_bubble_formula_where_a_weight_half_is_no_longer_than_a_forward(p, more, f, i, w):
    m = p + more
    timeline = build(p, m).simulate(Costs(forward=f, input=i, weight=w))
    assert max(timeline.spans) - m * (f + i + w) == (p - 1) * (f + i - w)


@pytest.mark.parametrize("row", published_table.rows(), ids=published_table.name)
def test_latency_formula_on_the_published_profiles(row):
    p, m = published_table.sizes(row)
    f, i, w, c = published_table.times(row)
    promised = (p - 1) * (f + i - w + 4 * c)
    assert published_table.idle(build(p, m), row) == pytest.approx(promised)


@pytest.mark.parametrize("row", published_table.rows(), ids=published_table.name)
def test_published_bubble_rates_to_four_decimals(row):
    rate = published_table.bubble_rate(build(*published_table.sizes(row)), row)
    assert f"{rate:.4f}" == row["bubble_zb_h1"]


def test_several_stages_a_rank_are_rejected():
    message = r"num_stages must be 2 \(num_ranks\) for schedule 'zb_h1', got 4"
    with pytest.raises(ValueError, match=message):
        Schedule.build("zb_h1", num_ranks=2, num_microbatches=4, num_stages=4)
