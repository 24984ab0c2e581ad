"""StagePlacement: which rank owns which stage, and how many microbatches a stage holds."""

from collections.abc import Sequence

from pipert import _C

PlacementLike = _C.Placement | _C.Schedule | Sequence[int] | str | None

_EXPECTED = "placement must be a Placement, the rank of each stage, a Schedule or 'v'"


class StagePlacement:
    """A placement, however it was given.

    Args:
        given: a Placement, the rank of each stage, a Schedule, "v" (two stages a rank, down and up
            again), or None (one stage a rank).
        num_stages: of one copy of the model; None: as many as the placement has.

    Attributes:
        placement: the Placement.
        num_stages: of one copy of the model.

    Raises:
        TypeError, ValueError: it is none of these, or of another number of stages.
    """

    def __init__(self, given: PlacementLike, num_stages: int | None) -> None:
        self._schedule = given if isinstance(given, _C.Schedule) else None
        self.placement = _to_placement(given, num_stages)
        self.num_stages = self.placement.stages_per_copy
        if num_stages is not None and num_stages != self.num_stages:
            raise ValueError(
                f"placement is of {self.num_stages} stages, got num_stages={num_stages}"
            )

    def usual_schedule(self) -> _C.Schedule | None:
        """The schedule that was given, or else one in use for such a placement."""
        return self._schedule or _usual_schedule(self.placement)

    def microbatches_held(self) -> list[int]:
        """By stage of all copies: for how many microbatches at once it keeps activations.

        As the schedule does; without one, as the schedule in use for such a placement.
        """
        schedule = self.usual_schedule()
        if schedule is not None:
            return microbatches_held(schedule)
        # As in 1F1B: what is on its way from a stage to the last one and back.
        size = self.num_stages
        return [size - stage % size for stage in range(self.placement.num_stages)]


def microbatches_held(schedule: _C.Schedule) -> list[int]:
    """By stage: for how many microbatches at once it keeps activations."""
    most = [0] * schedule.num_stages
    held: list[set[int]] = [set() for _ in most]
    for actions in schedule.actions:
        for action in (half for whole in actions for half in (whole, whole.paired) if half):
            if action.microbatch is None:
                continue
            if action.kind == "F":
                held[action.stage].add(action.microbatch)
                most[action.stage] = max(most[action.stage], len(held[action.stage]))
            elif action.kind in ("B", "W"):
                held[action.stage].discard(action.microbatch)
    return most


def _to_placement(given: PlacementLike, num_stages: int | None) -> _C.Placement:
    if isinstance(given, _C.Placement):
        return given
    if isinstance(given, _C.Schedule):
        return given.placement
    if isinstance(given, Sequence) and not isinstance(given, str) and given:
        if all(type(rank) is int for rank in given):
            return _C.Placement(max(given) + 1, given)
        raise TypeError(f"{_EXPECTED}; got {given!r}")
    if given not in (None, "v"):
        raise ValueError(f"{_EXPECTED}; got {given!r}")
    if num_stages is None:
        raise ValueError("expected num_stages or at, got neither")
    if given is None:
        return _C.Placement.loop(num_stages, num_stages)
    if num_stages % 2:
        raise ValueError(
            f"a V has two stages on each rank: expected an even number, got {num_stages}"
        )
    return _C.Placement.v_shaped(num_stages // 2, num_stages)


def _usual_schedule(placement: _C.Placement) -> _C.Schedule | None:
    """A schedule by name that has this placement, in a step long enough to hold its most."""
    num_ranks = placement.num_ranks
    for name in ("1f1b", "interleaved_1f1b", "zb_v", "dualpipe"):
        try:
            schedule = _C.Schedule.build(
                name,
                num_ranks=num_ranks,
                num_microbatches=4 * num_ranks,
                num_stages=placement.num_stages,
            )
        except ValueError:  # it has no such number of stages
            continue
        if schedule.placement == placement:
            return schedule
    return None
