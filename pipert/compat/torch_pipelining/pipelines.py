"""The Pipeline that runs the stages of a schedule."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pipert import _C
from pipert.compat.torch_pipelining.stage import _PipelineStageBase
from pipert.compat.torch_pipelining.weight_halves import put_off_weights
from pipert.pipeline import Pipeline
from pipert.stages import Stages


def check_stages(stages: Sequence[_PipelineStageBase]) -> None:
    """Checks that they are stages of one pipeline, each once, and that they are all that is here.

    Raises:
        ValueError, TypeError: the message says what was expected.
    """
    if not stages or not all(isinstance(stage, _PipelineStageBase) for stage in stages):
        names = [type(stage).__name__ for stage in stages]
        raise TypeError(f"stages must be PipelineStages of pipert.compat, got {names}")
    first = stages[0]
    for stage in stages:
        if stage.num_stages != first.num_stages:
            raise ValueError(
                f"the stages are of pipelines of {first.num_stages} and {stage.num_stages} stages"
            )
        if stage.group is not first.group:
            raise ValueError("the stages have different groups, expected one")
    indices = [stage.stage_index for stage in stages]
    if len(set(indices)) != len(indices):
        raise ValueError(f"each stage must be given once, got stages {indices}")
    if first.group is None and len(indices) != first.num_stages:
        raise ValueError(
            f"without torch.distributed all of the {first.num_stages} stages are in this process, "
            f"got stages {sorted(indices)}"
        )


def make_pipeline(
    stages: Sequence[_PipelineStageBase],
    schedule: _C.Schedule,
    loss_fn: Callable[..., Tensor],
    overlap_fn: Callable[..., Any] | None,
) -> Pipeline:
    """A Pipeline of these stages, of which the group's other ranks have the rest.

    Args:
        stages: of this rank, or in one process all of them.
        schedule: says which rank has which stage.
        loss_fn: as of Pipeline.
        overlap_fn: as of Pipeline.

    Raises:
        ValueError, TypeError: the stages don't fit the schedule.
    """
    return Pipeline(
        _whole_model(stages, _problem(stages, schedule)),
        schedule=schedule,
        num_microbatches=schedule.num_microbatches,
        loss_fn=loss_fn,
        overlap_fn=overlap_fn,
        group=stages[0].group,
        devices=_devices(stages, schedule),
    )


def _problem(stages: Sequence[_PipelineStageBase], schedule: _C.Schedule) -> str:
    """What is wrong with this rank's stages; nothing: ""."""
    if stages[0].group is None:
        return ""
    placement, rank = schedule.placement, stages[0].group_rank
    expected = [s for s in range(placement.num_stages) if placement.rank_of(s) == rank]
    got = sorted(stage.stage_index for stage in stages)
    if got != expected:
        return f"rank {rank} must have stages {expected} in {schedule.name}, got {got}"
    devices = sorted({str(torch.device(stage.device)) for stage in stages})
    if len(devices) > 1:
        return f"the stages of rank {rank} must be on one device, got {' and '.join(devices)}"
    return ""


def _whole_model(stages: Sequence[_PipelineStageBase], problem: str) -> Sequence[Any]:
    """All stages of the model, of which those of other ranks can't be built.

    With a problem none can, so that the other ranks hear of it, which make the Pipeline too.
    """
    first = stages[0]
    here = {} if problem else {stage.stage_index: stage.submod for stage in stages}
    for stage in stages:
        if stage._edges is not None:
            stage._edges.put_on(stage.submod)
        put_off_weights(stage.submod, stage.dw_builder)  # behind the edges: it sees plain tensors
    refuse = functools.partial(_refuse, problem or "the stage belongs to another rank")
    whole = [here.get(s, refuse) for s in range(first.num_stages)]
    wired = first._stages
    if wired is None or wired.specs is None:
        return whole
    return Stages(
        whole,
        specs=wired.specs,
        values=wired.values,
        tied=wired.tied,
        arguments=wired.arguments,
        names=wired.names,
    )


def _refuse(problem: str) -> NoReturn:
    raise ValueError(problem)


def _devices(stages: Sequence[_PipelineStageBase], schedule: _C.Schedule) -> list[torch.device]:
    """One for each rank of this process."""
    if stages[0].group is not None:
        return [torch.device(stages[0].device)]
    ranks = schedule.placement.ranks
    by_rank: dict[int, torch.device] = {}
    for stage in stages:
        rank, device = ranks[stage.stage_index], torch.device(stage.device)
        if by_rank.setdefault(rank, device) != device:
            raise ValueError(
                f"the stages of rank {rank} must be on one device, got {by_rank[rank]} and {device}"
            )
    return [by_rank[rank] for rank in sorted(by_rank)]


class CurrentLoss:
    """The loss function that a schedule has at the time of a pass."""

    def __init__(self) -> None:
        self._loss_fn: Callable[..., Tensor] | None = None

    def set(self, loss_fn: Callable[..., Tensor] | None, last: _PipelineStageBase | None) -> None:
        """Takes another one, if it is another.

        Args:
            loss_fn: of an output and a target.
            last: the last stage, if it is here; a module is moved to its device.
        """
        if last is not None and isinstance(loss_fn, nn.Module) and loss_fn is not self._loss_fn:
            loss_fn.to(last.device)
        self._loss_fn = loss_fn

    def __call__(self, output: Any, target: Any, **kwargs: Any) -> Tensor:  # noqa: D102
        assert self._loss_fn is not None
        return self._loss_fn(output, target, **kwargs)
