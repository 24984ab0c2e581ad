"""How a batch is cut and put together: torch's own functions, which know no process group."""

from torch.distributed.pipelining.microbatch import (
    TensorChunkSpec,
    _Replicate,
    merge_chunks,
    split_args_kwargs_into_chunks,
    sum_reducer,
)

__all__ = [
    "TensorChunkSpec",
    "_Replicate",
    "merge_chunks",
    "split_args_kwargs_into_chunks",
    "sum_reducer",
]
