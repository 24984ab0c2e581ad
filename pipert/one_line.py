"""One line that makes a Pipeline of a model."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipert.pipeline import Pipeline
from pipert.processes.group import as_group, init
from pipert.split import split


def pipeline(
    model: nn.Module,
    partition: int | Sequence[int] | Sequence[str] | None = None,
    *,
    num_microbatches: int | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    example_args: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    balance: Any = "parameters",
    schedule: Any = None,
    group: Any = None,
    devices: Any = None,
    **options: Any,
) -> Pipeline:
    """Cuts a model into stages and makes a Pipeline of them.

    Args:
        model: the unpartitioned one, whose submodules the stages share.
        partition: how many stages; or how many layers each has; or the layers that begin a new
            one, by path. None: one for each rank.
        num_microbatches: how many pieces a batch is cut into; four for each rank by default.
        loss_fn: as of Pipeline.
        example_args: positional arguments of one forward, as of `split`.
        example_kwargs: keyword arguments, as of `split`.
        balance: with a number of stages, as of `split`; what is measured is so on the first rank.
        schedule: as of Pipeline; by default "1f1b", or "interleaved_1f1b" where a rank has several
            stages.
        group: as of Pipeline; by default all processes that torchrun started, and one process
            otherwise, whose ranks are threads, one for each stage.
        devices: as of Pipeline; by default where the model is. Under torchrun with a model on CUDA
            devices, the one of its local rank.
        **options: of Pipeline.

    Raises:
        ValueError, TypeError: the message says what was expected.
    """
    group = init() if group is None else as_group(group)
    if partition is None:
        if group is None:
            raise ValueError("expected a partition, such as 2 stages, or a group; got neither")
        partition = group.size()
    stages = split(
        model,
        example_args=example_args,
        example_kwargs=example_kwargs,
        group=group,
        **_cuts(partition, balance),
    )
    num_ranks = options.pop("num_ranks", len(stages) if group is None else group.size())
    if schedule is None:
        schedule = "1f1b" if num_ranks == len(stages) else "interleaved_1f1b"
    return Pipeline(
        stages,
        schedule=schedule,
        num_microbatches=4 * num_ranks if num_microbatches is None else num_microbatches,
        loss_fn=loss_fn,
        group=group,
        num_ranks=num_ranks,
        devices=_device_of(model, group) if devices is None else devices,
        **options,
    )


def _cuts(partition: Any, balance: Any) -> dict[str, Any]:
    """Arguments of `split`."""
    if isinstance(partition, int):
        return {"num_stages": partition, "balance": balance}
    if isinstance(partition, Sequence) and not isinstance(partition, str) and len(partition) > 0:
        if all(isinstance(path, str) for path in partition):
            return {"at": partition}
        if all(isinstance(size, int) for size in partition):
            return {"num_stages": len(partition), "balance": partition}
    raise TypeError(
        "partition must be a number of stages, the layers of each or the paths that begin a new "
        f"one, got {partition!r}"
    )


def _device_of(model: nn.Module, group: Any) -> torch.device | None:
    """Where its first parameter is; in a group, this process's device of that kind."""
    first = next(model.parameters(), None)
    if first is None or first.is_meta:
        return None
    if group is not None and first.device.type == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return first.device
