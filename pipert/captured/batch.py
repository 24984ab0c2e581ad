"""The batch of a recorded pass: its tensors, which change from pass to pass, and the rest."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipert.batches.batch import Batch


class NotRecordableError(Exception):
    """A pass can't be recorded; the message says why."""


def plain_values(batch: Batch) -> tuple[Any, ...] | None:
    """The usual batch, of positional arguments and perhaps a target, as one tuple; else None."""
    is_usual = batch.microbatches is None and batch.loss_weights is None
    if batch.kwargs or batch.loss_kwargs or not is_usual:
        return None
    return batch.args if batch.target is None else (*batch.args, batch.target)


def plain_rest(batch: Batch) -> tuple[int, bool]:
    """The rest of a batch whose values are plain, and all of them tensors."""
    return len(batch.args), batch.target is None


def take_apart(batch: Batch) -> tuple[tuple[Tensor, ...], Any]:
    """The batch's tensors, and the rest of it as something that can be compared.

    Raises:
        NotRecordableError: there is something in it that can't.
    """
    values = plain_values(batch)
    if values is not None and all(type(value) is Tensor for value in values):
        return values, plain_rest(batch)
    if isinstance(batch.loss_weights, Tensor):
        raise NotRecordableError("loss_weights are a tensor, which a recording would have fixed")
    leaves, structure = pytree.tree_flatten(tuple(batch))
    tensors = tuple(leaf for leaf in leaves if _is_plain(leaf))
    others = tuple(_comparable(leaf) for leaf in leaves if not _is_plain(leaf))
    return tensors, (structure, others, tuple(map(_is_plain, leaves)))


def put_together(batch: Batch, tensors: Sequence[Tensor]) -> Batch:
    """The batch with other tensors."""
    leaves, structure = pytree.tree_flatten(tuple(batch))
    following = iter(tensors)
    leaves = [next(following) if _is_plain(leaf) else leaf for leaf in leaves]
    return Batch(*pytree.tree_unflatten(leaves, structure))


def _is_plain(leaf: Any) -> bool:
    return type(leaf) is Tensor or type(leaf) is nn.Parameter


def _comparable(value: Any) -> tuple[type, Any]:
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return type(value), value  # True is 1, and 1 is 1.0
    raise NotRecordableError(f"an argument is a {type(value).__name__}")
