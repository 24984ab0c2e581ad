"""What Pipeline's arguments mean: their checks, and the defaults that depend on each other."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pipert import _C


def check_arguments(
    stages: Sequence[Any],
    num_microbatches: int,
    loss_fn: Any,
    stage_kind: str,
    timeout_s: float,
    intra_op_threads: int | None,
) -> None:
    """Checks what can be checked of each argument alone."""
    if isinstance(stages, nn.Module):
        raise TypeError(
            f"stages must be a sequence of stages, got {type(stages).__name__}: cut it with "
            "pipert.split"
        )
    if not isinstance(stages, Sequence) or len(stages) == 0:
        raise TypeError(f"stages must be a sequence with at least one stage, got {stages!r}")
    if not isinstance(num_microbatches, int) or num_microbatches < 1:
        raise ValueError(f"num_microbatches must be a positive integer, got {num_microbatches!r}")
    if loss_fn is not None and not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable, got {type(loss_fn).__name__}")
    if stage_kind not in ("module", "auto"):
        raise ValueError(f"stage_kind must be 'module' or 'auto', got {stage_kind!r}")
    if timeout_s <= 0:
        raise ValueError(f"timeout_s must be positive, got {timeout_s}")
    if intra_op_threads is not None and intra_op_threads < 1:
        raise ValueError(f"intra_op_threads must be at least 1, got {intra_op_threads}")


def default_num_ranks(
    stages: Sequence[Any], schedule: Any, devices: Any, group: dist.ProcessGroup | None
) -> int:
    """How many ranks a pipeline has whose user doesn't say."""
    if group is not None:
        return dist.get_world_size(group)
    if isinstance(schedule, _C.Schedule):
        return schedule.num_ranks
    if isinstance(devices, list | tuple):
        return len(devices)
    return len(stages)


def load_schedule(schedule: Any) -> Any:
    """Reads a CSV file; anything else stays what it is."""
    is_path = isinstance(schedule, str) and schedule.endswith(".csv")
    if not is_path and not isinstance(schedule, os.PathLike):
        return schedule
    if not Path(schedule).is_file():
        raise ValueError(f"schedule: there is no file {os.fspath(schedule)!r}")
    return _C.Schedule.from_csv(schedule)


def resolve_schedule(
    schedule: Any,
    num_ranks: int,
    num_microbatches: int,
    num_stages: int,
    options: Mapping[str, int],
) -> _C.Schedule:
    """Builds a schedule given by name; checks that one that is given as it is fits."""
    if isinstance(schedule, str):
        return _C.Schedule.build(
            schedule,
            num_ranks=num_ranks,
            num_microbatches=num_microbatches,
            num_stages=num_stages,
            **options,
        )
    if not isinstance(schedule, _C.Schedule):
        raise TypeError(
            "schedule must be a name, a Schedule or the path of a CSV file, got "
            f"{type(schedule).__name__}"
        )
    if options:
        raise ValueError("schedule_options go with a schedule that is given by name")
    for name, expected in (
        ("num_ranks", num_ranks),
        ("num_microbatches", num_microbatches),
        ("num_stages", num_stages),
    ):
        if getattr(schedule, name) != expected:
            raise ValueError(
                f"the schedule is for {name}={getattr(schedule, name)}, the pipeline has {expected}"
            )
    return schedule


def check_placement(placement: Any, schedule: _C.Schedule) -> None:
    """Checks that the schedule has the placement that the user expects."""
    if placement is None:
        return
    ranks = placement.ranks if isinstance(placement, _C.Placement) else list(placement)
    if ranks != schedule.placement.ranks:
        raise ValueError(
            f"placement: the schedule {schedule.name} puts its stages on ranks "
            f"{schedule.placement.ranks}, got {ranks}"
        )


def resolve_devices(devices: Any, ranks: Sequence[int]) -> list[torch.device]:
    """A device for each of the ranks of this process."""
    if devices is None:
        devices = "cpu"
    if isinstance(devices, list | tuple):
        if len(devices) != len(ranks):
            raise ValueError(
                f"devices must have one entry for each of the {len(ranks)} ranks of this process, "
                f"got {len(devices)}"
            )
        return [torch.device(device) for device in devices]
    return [torch.device(devices)] * len(ranks)


def cut_already(microbatches: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Positional and keyword arguments of microbatches that the user has cut."""
    args: list[Any] = []
    kwargs: list[Any] = []
    for microbatch in microbatches:
        if isinstance(microbatch, dict):
            args.append(())
            kwargs.append(microbatch)
        else:
            args.append(microbatch if isinstance(microbatch, tuple) else (microbatch,))
            kwargs.append({})
    return args, kwargs
