"""dualpipe: overlapped pairs in both directions over two copies of the model."""

import pytest
from schedule_tables import drawn_v, in_comment

from pipert import Costs, Placement, Schedule


def build(p, m, **options):
    return Schedule.build("dualpipe", num_ranks=p, num_microbatches=m, **options)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("dualpipe.cpp")
    assert len(table) == 4
    assert drawn_v(build(4, 8)) == table


@pytest.mark.parametrize("p", [2, 4, 6, 8, 16])
@pytest.mark.parametrize("more", [0, 2, 10])
def test_every_size_verifies_with_the_promised_memory(p, more):
    schedule = build(p, 2 * p + more)
    assert schedule.placement == Placement.bidirectional(p)
    assert schedule.verify(), schedule.verify().message
    assert schedule.simulate().peak_memory == [p + 1] * p


@pytest.mark.parametrize("p", [2, 4, 8])
@pytest.mark.parametrize("more", [0, 2, 8])
@pytest.mark.parametrize(("f", "w"), [(1, 1), (2, 1), (3, 2), (4, 0)])
def test_pairs_that_are_taken_apart_idle_no_more_than_the_published_bubble(p, more, f, w):
    m, b = 2 * p + more, f + w
    timeline = build(p, m).simulate(Costs(forward=f, input=f, weight=w))
    assert max(timeline.spans) - m * (f + b) == (p // 2 - 1) * (f + b - 2 * w)


def test_the_second_direction_is_the_first_one_in_a_mirror():
    p, m = 4, 8
    actions = build(p, m).actions

    def mirrored(stage, microbatch):
        return (stage + p) % (2 * p), (microbatch + m // 2) % m

    for rank in range(p):
        here = [(a.kind, a.stage, a.microbatch) for a in actions[rank]]
        there = [(a.kind, *mirrored(a.stage, a.microbatch)) for a in actions[p - 1 - rank]]
        assert here == there


@pytest.mark.parametrize(
    ("p", "m", "message"),
    [
        (3, 8, "num_ranks must be even for schedule 'dualpipe', got 3"),
        (4, 9, "num_microbatches must be even for schedule 'dualpipe', got 9"),
        (4, 6, r"num_microbatches must be at least 8 \(2 x num_ranks\), got 6"),
    ],
)
def test_sizes_that_do_not_fit_are_rejected(p, m, message):
    with pytest.raises(ValueError, match=message):
        build(p, m)
