"""The models of the step benchmarks: stages of Linear layers, from all overhead to all compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

NUM_RANKS = 2

loss_fn = nn.functional.mse_loss


@dataclasses.dataclass(frozen=True)
class Row:
    """One size of model and batch.

    Attributes:
        layers: Linear layers in a stage.
        width: Features in and out of each layer.
        microbatch_size: Samples in a microbatch.
        num_microbatches: Microbatches in a step.
        stages_per_rank: Stages on each of the two ranks.
        rounds: How often a benchmark times it, unless it's told otherwise.
    """

    layers: int
    width: int
    microbatch_size: int
    num_microbatches: int
    stages_per_rank: int = 1
    rounds: int = 40

    def __str__(self) -> str:
        size = f"{self.layers}xLinear({self.width}) mb {self.microbatch_size}"
        stages = "" if self.stages_per_rank == 1 else f" {self.stages_per_rank} stages/rank"
        return f"{size} M={self.num_microbatches}{stages}"

    @property
    def num_stages(self) -> int:
        return NUM_RANKS * self.stages_per_rank

    def stage(self, index: int) -> nn.Sequential:
        """Builds a stage. Its parameters depend on `index` alone: every contender starts alike."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(index)
            return nn.Sequential(*(nn.Linear(self.width, self.width) for _ in range(self.layers)))

    def batch(self) -> tuple[Tensor, Tensor]:
        """Returns input and target, each of shape (microbatches * samples, width), float32."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.num_microbatches * self.microbatch_size, self.width)
        return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


ROWS = {
    "row1": Row(layers=1, width=16, microbatch_size=1, num_microbatches=32),
    "row2": Row(layers=4, width=64, microbatch_size=4, num_microbatches=32),
    "row3": Row(layers=4, width=256, microbatch_size=16, num_microbatches=16),
    "row4": Row(layers=4, width=1024, microbatch_size=32, num_microbatches=16, rounds=16),
    "row2i": Row(layers=4, width=64, microbatch_size=4, num_microbatches=32, stages_per_rank=2),
}


class Limit:
    """The physical limit of a step: one rank's compute plus fill and drain, with transfers free.

    `run` takes the time of the plain module's forward and backward, M * v + p - 1 times for M
    microbatches and v stages on each of p ranks.
    """

    def __init__(self, row: Row) -> None:
        self._module = row.stage(0)
        self._runs = row.num_microbatches * row.stages_per_rank + NUM_RANKS - 1
        shape = (row.microbatch_size, row.width)
        self._input = torch.randn(shape, requires_grad=True)
        self._gradient = torch.randn(shape)

    def prepare(self) -> None:
        self._module.zero_grad(set_to_none=True)
        self._input.grad = None

    def run(self) -> None:
        for _ in range(self._runs):
            self._module(self._input).backward(self._gradient)


class LastRank(Limit):
    """What the last rank's own modules and loss function take in a plain Python loop.

    The limit knows no loss function, the last rank has one: no pipeline that runs it as Python can
    be much faster than this.
    """

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self._row = row
        self._target = torch.randn(row.microbatch_size, row.width)

    def run(self) -> None:
        for _ in range(self._row.num_microbatches):
            for _ in range(self._row.stages_per_rank - 1):
                self._module(self._input).backward(self._gradient)
            loss_fn(self._module(self._input), self._target).backward()


def gradients(stages: Mapping[int, nn.Module]) -> dict[str, Tensor]:
    """Returns the gradients of some stages as {"<stage>.<parameter>": gradient}."""
    found = {}
    for stage, module in stages.items():
        for name, parameter in module.named_parameters():
            if parameter.grad is None:
                raise RuntimeError(f"stage {stage}: {name} has no gradient")
            found[f"{stage}.{name}"] = parameter.grad.detach().clone()
    return found


def check_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Makes sure that two contenders do the same work.

    Raises:
        RuntimeError: If a gradient that both have differs by more than rounding, or none is shared.
    """
    shared = ours.keys() & theirs.keys()
    if not shared:
        raise RuntimeError("the contenders have no gradient in common")
    for name in sorted(shared):
        if not torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-6):
            raise RuntimeError(f"the contenders' gradients of {name} differ: not the same work")
