import published_table
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_tables import EQUAL_HALVES, drawn, in_comment

from pipert import Costs, Schedule


def build(p, m, **options):
    return Schedule.build("zb_auto", num_ranks=p, num_microbatches=m, **options)


def weight_percent(row):
    """What stays of an activation from I to W: the paper's M_W / M_B (section 4, table 1)."""
    hidden, heads, length = (int(row[column]) for column in ("hidden", "heads", "seq"))
    return round(100 * 32 / (34 + 5 * heads * length / hidden))


def build_for(row, memory_limit, weight_share):
    """With the profile's times, in microseconds."""
    words = ("forward", "input", "weight", "latency")
    times = dict(zip(words, (round(1000 * t) for t in published_table.times(row)), strict=True))
    sizes = published_table.sizes(row)
    return build(*sizes, memory_limit=memory_limit, weight_percent=weight_share, **times)


def peak_memory(actions, weight_share):
    """The most activations of one rank, of which `weight_share` stays from I to W."""
    held = peak = 0.0
    for action in actions:
        held += {"F": 1.0, "I": weight_share - 1.0, "W": -weight_share}[action.kind]
        peak = max(peak, held)
    return peak


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("zb_auto.cpp")
    assert len(table) == 3
    schedule = build(3, 5, memory_limit=4)
    assert drawn(schedule, with_stage=False, costs=EQUAL_HALVES) == table


@pytest.mark.parametrize("p", [1, 2, 4, 8])
@pytest.mark.parametrize(("f", "i", "w"), [(1, 1, 1), (2, 3, 1), (3, 2, 2), (2, 1, 2), (1, 1, 2)])
def test_bubble_formulas_at_both_ends(p, f, i, w):
    m = 2 * p + 3
    times = {"forward": f, "input": i, "weight": w}

    def idle(limit):
        schedule = build(p, m, memory_limit=limit, **times)
        return max(schedule.simulate(Costs(**times)).spans) - m * (f + i + w)

    assert idle(p) == (p - 1) * (i + max(f - w, 0))
    assert idle(2 * p - 1) == (p - 1) * max(f + i - 2 * w, i - f, 0)


@pytest.mark.parametrize("row", published_table.rows(), ids=published_table.name)
def test_published_rates_of_zb_1p_to_four_decimals(row):
    p, _ = published_table.sizes(row)
    for weight_share in (weight_percent(row), 100):
        schedule = build_for(row, p, weight_share)
        assert f"{published_table.bubble_rate(schedule, row):.4f}" == row["bubble_zb_1p"]


@pytest.mark.parametrize("row", published_table.rows(), ids=published_table.name)
def test_at_most_the_published_rates_of_zb_2p_to_four_decimals(row):
    p, _ = published_table.sizes(row)
    weight_share = weight_percent(row)
    schedule = build_for(row, 2 * p, weight_share)
    rate = published_table.bubble_rate(schedule, row)
    assert f"{rate:.4f}" <= row["bubble_zb_2p"]
    assert rate == pytest.approx(float(row["bubble_zb_2p"]), abs=0.0006)
    peaks = [peak_memory(actions, weight_share / 100) for actions in schedule.actions]
    assert max(peaks) <= 2 * p + 1e-9


@settings(deadline=None, max_examples=60)
@given(
    p=st.integers(1, 6),
    m=st.integers(1, 14),
    limit=st.integers(1, 20),
    weight_share=st.integers(0, 100),
    times=st.lists(st.integers(0, 9), min_size=4, max_size=4),
)
def test_every_size_and_limit_verifies_within_the_limit(p, m, limit, weight_share, times):
    forward, input_half, weight_half, latency = times
    schedule = build(
        p,
        m,
        memory_limit=limit,
        weight_percent=weight_share,
        forward=forward,
        input=input_half,
        weight=weight_half,
        latency=latency,
    )
    if weight_share == 100:
        verdict = schedule.verify(memory_limit=limit)
        assert verdict, verdict.message
    assert schedule.verify(), schedule.verify().message
    for actions in schedule.actions:
        assert peak_memory(actions, weight_share / 100) <= min(m, limit) + 1e-9


def test_more_room_is_never_slower():
    idle = [
        max(build(4, 16, memory_limit=limit).simulate().spans) - 48 for limit in (1, 2, 4, 5, 7)
    ]
    assert idle == sorted(idle, reverse=True)
    assert idle[-1] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_limit": 0}, "'memory_limit' of schedule 'zb_auto' must be from 1 to 2147483647"),
        (
            {"weight_percent": 101},
            "'weight_percent' of schedule 'zb_auto' must be from 0 to 100, got",
        ),
        ({"weight": -1}, "'weight' of schedule 'zb_auto' must be from 0 to .*, got -1"),
    ],
)
def test_options_out_of_range_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        build(2, 4, **options)


def test_several_stages_a_rank_are_rejected():
    message = r"num_stages must be 2 \(num_ranks\) for schedule 'zb_auto', got 4"
    with pytest.raises(ValueError, match=message):
        Schedule.build("zb_auto", num_ranks=2, num_microbatches=4, num_stages=4)
