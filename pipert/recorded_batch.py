"""The batch of a recorded pass: its tensors, which change from pass to pass, and the rest."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipert.batch import Batch


class NotRecordableError(Exception):
    """A pass can't be recorded; the message says why."""


def take_apart(batch: Batch) -> tuple[list[Tensor], Any]:
    """The batch's tensors, and the rest of it as something that can be compared.

    Raises:
        NotRecordableError: there is something in it that can't.
    """
    if not (batch.kwargs or batch.loss_kwargs or batch.is_cut):  # the usual case, ten times faster
        plain = [*batch.args, batch.target]
        if all(type(value) is Tensor for value in plain):
            return plain, len(batch.args)
    tree = (batch.args, batch.kwargs, batch.target, batch.loss_kwargs, batch.microbatches)
    leaves, structure = pytree.tree_flatten(tree)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    others = tuple(_comparable(leaf) for leaf in leaves if not isinstance(leaf, Tensor))
    return tensors, (structure, others, tuple(isinstance(leaf, Tensor) for leaf in leaves))


def put_together(batch: Batch, tensors: Sequence[Tensor]) -> Batch:
    """The batch with other tensors."""
    tree = (batch.args, batch.kwargs, batch.target, batch.loss_kwargs, batch.microbatches)
    leaves, structure = pytree.tree_flatten(tree)
    following = iter(tensors)
    leaves = [next(following) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return Batch(*pytree.tree_unflatten(leaves, structure))


def _comparable(value: Any) -> tuple[type, Any]:
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return type(value), value  # True is 1, and 1 is 1.0
    raise NotRecordableError(f"an argument is a {type(value).__name__}")
