import published_table
import pytest
from schedule_tables import EQUAL_HALVES, drawn, in_comment

from pipert import Costs, Schedule


def build(p, m):
    return Schedule.build("zb_h2", num_ranks=p, num_microbatches=m)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("zb_h2.cpp")
    assert len(table) == 3
    assert drawn(build(3, 5), with_stage=False, costs=EQUAL_HALVES) == table


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("more", [0, 1, 2, 9])
def test_every_size_verifies_with_the_promised_memory(p, more):
    schedule = build(p, 2 * p - 1 + more)
    assert schedule.verify(), schedule.verify().message
    assert schedule.simulate().peak_memory == [2 * p - 1] * p  # each alive until its W


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("more", [0, 1, 9])
@pytest.mark.parametrize(
    ("f", "i", "w"), [(1, 1, 1), (2, 3, 1), (3, 2, 2), (2, 1, 2), (1, 2, 3), (1, 1, 2)]
)
def test_bubble_formula(p, more, f, i, w):
    m = 2 * p - 1 + more
    timeline = build(p, m).simulate(Costs(forward=f, input=i, weight=w))
    idle = max(timeline.spans) - m * (f + i + w)
    assert idle == (p - 1) * max(f + i - 2 * w, i - f, 0)


def test_no_rank_idles_when_all_take_equally_long_but_they_end_one_after_the_other():
    timeline = build(4, 9).simulate()
    assert timeline.spans == [9 * 3.0] * 4
    assert timeline.makespan == 9 * 3.0 + 3


@pytest.mark.parametrize("row", published_table.rows(), ids=published_table.name)
def test_published_bubble_rates_to_four_decimals(row):
    rate = published_table.bubble_rate(build(*published_table.sizes(row)), row)
    assert f"{rate:.4f}" == row["bubble_zb_h2"]


@pytest.mark.parametrize(("p", "m"), [(2, 2), (4, 6), (4, 1)])
def test_fewer_microbatches_than_the_warmup_are_rejected(p, m):
    least = 2 * p - 1
    message = rf"num_microbatches must be at least {least} \(2 x num_ranks - 1\), got {m}"
    with pytest.raises(ValueError, match=message):
        build(p, m)


def test_several_stages_a_rank_are_rejected():
    message = r"num_stages must be 2 \(num_ranks\) for schedule 'zb_h2', got 4"
    with pytest.raises(ValueError, match=message):
        Schedule.build("zb_h2", num_ranks=2, num_microbatches=4, num_stages=4)
