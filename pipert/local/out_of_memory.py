"""What to say when a rank is out of memory: what it held, and what would hold less."""

from collections.abc import Sequence

import torch

from pipert import _C

_MOST_ACTIONS = 20_000  # of a schedule: others of its size are built in well under a second


class MemoryAdvice:
    """Knows the schedule that ran; see `__call__`.

    Args:
        schedule: the pipeline's.
        recomputes: whether any forward of it runs twice.
    """

    def __init__(self, schedule: _C.Schedule, recomputes: bool) -> None:
        self._schedule = schedule
        self._recomputes = recomputes

    def __call__(
        self,
        cause: BaseException | None,
        rank: int,
        training: bool,
        held: Sequence[tuple[int, int]],
        num_bytes: int | None,
    ) -> str:
        """Lines for the error message; "" unless `cause` is a lack of memory.

        Args:
            cause: what an action threw.
            rank: that ran it.
            training: whether the pass was a step.
            held: (stage, microbatches whose activations were there) of the rank.
            num_bytes: of its tensors, above what was there when the pass began; None: not measured.
        """
        if not isinstance(cause, torch.OutOfMemoryError):
            return ""
        total = sum(count for _, count in held)
        stages = ", ".join(f"{count} of stage {stage}" for stage, count in held)
        text = f"\n  rank {rank} held the activations of {total} microbatches: {stages}"
        if num_bytes is not None:
            text += f", {num_bytes / 1e6:.1f} MB with all else that it took since the pass began"
        return text + (self._ways_out(rank) if training else "")

    def _ways_out(self, rank: int) -> str:
        peak = _peak(self._schedule, rank)
        text = f"\n  {self._schedule.name} holds at most {peak} there"
        others = self._smaller(rank, peak)
        if others:
            text += "; with the same stages " + ", ".join(f"{n} would hold {k}" for n, k in others)
        if not self._recomputes:
            text += (
                "\n  recompute='all' keeps the input of each alone, and the activations of one at "
                "a time"
            )
        return text + "\n  more microbatches, of fewer rows each, make every one of them smaller"

    def _smaller(self, rank: int, peak: int) -> list[tuple[str, int]]:
        """Schedules that can take this one's place and hold less, those that hold least first."""
        own = self._schedule
        if sum(map(len, own.actions)) > _MOST_ACTIONS:
            return []
        found: dict[str, int] = {}
        for name in _C.schedules():
            if name == own.name:
                continue
            try:
                other = _C.Schedule.build(
                    name,
                    num_ranks=own.num_ranks,
                    num_microbatches=own.num_microbatches,
                    num_stages=own.num_stages,
                )
            except (ValueError, TypeError):  # not for so many ranks, stages or microbatches
                continue
            if other.is_asynchronous or other.placement.ranks != own.placement.ranks:
                continue
            if (count := _peak(other, rank)) < peak:
                found[name] = count
        return sorted(found.items(), key=lambda item: item[1])[:3]


def _peak(schedule: _C.Schedule, rank: int) -> int:
    """The most activations that the rank holds at a time."""
    return schedule.simulate(_C.Costs(), messages=False).peak_memory[rank]
