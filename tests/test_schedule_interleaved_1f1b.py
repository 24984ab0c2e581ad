import published_table
import pytest
import torch_schedules
from schedule_tables import drawn, in_comment

from pipert import Costs, Placement, Schedule


def build(p, m, v, **options):
    return Schedule.build(
        "interleaved_1f1b", num_ranks=p, num_microbatches=m, num_stages=p * v, **options
    )


def legal_group_sizes(p, m):
    return [g for g in range(p, m + 1) if m % g == 0 or m % g >= p]


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("interleaved_1f1b.cpp")
    assert len(table) == 2
    assert drawn(build(2, 4, 2), with_stage=True) == table


def test_two_stages_a_rank_by_default_in_a_loop():
    schedule = Schedule.build("interleaved_1f1b", num_ranks=3, num_microbatches=3)
    assert schedule.placement == Placement.loop(3, 6)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("v", [1, 2, 3])
def test_every_legal_group_size_verifies_with_the_promised_memory(p, v):
    for m in range(p, 3 * p + 3):
        for g in legal_group_sizes(p, m):
            schedule = build(p, m, v, group_size=g)
            assert schedule.verify(), (m, g, schedule.verify().message)
            promised = [min(m * v, (v - 1) * g + 2 * (p - 1 - r) + 1) for r in range(p)]
            assert schedule.simulate().peak_memory == promised, (m, g)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("v", [1, 2, 4])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_bubble_formula(p, v, rounds):
    m = p * rounds
    timeline = build(p, m, v).simulate(Costs(forward=2.0 / v, input=1.0 / v, weight=3.0 / v))
    assert timeline.makespan == pytest.approx(m * 6.0 + (p - 1) * 6.0 / v)


@pytest.mark.parametrize("p", [2, 3, 4, 8])
@pytest.mark.parametrize("v", [1, 2, 3])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_latency_formula_where_ranks_divide_microbatches(p, v, rounds):
    m, latency = p * rounds, 0.125
    costs = Costs(forward=3 / v, input=2 / v, weight=4 / v, latency=latency)
    idle = max(build(p, m, v).simulate(costs).spans) - m * 9
    assert idle == pytest.approx((p - 1) * 9 / v + (2 * p * v - 2) * latency)


@pytest.mark.parametrize("row", published_table.rows(), ids=published_table.name)
def test_on_the_published_profiles_it_idles_p_latencies_longer_than_was_published(row):
    p, m = published_table.sizes(row)
    f, i, w, c = published_table.times(row)
    v = (int(row["layers"]) + 2) // p
    published = (p - 1) * (f + i + w) / v + (2 * p * v - p - 2) * c
    rate = published / (m * (f + i + w) + published)
    assert f"{rate:.4f}" == row["bubble_1f1b_interleaved"]
    costs = Costs(forward=f / v, input=i / v, weight=w / v, latency=c)
    idle = max(build(p, m, v).simulate(costs).spans) - m * (f + i + w)
    assert idle == pytest.approx(published + p * c)


@pytest.mark.parametrize(
    ("p", "m", "g"), [(4, 8, 3), (4, 8, 9), (4, 8, -1), (4, 8, 0), (4, 8, 2**40)]
)
def test_a_group_size_out_of_range_is_rejected(p, m, g):
    message = rf"at least {p} \(num_ranks\) and at most {m} \(num_microbatches\), got {g}"
    with pytest.raises(ValueError, match=message):
        build(p, m, 2, group_size=g)


def test_a_last_group_of_fewer_microbatches_than_ranks_is_rejected():
    message = r"a last group of 0 or at least 4 \(num_ranks\) .*, got 10 % 4 \(group_size\) = 2"
    with pytest.raises(ValueError, match=message):
        build(4, 10, 2)
    assert build(4, 10, 2, group_size=6).verify()


def test_fewer_microbatches_than_ranks_are_rejected():
    message = r"num_microbatches must be at least 4 \(num_ranks\), got 3"
    with pytest.raises(ValueError, match=message):
        build(4, 3, 2)


def test_a_stage_count_that_the_ranks_do_not_divide_is_rejected():
    message = r"num_stages must be a multiple of 2 \(num_ranks\), got 3"
    with pytest.raises(ValueError, match=message):
        Schedule.build("interleaved_1f1b", num_ranks=2, num_microbatches=4, num_stages=3)


@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize("v", [1, 2, 3])
@pytest.mark.parametrize("m", [4, 8, 10, 12])
def test_the_order_is_pytorchs(p, v, m):
    rounds = max(1, m // p)
    if m % rounds:
        pytest.skip("PyTorch takes no such number of microbatches")
    theirs = torch_schedules.build("ScheduleInterleaved1F1B", p, v, m)
    ours = build(p, m, v, group_size=m // rounds)
    ours = [[str(action) for action in actions] for actions in ours.actions]
    assert ours == torch_schedules.texts(theirs.pipeline_order)
