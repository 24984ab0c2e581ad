"""Schedules after random mistakes, by a seed: for tests that want thousands of them, and fast.

Half of them are mutations of the named generators' schedules, half of random good ones.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress

from pipert import Action, Placement, Schedule, schedules

# Those whose actions the Executor runs: F and B.
WHOLE_BACKWARDS = [
    "gpipe",
    "1f1b",
    "eager_1f1b",
    "interleaved_1f1b",
    "looped_bfs",
    "hanayo",
    "chimera",
]
# What a schedule is made of here; asynchronous ones have updates too.
PLAIN = {"F", "B", "I", "W", "OVERLAP_F_B"}
MUTATIONS = [
    "drop",
    "double",
    "swap",
    "swap",
    "neighbours",
    "neighbours",
    "move",
    "shift",
    "replace",
]


def named_schedule(dice: random.Random, names: list[str]) -> Schedule:
    """A small schedule of one of the generators."""
    while True:
        num_ranks = dice.randint(1, 4)
        sizes = {"num_ranks": num_ranks, "num_microbatches": dice.randint(1, 6)}
        name = dice.choice(names)
        if name == "interleaved_1f1b" or name == "looped_bfs":
            sizes["num_stages"] = num_ranks * dice.randint(1, 3)
        with suppress(ValueError):  # sizes that the generator refuses
            schedule = Schedule.build(name, **sizes)
            if all(action.kind in PLAIN for actions in schedule.actions for action in actions):
                return schedule


def random_schedule(dice: random.Random, kinds: str) -> Schedule:
    """A good one: the order in which some run did its work. `kinds`: "B", or "IW" as well."""
    num_ranks = dice.randint(1, 4)
    num_stages = dice.randint(num_ranks, num_ranks + 3)
    num_microbatches = dice.randint(1, 4)
    rank_of = [*range(num_ranks), *dice.choices(range(num_ranks), k=num_stages - num_ranks)]
    dice.shuffle(rank_of)
    waiting: dict[tuple[str, int, int], list[tuple[str, int, int]]] = {}
    for m in range(num_microbatches):
        split = [kinds != "B" and dice.random() < 0.5 for _ in rank_of]
        gradient = ["I" if halves else "B" for halves in split]
        for s in range(num_stages):
            waiting["F", s, m] = [("F", s - 1, m)] if s else []
            above = [(gradient[s + 1], s + 1, m)] if s + 1 < num_stages else []
            waiting[gradient[s], s, m] = [("F", s, m), *above]
            if split[s]:
                waiting["W", s, m] = [("I", s, m)]
    done: set[tuple[str, int, int]] = set()
    ranks: list[list[Action]] = [[] for _ in range(num_ranks)]
    while waiting:
        action = dice.choice([key for key, needs in waiting.items() if done.issuperset(needs)])
        del waiting[action]
        done.add(action)
        ranks[rank_of[action[1]]].append(Action(*action))
    return Schedule(
        ranks, placement=Placement(num_ranks, rank_of), num_microbatches=num_microbatches
    )


def mutate(
    dice: random.Random, ranks: list[list[Action]], kinds: Sequence[str], limits: tuple[int, int]
):
    """One mistake; `limits`: stages and microbatches, one more of which may be named."""
    rank = dice.choice([r for r, actions in enumerate(ranks) if actions] or [0])
    actions = ranks[rank]
    if not actions:
        return
    mutation = dice.choice(MUTATIONS)
    i, j = dice.randrange(len(actions)), dice.randrange(len(actions))
    if mutation == "drop":
        del actions[i]
    elif mutation == "double":
        actions.insert(j, actions[i])
    elif mutation == "swap":
        actions[i], actions[j] = actions[j], actions[i]
    elif mutation == "neighbours":
        j = min(i + 1, len(actions) - 1)
        actions[i], actions[j] = actions[j], actions[i]
    elif mutation == "move":
        other = dice.choice(ranks)
        action = actions.pop(i)
        other.insert(dice.randint(0, len(other)), action)
    elif mutation == "shift":
        actions.insert(j, actions.pop(i))
    else:
        stage, microbatch = (dice.randrange(limit + 1) for limit in limits)
        actions[i] = Action(dice.choice(kinds), stage, microbatch)


def recomputed(dice: random.Random, schedule: Schedule) -> Schedule:
    """Some forwards run again, right before their backward."""
    ranks: list[list[Action]] = []
    for actions in schedule.actions:
        ranks.append([])
        for action in actions:
            if action.kind in ("B", "I") and dice.random() < 0.5:
                ranks[-1].append(Action("R", action.stage, action.microbatch))
            ranks[-1].append(action)
    return Schedule(ranks, placement=schedule.placement, num_microbatches=schedule.num_microbatches)


def draw(
    dice: random.Random,
    *,
    splits: bool = False,
    forward_only: bool = False,
    moves: bool = False,
    most_mutations: int = 3,
) -> Schedule:
    """A schedule after up to `most_mutations` mistakes, some of which do no harm."""
    kinds = [*("FBIW" if splits else "FB"), *(["OFFLOAD", "RELOAD"] if moves else [])]
    if dice.random() < 0.5:
        schedule = named_schedule(dice, schedules() if splits else WHOLE_BACKWARDS)
    else:
        schedule = random_schedule(dice, "IW" if splits else "B")
    if forward_only:
        schedule = schedule.forward_only()
        kinds = ["F"]
    if moves and dice.random() < 0.5:
        schedule = recomputed(dice, schedule)
        kinds.append("R")
    if moves:
        stages = [s for s in range(schedule.num_stages) if dice.random() < 0.7]
        schedule = schedule.with_offload(stages=stages, ahead=dice.randint(0, 2))
    ranks = [list(actions) for actions in schedule.actions]
    for _ in range(dice.randint(0, most_mutations)):
        mutate(dice, ranks, kinds, (schedule.num_stages, schedule.num_microbatches))
    return Schedule(
        ranks,
        placement=schedule.placement,
        num_microbatches=schedule.num_microbatches,
        name="mutated",
    )


def batch(seed: int, size: int, **options: bool) -> Iterator[tuple[random.Random, Schedule]]:
    """`size` schedules, and the dice that they were drawn with."""
    dice = random.Random(seed)
    for _ in range(size):
        yield dice, draw(dice, **options)


def apart(actions: list[Action]) -> Iterator[Action]:
    """The compute actions of a rank, overlapped pairs taken apart."""
    for action in actions:
        if action.paired is None:
            yield action
        else:
            yield Action("F", action.stage, action.microbatch)
            yield action.paired
