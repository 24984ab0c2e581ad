"""Ranges for a profiler: whether the user asks for them, and whether this build has them."""

import os
import warnings

from pipert import _C


def wants_ranges() -> bool:
    """Whether the environment says PIPERT_NVTX=1: then each action opens a range of NVTX."""
    wanted = os.environ.get("PIPERT_NVTX", "0")
    if wanted not in ("0", "1", ""):
        raise ValueError(f"the environment's PIPERT_NVTX must be 0 or 1, got {wanted!r}")
    if wanted != "1":
        return False
    if not _C.has_profiler_ranges():
        warnings.warn(
            "PIPERT_NVTX=1: this build of pipert has no NVTX: expected a torch with CUDA and a "
            "CUDA toolkit with nvtx3 when it was built",
            stacklevel=2,
        )
    return True
