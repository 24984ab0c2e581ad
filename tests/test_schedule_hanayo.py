import pytest
from schedule_tables import drawn, in_comment

from pipert import Costs, Placement, Schedule


def build(p, m, w=None, **options):
    return Schedule.build("hanayo", num_ranks=p, num_microbatches=m, num_waves=w, **options)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("hanayo.cpp")
    assert len(table) == 2
    assert drawn(build(2, 4), with_stage=True) == table


def test_each_wave_runs_down_the_ranks_and_up_again():
    assert build(3, 3, 1).placement.ranks == [0, 1, 2, 2, 1, 0]
    assert build(2, 2, 2).placement.ranks == [0, 1, 1, 0, 0, 1, 1, 0]
    assert build(3, 3, 5).placement == Placement.v_shaped(3, 30)


def test_the_number_of_waves_may_be_read_off_the_number_of_stages():
    assert build(2, 4).num_stages == 4
    assert build(2, 4, num_stages=12) == build(2, 4, 3)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("w", [1, 2, 3])
def test_every_number_of_microbatches_verifies_with_the_promised_memory(p, w):
    for m in range(1, 3 * p + 2):
        schedule = build(p, m, w)
        assert schedule.verify(), (m, schedule.verify().message)
        peaks = schedule.simulate().peak_memory  # of one stage each, 2w stages a rank
        assert max(peaks) <= 2 * w * min(m, p)
        if m >= p:
            assert peaks == [(2 * w - 1) * p + r + 1 for r in range(p)]


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("w", [1, 2, 3])
@pytest.mark.parametrize("rounds", [1, 2, 5])
@pytest.mark.parametrize("b", [1.0, 2.0, 2.5])
def test_bubble_formula_for_full_groups(p, w, rounds, b):
    m, f = p * rounds, 1.0  # of all stages of a rank
    costs = Costs(forward=f / (2 * w), input=b / (4 * w), weight=b / (4 * w))
    idle = build(p, m, w).simulate(costs).makespan - m * (f + b)
    assert idle == pytest.approx((p - 1) * (b + (rounds - 1) * (b - f)) / w)
    if b == f:
        assert idle == pytest.approx((p - 1) * (f + b) / (2 * w))


@pytest.mark.parametrize("p", [2, 4, 8])
@pytest.mark.parametrize("w", [1, 2, 4])
def test_the_published_bubble_ratio_counts_half_of_its_bubble_in_the_whole(p, w):
    work, costs = p * 2 * w * 3.0, Costs(forward=1.0, input=1.0, weight=1.0)  # m = p, B = 2F
    idle = build(p, p, w).simulate(costs).makespan - work
    assert idle / (work + idle / 2) == pytest.approx((2 * p - 2) / (3 * p * w + p - 1))
    assert idle / (work + idle) == pytest.approx((2 * p - 2) / (3 * p * w + 2 * p - 2))


def test_an_illegal_number_of_waves_is_rejected():
    for w in (0, -1, 2**40):
        message = f"num_waves must be at least 1 and at most 25000000, got {w}"
        with pytest.raises(ValueError, match=message):
            build(2, 4, w)
    message = "num_stages x num_microbatches must be at most 100000000, got 40000000 x 4"
    with pytest.raises(ValueError, match=message):
        build(2, 4, 10**7)


@pytest.mark.parametrize("num_stages", [2, 3, 5, 6])
def test_a_number_of_stages_that_makes_no_waves_is_rejected(num_stages):
    message = rf"num_stages must be 4 \(2 x num_ranks x num_waves\) .*, got {num_stages}"
    with pytest.raises(ValueError, match=message):
        build(2, 4, num_stages=num_stages)
    with pytest.raises(ValueError, match=r"num_stages must be 8 .* for num_waves 2, got 4"):
        build(2, 4, 2, num_stages=4)
