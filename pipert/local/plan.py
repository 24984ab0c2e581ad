"""Plan: what a schedule makes of this process's ranks."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from pipert import _C
from pipert.local.out_of_memory import MemoryAdvice
from pipert.local.programs import Programs
from pipert.options import Options
from pipert.recompute import recomputed


class Plan:
    """The programs of a schedule, for the ranks of this process.

    Args:
        schedule: the pipeline's.
        devices: by rank, for the ranks of this process.
        options: the pipeline's.
        routes: of the values that stages exchange; None where they have no specs.

    Attributes:
        programs: of this process, for steps.
        advise: what _C.Runtime asks when a rank is out of memory.
        recomputed: by stage with any microbatch whose forward runs twice, which ones.
        stage_graph: what stages exchange beyond the chain; None: nothing.
    """

    def __init__(
        self,
        schedule: _C.Schedule,
        devices: Mapping[int, torch.device],
        options: Options,
        routes: _C.Routes | None,
    ) -> None:
        self.stage_graph = None if routes is None else routes.stage_graph()
        self._lowerings = options.lowerings(schedule, self.stage_graph)
        self.programs = Programs.proved(self._lowerings[0], devices)
        evaluation = Programs.proved(self._lowerings[1], devices)
        self.recomputed = recomputed(options.recompute, schedule)
        self.advise = MemoryAdvice(schedule, recomputes=bool(self.recomputed))
        self._own = {
            (program.rank, training): program
            for training, programs in ((True, self.programs), (False, evaluation))
            for program in programs
        }
        self._for_runtime = {
            "ranks": [
                (*pair, str(on))
                for *pair, on in zip(self.programs, evaluation, devices.values(), strict=True)
            ],
            "recomputed": self.recomputed,
            "routes": None if routes is None else (routes, schedule.placement),
        }

    def complete(self, make_runtime: "partial[_C.Runtime]") -> "partial[_C.Runtime]":
        """With the arguments of _C.Runtime that come from the schedule."""
        return partial(make_runtime, **self._for_runtime)

    def program_of(self, rank: int, training: bool) -> Any:
        """Any rank's program: one of another process is made for the occasion."""
        own = self._own.get((rank, training))
        return self._lowerings[0 if training else 1][rank] if own is None else own
