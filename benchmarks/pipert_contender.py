"""pipert as a contender: the same stages, batch and loss as its peers, threads or processes."""

from __future__ import annotations

import functools
from typing import Any

from mlp import NUM_RANKS, Row, gradients, loss_fn
from torch import Tensor

import pipert


class PipertPipeline:
    """A pipert Pipeline over a row's stages.

    Args:
        row: The model and the batch.
        schedule: A name of `pipert.schedules()`.
        group: The process group of which this process is a rank; None for ranks that are threads.
        options: Further options of `pipert.Pipeline`.
    """

    def __init__(self, row: Row, schedule: str, group: Any = None, **options: Any) -> None:
        self.pipe = pipert.Pipeline(
            [functools.partial(row.stage, stage) for stage in range(row.num_stages)],
            schedule=schedule,
            num_microbatches=row.num_microbatches,
            loss_fn=loss_fn,
            num_ranks=NUM_RANKS,
            group=group,
            **options,
        )
        self._input, self._target = row.batch()

    def prepare(self) -> None:
        for module in self.pipe.stages.values():
            module.zero_grad(set_to_none=True)

    def run(self) -> pipert.StepResult:
        return self.pipe.step(self._input, target=self._target)

    def gradients(self) -> dict[str, Tensor]:
        """Returns this process's gradients, by stage and parameter name."""
        return gradients(self.pipe.stages)
