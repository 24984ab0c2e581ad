"""Which passes are of one kind, so that one recording does for them; how many are kept."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipert.batches.batch import Batch
from pipert.batches.results import StepResult
from pipert.captured.batch import NotRecordableError

# Passes of a kind that run as they are before one is recorded: libraries are loaded, workspaces
# made, algorithms chosen.
NUM_WARMUPS = 2
# How many recordings are kept. The one that was used longest ago goes first.
MAX_RECORDINGS = 8


class PassKind(NamedTuple):
    """What a pass is asked to do, beside its batch."""

    training: bool
    compute_loss: bool
    keep_outputs: bool


RunPass = Callable[[Batch, PassKind], StepResult]


class PassKey(NamedTuple):
    """Passes with equal ones are alike, as far as the caller's side of them goes."""

    kind: PassKind
    tensors: tuple[Any, ...]  # of the batch: see describe
    rest: Any  # of the batch
    state: int  # of the process and the modules: see Conditions


def describe(tensors: Iterable[Tensor], device: torch.device) -> tuple[Any, ...]:
    """All of a batch's tensors but their numbers.

    Raises:
        NotRecordableError: a recording on `device` can't have one like it for its own.
    """
    for tensor in tensors:
        if tensor.device != device:
            raise NotRecordableError(f"an argument is on {tensor.device}, expected {device}")
        if tensor.requires_grad:
            raise NotRecordableError("an argument requires a gradient")
        if not tensor.is_contiguous() and torch.empty_like(tensor).stride() != tensor.stride():
            raise NotRecordableError("an argument is not dense in memory")
    return tuple((t.shape, t.dtype, t.stride()) for t in tensors)
