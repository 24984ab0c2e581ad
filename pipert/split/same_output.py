"""Whether stages that run one after the other compute what their model does, bit for bit."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pipert.signatures import takes_keywords


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, running statistics and gradients; then the model is as it was."""
    was_training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in was_training:
            module.training = training


def check_same(
    model: nn.Module,
    stages: Sequence[nn.Module],
    how: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Runs both.

    Args:
        model: the unpartitioned model.
        stages: each takes what the one before returned, the first one `args`.
        how: what is checked, for the error: "does not run its children one after the other (...)".
        args: of one forward.
        kwargs: of one forward; a stage gets those that it takes.

    Raises:
        ValueError: the outputs differ, or a stage fails.
    """
    with evaluating(model):
        expected = model(*args, **kwargs)
        value = args
        for index, stage in enumerate(stages):
            # Their modes aren't all the model's own: a part of a model is a module of its own.
            with evaluating(stage):
                try:
                    taken = takes_keywords(stage, kwargs, is_first=index == 0)
                    value = (stage(*value, **taken),)
                except Exception as error:
                    raise ValueError(
                        f"{type(model).__name__} {how}: stage {index} fails when it does"
                    ) from error
    if not _equal(value[0], expected):
        raise ValueError(f"{type(model).__name__} {how}: the outputs differ")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)
