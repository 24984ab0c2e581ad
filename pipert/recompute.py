"""Which microbatches of which stages run their forward twice."""

from collections.abc import Callable, Sequence
from typing import Any

from pipert._C import Schedule

Recompute = str | Sequence[int] | Callable[[int, int], bool]


def recomputed(recompute: Any, schedule: Schedule) -> dict[int, list[bool]]:
    """By stage with any such microbatch: by microbatch, whether it is recomputed.

    What the user says of a stage holds for both copies of it, if the schedule runs two.

    Args:
        recompute: as Pipeline takes it.
        schedule: the pipeline's.

    Raises:
        ValueError, TypeError: it is none of what Pipeline takes.
    """
    choose = _choice(recompute, schedule)
    flags = {
        stage: [choose(stage, i) for i in range(schedule.num_microbatches)]
        for stage in range(schedule.num_stages)
    }
    return {stage: row for stage, row in flags.items() if any(row)}


def _choice(recompute: Any, schedule: Schedule) -> Callable[[int, int], bool]:
    if isinstance(recompute, str):
        if recompute == "none":
            return lambda stage, microbatch: False
        if recompute == "all":
            return lambda stage, microbatch: True
        if recompute == "except_last":
            last = _last_forwards(schedule)
            return lambda stage, microbatch: microbatch != last.get(stage)
        raise ValueError(
            "recompute must be 'none', 'all', 'except_last', a list of stages or a function of a "
            f"stage and a microbatch, got {recompute!r}"
        )
    num_stages = schedule.placement.stages_per_copy  # that the user knows of
    if callable(recompute):
        answers = {
            (stage, i): bool(recompute(stage, i))
            for stage in range(num_stages)
            for i in range(schedule.num_microbatches)
        }
        return lambda stage, microbatch: answers[stage % num_stages, microbatch]
    if not isinstance(recompute, Sequence) or isinstance(recompute, bytes | bytearray):
        raise TypeError(
            "recompute must be a word, a list of stages or a function of a stage and a microbatch, "
            f"got {type(recompute).__name__}"
        )
    for stage in recompute:
        if isinstance(stage, bool) or not isinstance(stage, int):
            raise TypeError(f"recompute must list stages by number, got {stage!r}")
        if not 0 <= stage < num_stages:
            raise ValueError(f"recompute must list stages from 0 to {num_stages - 1}, got {stage}")
    chosen = frozenset(recompute)
    return lambda stage, microbatch: stage % num_stages in chosen


def _last_forwards(schedule: Schedule) -> dict[int, int]:
    """By stage, the microbatch whose forward comes last."""
    last: dict[int, int] = {}
    for rank in schedule.actions:
        for action in rank:
            if action.kind in ("F", "OVERLAP_F_B") and action.microbatch is not None:
                last[action.stage] = action.microbatch
    return last
