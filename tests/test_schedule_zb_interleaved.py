import pytest
import torch_schedules
from schedule_tables import EQUAL_HALVES, drawn, in_comment

from pipert import Costs, Placement, Schedule


def build(p, m, v, **options):
    return Schedule.build(
        "zb_interleaved", num_ranks=p, num_microbatches=m, num_stages=p * v, **options
    )


def legal_group_sizes(p, m):
    return [g for g in range(p, m + 1) if m % g == 0 or m % g >= p]


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("zb_interleaved.cpp")
    assert len(table) == 2
    assert drawn(build(2, 2, 2), with_stage=True, costs=EQUAL_HALVES) == table


def test_two_stages_a_rank_by_default_in_a_loop():
    schedule = Schedule.build("zb_interleaved", num_ranks=3, num_microbatches=3)
    assert schedule.placement == Placement.loop(3, 6)


@pytest.mark.parametrize("p", [1, 2, 3, 5])
def test_one_stage_a_rank_is_zb_h1(p):
    for m in range(p, 3 * p + 3):
        zb_h1 = Schedule.build("zb_h1", num_ranks=p, num_microbatches=m)
        for g in legal_group_sizes(p, m):
            assert build(p, m, 1, group_size=g) == zb_h1


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("v", [1, 2, 3])
def test_every_legal_group_size_verifies_with_the_promised_memory(p, v):
    for m in range(p, 3 * p + 3):
        for g in legal_group_sizes(p, m):
            schedule = build(p, m, v, group_size=g)
            assert schedule.verify(), (m, g, schedule.verify().message)
            promised = [min(m * v, (v - 1) * g + p)] * p  # each alive until its W
            assert schedule.simulate().peak_memory == promised, (m, g)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("v", [1, 2, 4])
@pytest.mark.parametrize(("f", "i", "w"), [(1, 1, 1), (2, 3, 1), (3, 2, 2), (2, 1, 2)])
def test_bubble_formula_where_a_weight_half_is_no_longer_than_a_forward(p, v, f, i, w):
    for m in range(p, 3 * p + 3):
        for g in legal_group_sizes(p, m):
            costs = Costs(forward=f / v, input=i / v, weight=w / v)
            timeline = build(p, m, v, group_size=g).simulate(costs)
            idle = max(timeline.spans) - m * (f + i + w)
            assert idle == pytest.approx((p - 1) * (f + i - w) / v), (m, g)


@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize("v", [1, 2, 3])
@pytest.mark.parametrize("m", [4, 8, 10, 12])
def test_the_order_is_pytorchs(p, v, m):
    rounds = max(1, m // p)
    if m % rounds:
        pytest.skip("PyTorch takes no such number of microbatches")
    theirs = torch_schedules.build("ScheduleInterleavedZeroBubble", p, v, m)
    ours = build(p, m, v, group_size=m // rounds)
    ours = [[str(action) for action in actions] for actions in ours.actions]
    assert ours == torch_schedules.texts(theirs.pipeline_order)


def test_sizes_that_interleaved_1f1b_does_not_take_are_rejected():
    with pytest.raises(ValueError, match=r"num_microbatches must be at least 4 \(num_ranks\), got"):
        build(4, 3, 2)
    with pytest.raises(ValueError, match=r"group_size must be at least 4 .* at most 8 .*, got 3"):
        build(4, 8, 2, group_size=3)
    with pytest.raises(ValueError, match=r"a last group of 0 or at least 4 \(num_ranks\)"):
        build(4, 10, 2)
    with pytest.raises(ValueError, match=r"num_stages must be a multiple of 2 .*, got 3"):
        Schedule.build("zb_interleaved", num_ranks=2, num_microbatches=4, num_stages=3)
