"""Stages with specs that take arguments of the batch by name, and the plain loop over them."""

import copy

import torch
from run_in_turn import run_in_turn
from torch import Tensor, nn

import pipert
from pipert.stages import StageSpec, Value

WIDTH = 4


class Embed(nn.Embedding):
    """Takes ids, and positions if there are any."""

    def __init__(self) -> None:
        super().__init__(7, WIDTH)

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> tuple[Tensor]:
        hidden = super().forward(ids)
        return (hidden if positions is None else hidden + positions[..., None],)


class Middle(nn.Linear):
    """Takes a mask and numbers that no other stage does."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, mask: Tensor, options: dict | None = None) -> tuple[Tensor]:
        scale = 1.0 if options is None else options["scale"]
        return ((super().forward(hidden) * mask[..., None] * scale).tanh(),)


class Head(nn.Linear):
    """Takes the mask too, and a word."""

    def __init__(self) -> None:
        super().__init__(WIDTH, 7)

    def forward(self, hidden: Tensor, mask: Tensor, *, reduce: str = "none") -> Tensor:
        output = super().forward(hidden * mask[..., None])
        return output.sum(1) if reduce == "sum" else output


ARGUMENTS = ("ids", "mask", "positions", "unused", "options", "reduce")


def wired_stages(num_middles: int = 1, seed: int = 0) -> pipert.Stages:
    """Two stages more than `num_middles`: of a chain, so far as their values go."""
    torch.manual_seed(seed)
    middle = [
        StageSpec((f"h{i}",), (f"h{i + 1}",), ("mask", "options")) for i in range(num_middles)
    ]
    return pipert.Stages(
        [Embed(), *(Middle() for _ in middle), Head()],
        specs=[
            StageSpec((), ("h0",), ("ids", "positions")),
            *middle,
            StageSpec((f"h{num_middles}",), (), ("mask", "reduce")),
        ],
        values=[Value(f"h{i}", i, (i + 1,)) for i in range(num_middles + 1)],
        arguments=ARGUMENTS,
    )


def ids_and_mask(rows: int, length: int = 5, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Of shape (rows, length) each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 7, (rows, length), generator=generator)
    return ids, torch.rand(rows, length, generator=generator)


class PlainLoop:
    """Gradient accumulation over copies of the stages, run in turn."""

    def __init__(self, stages: pipert.Stages) -> None:
        self.stages = pipert.Stages(
            [copy.deepcopy(stage) for stage in stages],
            specs=stages.specs,
            values=stages.values,
            arguments=stages.arguments,
        )

    def step(self, entries, loss_of, weights=None):
        """The losses of microbatches, each (args, kwargs); `loss_of(output, microbatch)`."""
        losses = []
        for index, (args, kwargs) in enumerate(entries):
            loss = loss_of(run_in_turn(self.stages, args, kwargs), index)
            weight = 1 / len(entries) if weights is None else weights[index]
            loss.backward(torch.full_like(loss, weight))
            losses.append(loss.detach())
        return torch.stack(losses)

    def assert_same_gradients(self, pipe: pipert.Pipeline) -> None:
        """Of the stages of this process, bit for bit."""
        assert pipe.stages
        for index, stage in pipe.stages.items():
            pairs = zip(
                stage.named_parameters(), self.stages[index].named_parameters(), strict=True
            )
            for (name, ours), (_, theirs) in pairs:
                assert (ours.grad is None) == (theirs.grad is None), (index, name)
                assert ours.grad is None or torch.equal(ours.grad, theirs.grad), (index, name)
