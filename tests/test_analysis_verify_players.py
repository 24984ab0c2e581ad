"""verify() against players in plain Python: thousands of mutated schedules of all generators."""

from collections import Counter

import pytest
import schedule_mutations
from schedule_player import Play, add_reductions, is_complete, is_ordered, spell_out

from pipert import Schedule

CAPACITIES = [None, 0, 1, 2, 3]


def told(schedule, verdict):
    rows = "\n".join(" ".join(map(str, actions)) for actions in schedule.actions)
    return f"{verdict.message}\n{rows}\nplacement {schedule.placement.ranks}"


def check_cycle(play, verdict):
    """The waits are a cycle of ranks, and none in this stuck state is shorter."""
    waits, places = (verdict.counterexample[key] for key in ("waits", "places"))
    ranks = [places[wait["source"]]["rank"] for wait in waits]
    assert len(set(ranks)) == len(ranks) == play.shortest_cycle()
    for wait, following in zip(waits, [*ranks[1:], ranks[0]], strict=True):
        assert places[wait["target"]]["rank"] == following
    for rank, following in zip(ranks, [*ranks[1:], ranks[0]], strict=True):
        assert following in play.waits_for(rank)


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_the_verdict_on_mutations_of_all_generators_is_that_of_plain_python(capacity):
    defects = Counter()
    for _, schedule in schedule_mutations.batch(f"all {capacity}", 2000, splits=True):
        verdict = schedule.verify(capacity=capacity)
        defects[verdict.defect] += 1
        complete = is_complete(schedule)
        assert complete == (
            verdict.defect not in ("malformed", "misplaced", "missing", "doubled")
        ), told(schedule, verdict)
        if not complete:
            continue
        ordered = is_ordered(schedule)
        assert ordered == (verdict.defect != "unordered"), told(schedule, verdict)
        if not ordered:
            continue
        play = Play(schedule, capacity)
        assert play.finished == verdict.ok, told(schedule, verdict)
        if not verdict.ok:
            check_cycle(play, verdict)
    assert all(defects[defect] > 20 for defect in (None, "unordered", "deadlock")), defects


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_schedules_that_spell_their_transfers_out_get_the_verdict_of_plain_python(capacity):
    defects = Counter()
    for dice, schedule in schedule_mutations.batch(
        f"lowered {capacity}", 800, splits=True, most_mutations=0
    ):
        lowered = spell_out(dice, schedule)
        ranks = [list(actions) for actions in lowered.actions]
        for _ in range(dice.choice([0, 0, 1])):
            actions = dice.choice(ranks)
            i = dice.randrange(len(actions))
            actions.insert(dice.randrange(len(actions)), actions.pop(i))
        lowered = Schedule(
            ranks, placement=schedule.placement, num_microbatches=schedule.num_microbatches
        )
        verdict = lowered.verify(capacity=capacity)
        defects[verdict.defect] += 1
        assert verdict.defect in (None, "unordered", "deadlock"), told(lowered, verdict)
        if verdict.defect == "unordered":
            continue
        play = Play(lowered, capacity)
        assert play.finished == verdict.ok, told(lowered, verdict)
        if not verdict.ok:
            check_cycle(play, verdict)
    assert all(defects[defect] > 20 for defect in (None, "deadlock")), defects


@pytest.mark.parametrize("capacity", [None, 0, 2])
def test_collectives_hold_ranks_up_as_they_do_in_plain_python(capacity):
    defects = Counter()
    for dice, schedule in schedule_mutations.batch(
        f"collectives {capacity}", 2000, splits=True, most_mutations=0
    ):
        stages = list(range(schedule.num_stages))
        dice.shuffle(stages)
        cut = sorted(dice.choices(range(len(stages) + 1), k=2))
        tied = [group for group in (stages[: cut[0]], stages[cut[0] : cut[1]]) if group]
        reduced = add_reductions(dice, schedule)
        verdict = reduced.verify(capacity=capacity, tied_stages=tied)
        defects[verdict.defect] += 1
        assert verdict.defect in (None, "collective", "deadlock"), told(reduced, verdict)
        play = Play(reduced, capacity, tied)
        assert play.finished == verdict.ok, told(reduced, verdict)
        if verdict.defect == "deadlock":
            check_cycle(play, verdict)
    assert all(defects[defect] > 10 for defect in (None, "collective", "deadlock")), defects
