"""The peer: torch.distributed.pipelining, used as its documentation says, on gloo."""

from __future__ import annotations

import torch
import torch.distributed as dist
from mlp import NUM_RANKS, Row, gradients, loss_fn
from torch import Tensor
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

_INTERLEAVED = {
    "interleaved_1f1b": ScheduleInterleaved1F1B,
    "zb_interleaved": ScheduleInterleavedZeroBubble,
}
_SINGLE = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}


class TorchPipeline:
    """One rank's part of a pipeline by torch.distributed.pipelining.

    Args:
        row: The model and the batch.
        schedule: "gpipe", "1f1b", "interleaved_1f1b" or "zb_interleaved".
    """

    def __init__(self, row: Row, schedule: str) -> None:
        rank = dist.get_rank()
        self.stages = {s: row.stage(s) for s in range(rank, row.num_stages, NUM_RANKS)}
        self._input, self._target = row.batch()
        self._first, self._last = rank == 0, rank == NUM_RANKS - 1
        device = torch.device("cpu")
        parts = [PipelineStage(m, s, row.num_stages, device) for s, m in self.stages.items()]
        if schedule in _INTERLEAVED:
            self._schedule = _INTERLEAVED[schedule](parts, row.num_microbatches, loss_fn)
        else:
            self._schedule = _SINGLE[schedule](parts[0], row.num_microbatches, loss_fn)
        self.losses: list[Tensor] = []

    def prepare(self) -> None:
        for module in self.stages.values():
            module.zero_grad(set_to_none=True)
        self.losses = []

    def run(self) -> None:
        args = (self._input,) if self._first else ()
        if self._last:
            self._schedule.step(*args, target=self._target, losses=self.losses)
        else:
            self._schedule.step(*args)

    def gradients(self) -> dict[str, Tensor]:
        """Returns this rank's gradients, by stage and parameter name."""
        return gradients(self.stages)
