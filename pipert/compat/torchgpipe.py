"""torchgpipe's and fairscale's one line, on pipert's engine."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from pipert.one_line import pipeline
from pipert.pipeline import Pipeline
from pipert.split import split

_RECOMPUTE = {"always": "all", "except_last": "except_last", "never": "none"}


def GPipe(  # noqa: N802 - torchgpipe's class
    module: nn.Sequential,
    balance: Iterable[int] | None = None,
    devices: Any = None,
    chunks: int = 1,
    checkpoint: str = "except_last",
    deferred_batch_norm: bool = False,
    *,
    loss_fn: Callable[..., Tensor] | None = None,
    **options: Any,
) -> Pipeline:
    """A Pipeline under the schedule "gpipe", whose ranks are threads of this process.

    torchgpipe's runs a forward, and autograd runs it back. Here `step(x, target=y)` does both, with
    `loss_fn`; calling the Pipeline computes outputs without gradients.

    Args:
        module: the unpartitioned model.
        balance: how many layers each stage has; None: a stage for each device, with as equal
            numbers of parameters as can be.
        devices: one for each stage; by default where the module is.
        chunks: how many microbatches a batch is cut into.
        checkpoint: which microbatches keep their input alone and run forward again: "always",
            "except_last" or "never".
        deferred_batch_norm: whether batch norms update their running statistics once a pass, from
            the whole batch. Their variance is torch's, that of a sample; torchgpipe's is divided by
            the number of values.
        loss_fn: as of Pipeline.
        **options: of Pipeline.

    Raises:
        ValueError, TypeError: the message says what was expected.
    """
    if checkpoint not in _RECOMPUTE:
        raise ValueError(
            f"checkpoint must be 'always', 'except_last' or 'never', got {checkpoint!r}"
        )
    if balance is not None:
        partition: Any = list(balance)
    elif devices is not None:
        devices = list(devices)
        partition = len(devices)
    else:
        raise ValueError("expected a balance, such as [2, 2], or devices; got neither")
    return pipeline(
        module,
        partition,
        num_microbatches=chunks,
        loss_fn=loss_fn,
        schedule="gpipe",
        devices=devices,
        recompute=_RECOMPUTE[checkpoint],
        deferred_batch_norm=deferred_batch_norm,
        **options,
    )


def balance_by_time(partitions: int, module: nn.Sequential, sample: Any) -> list[int]:
    """How many layers each stage has, if all are to take the same time.

    Args:
        partitions: how many stages.
        module: the unpartitioned model.
        sample: a microbatch: a tensor, or a tuple for a model that takes a tuple.
    """
    return _sizes(partitions, module, sample, "time")


def balance_by_size(partitions: int, module: nn.Sequential, sample: Any) -> list[int]:
    """How many layers each stage has, if all are to take the same memory; see `balance_by_time`."""
    return _sizes(partitions, module, sample, "memory")


def _sizes(partitions: int, module: nn.Sequential, sample: Any, balance: str) -> list[int]:
    stages = split(module, partitions, example_args=(sample,), balance=balance)
    return [len(stage) for stage in stages]
