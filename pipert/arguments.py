"""What Pipeline's stages, schedule and devices mean, whose defaults depend on each other."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipert import _C
from pipert.devices import device_of


def check_stages(stages: Any) -> None:
    """Checks what can be checked before any of them is made."""
    if isinstance(stages, nn.Module):
        raise TypeError(
            f"stages must be a sequence of stages, got {type(stages).__name__}: cut it with "
            "pipert.split"
        )
    if not isinstance(stages, Sequence) or isinstance(stages, str) or len(stages) == 0:
        raise TypeError(f"stages must be a sequence with at least one stage, got {stages!r}")


def check_integers(**values: int | None) -> None:
    """Checks that each is a positive integer that fits 32 bits; None: left to its default."""
    for name, value in values.items():
        if value is None and name not in ("num_microbatches", "receive_slots"):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def _check_options(options: Any) -> dict[str, int]:
    """The options of a schedule that is given by name."""
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise TypeError(f"schedule_options must be a dict of names and values, got {options!r}")
    reserved = ("name", "num_ranks", "num_microbatches", "num_stages")
    for name in options:
        if name == "forward_only":
            raise ValueError("schedule_options: forward_only leaves nothing to train")
        if name in reserved:
            raise ValueError(f"schedule_options: {name} is an argument of Pipeline itself")
    return dict(options)


def choose_schedule(
    schedule: Any,
    stages: Sequence[Any],
    *,
    num_microbatches: int,
    num_ranks: int | None,
    devices: Any,
    group_size: int | None,
    placement: Any,
    options: Any,
) -> _C.Schedule:
    """The schedule that the user means, which has the ranks, stages and placement expected.

    Takes Pipeline's arguments. `group_size` is None in one process; `options` are of a schedule
    given by name.
    """
    check_integers(num_microbatches=num_microbatches, num_ranks=num_ranks)
    schedule = _load_schedule(schedule)
    if num_ranks is None:
        num_ranks = _default_num_ranks(stages, schedule, devices, group_size)
    if group_size is not None and num_ranks != group_size:
        raise ValueError(f"num_ranks must be the size of the group, {group_size}, got {num_ranks}")
    chosen = _resolve_schedule(
        schedule, num_ranks, num_microbatches, len(stages), _check_options(options)
    )
    _check_placement(placement, chosen)
    if chosen.placement.num_copies > 2:
        raise ValueError(
            f"the schedule must run one or two copies of the model, {chosen.name} has "
            f"{chosen.placement.num_copies}: it can be verified and simulated, not run"
        )
    if chosen.is_asynchronous:
        raise ValueError(
            f"the schedule must be synchronous, {chosen.name} updates its weights on the way: an "
            "asynchronous schedule can be verified and simulated, not run yet"
        )
    return chosen


def _default_num_ranks(
    stages: Sequence[Any], schedule: Any, devices: Any, group_size: int | None
) -> int:
    """How many ranks a pipeline has whose user doesn't say."""
    if group_size is not None:
        return group_size
    if isinstance(schedule, _C.Schedule):
        return schedule.num_ranks
    if isinstance(devices, list | tuple):
        return len(devices)
    return len(stages)


def _load_schedule(schedule: Any) -> Any:
    """Reads a CSV or JSON file; anything else stays what it is."""
    is_path = isinstance(schedule, str) and (
        schedule.endswith((".csv", ".json")) or os.sep in schedule or Path(schedule).is_file()
    )
    if not is_path and not isinstance(schedule, os.PathLike):
        return schedule
    if not Path(schedule).is_file():
        raise ValueError(f"schedule: there is no file {os.fspath(schedule)!r}")
    if Path(schedule).suffix == ".json":
        return _C.Schedule.from_json(schedule)
    return _C.Schedule.from_csv(schedule)


def _resolve_schedule(
    schedule: Any,
    num_ranks: int,
    num_microbatches: int,
    num_stages: int,
    options: Mapping[str, int],
) -> _C.Schedule:
    """Builds a schedule given by name; checks that one that is given as it is fits."""
    if isinstance(schedule, str):
        num_copies = _C.model_copies(schedule)
        if num_copies > 1 and num_stages != num_ranks:
            raise ValueError(
                f"num_stages must be {num_ranks} (num_ranks) for schedule {schedule!r}, which runs "
                f"two copies of the model, got {num_stages}"
            )
        return _C.Schedule.build(
            schedule,
            num_ranks=num_ranks,
            num_microbatches=num_microbatches,
            num_stages=num_stages * num_copies,
            forward_only=False,
            **options,
        )
    if not isinstance(schedule, _C.Schedule):
        raise TypeError(
            "schedule must be a name, a Schedule or the path of a CSV or JSON file, got "
            f"{type(schedule).__name__}"
        )
    if options:
        raise ValueError("schedule_options go with a schedule that is given by name")
    for name, found, expected in (
        ("num_ranks", schedule.num_ranks, num_ranks),
        ("num_microbatches", schedule.num_microbatches, num_microbatches),
        ("num_stages", schedule.placement.stages_per_copy, num_stages),
    ):
        if found != expected:
            raise ValueError(f"the schedule is for {name}={found}, the pipeline has {expected}")
    return schedule


def place_loss(loss_fn: Any, schedule: _C.Schedule, devices: Mapping[int, torch.device]) -> None:
    """Moves a loss module to the device on which it runs.

    Args:
        loss_fn: the pipeline's.
        schedule: says where the last stages are.
        devices: by rank, for the ranks of this process.

    Raises:
        ValueError: it would have to be on two devices.
    """
    if not isinstance(loss_fn, nn.Module):
        return
    placement = schedule.placement
    lasts = [placement.rank_of(s) for s in range(placement.num_stages) if placement.is_last(s)]
    wanted = {devices[rank] for rank in lasts if rank in devices}
    if len(wanted) > 1 and (any(loss_fn.parameters()) or any(loss_fn.buffers())):
        raise ValueError(
            "loss_fn has tensors of its own, and the last stages of the model's two copies are on "
            f"{' and '.join(sorted(map(str, wanted)))}: expected one device, or a function"
        )
    if len(wanted) == 1:
        loss_fn.to(wanted.pop())


def _check_placement(placement: Any, schedule: _C.Schedule) -> None:
    """Checks that the schedule has the placement that the user expects."""
    if placement is None:
        return
    if not isinstance(placement, _C.Placement | Sequence):
        raise TypeError(
            f"placement must be a Placement or the rank of each stage, got {placement!r}"
        )
    ranks = placement.ranks if isinstance(placement, _C.Placement) else list(placement)
    if any(isinstance(rank, bool) for rank in ranks):
        raise TypeError(f"placement must list ranks by number, got {ranks}")
    if ranks != schedule.placement.ranks:
        raise ValueError(
            f"placement: the schedule {schedule.name} puts its stages on ranks "
            f"{schedule.placement.ranks}, got {ranks}"
        )


def resolve_devices(devices: Any, ranks: Sequence[int], num_ranks: int) -> dict[int, torch.device]:
    """The device of each rank of this process, by rank.

    Args:
        devices: None, one device, or one for each rank of the pipeline.
        ranks: of this process.
        num_ranks: of the pipeline.
    """
    if devices is None:
        devices = "cpu"
    if isinstance(devices, list | tuple):
        if len(devices) == num_ranks:
            devices = [devices[rank] for rank in ranks]
        elif len(devices) != len(ranks):
            raise ValueError(
                f"devices must have one entry for each of the {num_ranks} ranks, got {len(devices)}"
            )
    else:
        devices = [devices] * len(ranks)
    return {rank: device_of(device) for rank, device in zip(ranks, devices, strict=True)}
