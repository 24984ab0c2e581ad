"""Cuts torch's BlockMasks (torch.nn.attention.flex_attention), which don't cut themselves."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def cut_block_mask(mask: Any, num_microbatches: int, rows: int, what: str) -> list[Any]:
    """A BlockMask for each microbatch.

    One for a single row holds for all of them, and goes to every microbatch as it is.

    Args:
        mask: a BlockMask.
        num_microbatches: how many pieces.
        rows: of the batch.
        what: its name, for errors.

    Raises:
        ValueError: it is for another number of rows.
    """
    own = mask.kv_num_blocks.shape[0]
    if own == 1:
        return [mask] * num_microbatches
    if own != rows:
        raise ValueError(
            f"{what} is a BlockMask for {own} rows, expected 1 or {rows} (the batch size)"
        )

    def cut(tensor: Tensor | None) -> list[Any]:
        if tensor is None:
            return [None] * num_microbatches
        return list(torch.tensor_split(tensor, num_microbatches))

    pieces = []
    first = 0
    for blocks, indices, full_blocks, full_indices in zip(
        cut(mask.kv_num_blocks),
        cut(mask.kv_indices),
        cut(mask.full_kv_num_blocks),
        cut(mask.full_kv_indices),
        strict=True,
    ):
        pieces.append(
            type(mask).from_kv_blocks(
                kv_num_blocks=blocks,
                kv_indices=indices,
                full_kv_num_blocks=full_blocks,
                full_kv_indices=full_indices,
                BLOCK_SIZE=mask.BLOCK_SIZE,
                mask_mod=_shifted(mask.mask_mod, first),
                seq_lengths=mask.seq_lengths,
            )
        )
        first += blocks.shape[0]
    return pieces


def _shifted(mask_mod: Callable[..., Tensor], first: int) -> Callable[..., Tensor]:
    """The same function for rows that are counted from `first`."""

    def of_microbatch(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return mask_mod(b + first, h, q, kv)

    return of_microbatch
