import pytest
import torch_schedules
from schedule_tables import drawn_v, in_comment

from pipert import Action, Costs, Placement, Schedule


def build(p, m, **options):
    return Schedule.build("dualpipe_v", num_ranks=p, num_microbatches=m, **options)


def halves(action):
    """The one or two actions that run in it."""
    if action.paired is None:
        return [action]
    return [Action("F", action.stage, action.microbatch), action.paired]


def most_idle(schedule, times, pair):
    """The longest wait of a rank if both results of a pair are there at its end, `pair` later."""
    made = {}  # when the result of (is a forward, stage, microbatch) is there
    clocks, idle = [0.0] * schedule.num_ranks, [0.0] * schedule.num_ranks
    started = [False] * schedule.num_ranks
    left = [list(reversed(actions)) for actions in schedule.actions]

    def needs(action):
        if action.kind == "F" and action.stage > 0:
            return [(True, action.stage - 1, action.microbatch)]
        if action.kind in ("B", "I") and action.stage + 1 < schedule.num_stages:
            return [(False, action.stage + 1, action.microbatch)]
        return []

    while any(left):
        for rank, actions in enumerate(left):
            while actions:
                parts = halves(actions[-1])
                inputs = [need for part in parts for need in needs(part)]
                if not all(need in made for need in inputs):
                    break
                actions.pop()
                start = max([clocks[rank], *(made[need] for need in inputs)])
                idle[rank] += start - clocks[rank] if started[rank] else 0.0
                started[rank] = True
                clocks[rank] = start + (pair if len(parts) == 2 else times[parts[0].kind])
                for part in parts:
                    if part.kind != "W":
                        made[part.kind == "F", part.stage, part.microbatch] = clocks[rank]
    return max(idle)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("dualpipe_v.cpp")
    assert len(table) == 2
    assert drawn_v(build(2, 4)) == table


def test_two_stages_a_rank_in_a_v():
    assert build(3, 6).placement == Placement.v_shaped(3, 6)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("more", [0, 1, 2, 9])
def test_every_size_verifies_with_the_promised_memory(p, more):
    schedule = build(p, 2 * p + more)
    assert schedule.verify(), schedule.verify().message
    # Of one stage each, alive until B or W: PP + 1 in the paper's letters, PP = 2p stages.
    assert schedule.simulate().peak_memory == [2 * p + 1] * p


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("more", [0, 1, 9])
@pytest.mark.parametrize(("f", "w"), [(1, 1), (2, 1), (3, 2), (4, 0)])
def test_published_bubble_formula_where_a_pair_takes_as_long_as_its_parts(p, more, f, w):
    b = f + w  # I = F
    idle = most_idle(build(p, 2 * p + more), {"F": f, "B": b, "I": f, "W": w}, pair=f + b)
    assert idle == (p - 1) * ((f + b) + b - 3 * w)


@pytest.mark.parametrize("p", [2, 3, 4, 8])
@pytest.mark.parametrize("pair", [2.0, 2.25, 2.5])
def test_a_shorter_pair_saves_more_than_the_published_formula_says(p, pair):
    idle = most_idle(build(p, 4 * p), {"F": 1, "B": 2, "I": 1, "W": 1}, pair=pair)
    assert idle == (p - 1) * (pair + 2 - 3) - (p - 2) * (1 + 2 - pair)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("more", [0, 1, 9])
@pytest.mark.parametrize(("f", "w"), [(1, 1), (2, 1), (3, 2), (4, 0)])
def test_pairs_that_are_taken_apart_idle_less(p, more, f, w):
    m, b = 2 * p + more, f + w
    timeline = build(p, m).simulate(Costs(forward=f, input=f, weight=w))
    assert max(timeline.spans) - m * 2 * (f + b) == (p - 1) * (f + b - 2 * w)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("more", [0, 1, 5])
def test_the_order_is_pytorchs(p, more):
    m = 2 * p + more
    theirs = torch_schedules.build("ScheduleDualPipeV", p, 2, m)
    ours = [[str(action) for action in actions] for actions in build(p, m).actions]
    assert ours == torch_schedules.texts(theirs.pipeline_order)


@pytest.mark.parametrize(("p", "m"), [(1, 1), (2, 3), (4, 1)])
def test_fewer_microbatches_than_stages_are_rejected(p, m):
    message = rf"num_microbatches must be at least {2 * p} \(2 x num_ranks\), got {m}"
    with pytest.raises(ValueError, match=message):
        build(p, m)


@pytest.mark.parametrize("num_stages", [2, 3, 8])
def test_another_number_of_stages_is_rejected(num_stages):
    message = rf"num_stages must be 4 \(2 x num_ranks\) for schedule 'dualpipe_v', got {num_stages}"
    with pytest.raises(ValueError, match=message):
        build(2, 4, num_stages=num_stages)
