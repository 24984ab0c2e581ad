"""The result of a recorded pass: its tensors, which each replay computes anew, and the rest."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipert import _C
from pipert.batches.results import StepResult
from pipert.captured.batch import NotRecordableError


class RecordedResult:
    """Made while the pass is recorded, of what it returned.

    Attributes:
        slot: where each replay leaves the tensors.

    Raises:
        NotRecordableError: there is a tensor in it whose class a replay would lose.
    """

    def __init__(self, result: StepResult) -> None:
        whole = (result.loss, result.losses, result.outputs, result.metrics)
        self._leaves, self._structure = pytree.tree_flatten(whole)
        places = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]
        tensors = [_dense(self._leaves[i]) for i in places]
        self.slot = _C.TensorSlot(tensors)
        self.slot.fill(tensors)
        for place in places:
            self._leaves[place] = None
        self._places = places
        self._is_loss_alone = result.outputs is None and len(places) == 2

    def of(self, tensors: Sequence[Tensor]) -> StepResult:
        """The result with these tensors: those of a replay, as `slot.copies()` gives them."""
        if self._is_loss_alone:
            return StepResult(loss=tensors[0], losses=tensors[1])
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        return StepResult(*pytree.tree_unflatten(leaves, self._structure))


def _dense(tensor: Tensor) -> Tensor:
    """Itself, if it may be copied as bytes; with the strides of a clone, if they are dense."""
    if type(tensor) is not Tensor:
        raise NotRecordableError(f"an output is a {type(tensor).__name__}")
    is_dense = torch.empty_like(tensor, device="meta").stride() == tensor.stride()
    return tensor if is_dense else tensor.contiguous()
