"""Whether stages that run one after the other compute what their model does, bit for bit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from pipert.signatures import takes_keywords
from pipert.split.trial_run import difference


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, running statistics and gradients; then the model is as it was."""
    with _in_mode([model], training=False), torch.no_grad():
        yield


def check_same_in_turn(
    model: nn.Module,
    stages: Sequence[nn.Module],
    how: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Runs both, in evaluation and in training mode.

    In training a forward may drop out what its modules return, or cut its gradient off.

    Args:
        model: the unpartitioned model.
        stages: each takes what the one before returned, the first one `args`.
        how: what is checked, for the error: "does not run its children one after the other (...)".
        args: of one forward.
        kwargs: of one forward; a stage gets those that it takes.

    Raises:
        ValueError: the outputs or the gradients differ, or a stage fails.
    """
    name = type(model).__name__
    in_turn = partial(_in_turn, stages, f"{name} {how}")
    for training in (False, True):
        # Stages have modes of their own: a part of a model is another module.
        with _in_mode([model, *stages], training), torch.set_grad_enabled(training):
            found = difference(model, model, in_turn, args, kwargs)
        if found is not None:
            mode = "training" if training else "evaluation"
            raise ValueError(f"{name} {how}: {found.text} in {mode} mode")


@contextmanager
def _in_mode(modules: Iterable[nn.Module], training: bool) -> Iterator[None]:
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = training
        yield
    finally:
        for part, before in modes:
            part.training = before


def _in_turn(stages: Sequence[nn.Module], what: str, *args: Any, **kwargs: Any) -> Any:
    value = args
    for index, stage in enumerate(stages):
        try:
            value = (stage(*value, **takes_keywords(stage, kwargs, is_first=index == 0)),)
        except Exception as error:
            raise ValueError(f"{what}: stage {index} fails when it does") from error
    return value[0]
