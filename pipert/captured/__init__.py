"""Captured stages: what ranks give a CUDA device to do, recorded once, and launched from then on.

Of ranks in one process whole passes (`CapturedSteps`), of a rank of a group its actions one by one
(`CapturedActions`). See docs/gpu.md.
"""

from pipert.captured.actions import CapturedActions
from pipert.captured.choice import captured_passes
from pipert.captured.graphs import make_recorder
from pipert.captured.kinds import MAX_RECORDINGS, NUM_WARMUPS, PassKind
from pipert.captured.steps import CapturedSteps

__all__ = [
    "MAX_RECORDINGS",
    "NUM_WARMUPS",
    "CapturedActions",
    "CapturedSteps",
    "PassKind",
    "captured_passes",
    "make_recorder",
]
