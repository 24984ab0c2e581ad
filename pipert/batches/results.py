"""What a step returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipert._C import Runtime
from pipert.batches.merging import merge_outputs
from pipert.batches.specs import Spec


@dataclass(frozen=True)
class StepResult:
    """The result of one step or evaluation.

    Attributes:
        loss: the mean of the microbatches' losses, a scalar; with uneven microbatches, weighted by
            their rows, or as `loss_weights` or `loss_weight` say. None on ranks that don't have it
            (see `broadcast_loss`), and without a loss function.
        losses: by microbatch, shape (num_microbatches,). None where `loss` is.
        outputs: the last stage's outputs, detached, put together along dimension 0, or as
            `output_spec` says; a list by microbatch if the batch came as microbatches. None unless
            asked for, and on ranks without the last stage. In a group with two copies of the model
            a rank has those of its own microbatches alone; in a list None stands for the others.
        metrics: what the loss function returned beside the loss, detached: by name, of shape
            (num_microbatches,), NaN for microbatches without. On the last stage's rank; in a group
            with two copies of the model, as outputs.
    """

    loss: Tensor | None
    losses: Tensor | None
    outputs: Any = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


def result_of(
    runtime: Runtime,
    compute_loss: bool,
    keep_outputs: bool,
    is_cut: bool,
    num_microbatches: int,
    output_spec: Spec,
) -> StepResult:
    """The result of the last pass of `runtime`, of which the same was asked."""
    loss = losses = outputs = None
    metrics: dict[str, Tensor] = {}
    if compute_loss and (losses := runtime.losses()) is not None:
        loss = _mean_loss(losses, runtime.loss_weights())
    kept, numbers = runtime.kept() if compute_loss or keep_outputs else (None, None)
    if numbers is not None:
        metrics = numbers
    if keep_outputs and kept is not None:
        everywhere = range(num_microbatches)
        pieces = [kept[m] for m in everywhere if m in kept]
        outputs = (
            [kept.get(m) for m in everywhere] if is_cut else merge_outputs(pieces, output_spec)
        )
    return StepResult(loss, losses, outputs, metrics)


def _mean_loss(losses: Tensor, weights: Sequence[float]) -> Tensor:
    """The loss of the batch, from those of the microbatches, of shape (num_microbatches,)."""
    if all(weight == 1 / len(weights) for weight in weights):
        return losses.mean()
    factors = torch.tensor(weights, dtype=losses.dtype, device=losses.device)
    # What counts nothing may be NaN.
    return torch.where(factors == 0, torch.zeros_like(losses), losses * factors).sum()
