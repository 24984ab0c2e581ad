"""What a step returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipert._C import Runtime


@dataclass(frozen=True)
class StepResult:
    """The result of one step or evaluation.

    Attributes:
        loss: the mean of the microbatches' losses, a scalar; with uneven microbatches, weighted by
            their rows. None on ranks that don't have it (see `broadcast_loss`), and without a
            loss function.
        losses: by microbatch, shape (num_microbatches,). None where `loss` is.
        outputs: the last stage's outputs, detached, put together along dimension 0; a list by
            microbatch if the batch came as microbatches. None unless asked for, and on ranks
            without the last stage. In a group with two copies of the model a rank has those of its
            own microbatches alone; in a list None stands for the others.
    """

    loss: Tensor | None
    losses: Tensor | None
    outputs: Any = None


def result_of(
    runtime: Runtime, compute_loss: bool, keep_outputs: bool, is_cut: bool, num_microbatches: int
) -> StepResult:
    """The result of the last pass of `runtime`, of which the same was asked."""
    loss = losses = outputs = None
    if compute_loss and (losses := runtime.losses()) is not None:
        loss = _mean_loss(losses, runtime.loss_weights())
    if keep_outputs and (kept := runtime.outputs()) is not None:
        everywhere = range(num_microbatches)
        pieces = [kept[m] for m in everywhere if m in kept]
        outputs = [kept.get(m) for m in everywhere] if is_cut else _merge_outputs(pieces)
    return StepResult(loss=loss, losses=losses, outputs=outputs)


def _mean_loss(losses: Tensor, weights: Sequence[float]) -> Tensor:
    """The mean of losses of shape (num_microbatches,), weighted when the weights differ."""
    if all(weight == weights[0] for weight in weights):
        return losses.mean()
    return (losses * torch.tensor(weights, dtype=losses.dtype, device=losses.device)).sum()


def _merge_outputs(pieces: Sequence[Any]) -> Any:
    """Puts the microbatches' outputs together along dimension 0.

    Tensors are concatenated, those without dimensions stacked; tuples, lists and dicts are merged
    element by element; anything else, and what doesn't fit together, becomes a list of its values.
    """
    try:
        return _merge(pieces)
    except (RuntimeError, TypeError, ValueError, KeyError):  # of different shapes or structures
        return list(pieces)


def _merge(pieces: Sequence[Any]) -> Any:
    first = pieces[0]
    if isinstance(first, Tensor):
        return torch.stack(list(pieces)) if first.dim() == 0 else torch.cat(list(pieces))
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*map(_merge, zip(*pieces, strict=True)))
    if isinstance(first, tuple | list):
        return type(first)(map(_merge, zip(*pieces, strict=True)))
    if isinstance(first, dict):
        return {key: _merge([piece[key] for piece in pieces]) for key in first}
    return list(pieces)
