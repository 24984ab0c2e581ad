"""Devices: what the user names, what a machine has, and where stages must be."""

import itertools
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from pipert import _C


class _HasParameters(Protocol):
    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]: ...


def device_of(device: Any) -> torch.device:
    """The device that the user means, with its index.

    Raises:
        ValueError: there is none of that name here.
    """
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"devices: {device!r} is not a device") from error
    if resolved.type == "meta":
        raise ValueError("devices: nothing can run on the meta device")
    return _cuda_device(resolved, device) if resolved.type == "cuda" else resolved


def _cuda_device(resolved: torch.device, device: Any) -> torch.device:
    if torch.version.cuda is None and not torch.cuda.is_available():
        raise ValueError(
            f"devices: got {device!r}, but this torch ({torch.__version__}) was built without CUDA"
        )
    if not torch.cuda.is_available():
        raise ValueError(
            f"devices: got {device!r}, but this torch sees no CUDA device: expected a driver that "
            "it can use, and a CUDA_VISIBLE_DEVICES that hides none (see what nvidia-smi shows)"
        )
    # Asking initialises CUDA: C++ takes streams and generators before torch's Python has any use.
    current = torch.cuda.current_device()
    if resolved.index is None:
        return torch.device("cuda", current)
    count = torch.cuda.device_count()
    if resolved.index >= count:
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise ValueError(f"devices: got {device!r}, but this process sees {count}: {there}")
    return resolved


def move_stage(stage: int, module: nn.Module, device: torch.device) -> None:
    """Moves a stage's module to its rank's device.

    Raises:
        ValueError: there are no values to move.
    """
    try:
        module.to(device)
    except NotImplementedError as error:
        state = itertools.chain(module.named_parameters(), module.named_buffers())
        name = next((name for name, tensor in state if tensor.is_meta), None)
        if name is None:
            raise
        raise ValueError(
            f"stage {stage} has no values yet: {name!r} is on the meta device; expected the stages "
            "that pipert.materialize(stages, checkpoint) returns"
        ) from error


def check_placed(stages: Iterable[tuple[int, _HasParameters, torch.device]]) -> None:
    """Checks that stages are where their ranks are, once all of them have been moved.

    Args:
        stages: of this process: the stage's index, it, its rank's device.

    Raises:
        ValueError: a parameter stayed elsewhere, or was taken to another stage's device.
    """
    stages = list(stages)
    for index, stage, device in stages:
        for name, parameter in stage.named_parameters():
            if parameter.device.type == device.type and (
                device.index is None or parameter.device.index in (None, device.index)
            ):
                continue
            others = [
                other
                for other, module, _ in stages
                if other != index and any(p is parameter for _, p in module.named_parameters())
            ]
            why = (
                f"stage {others[0]} has the same one, and weights can't be on two devices"
                if others
                else "moving the module there left it behind: a stage must be on one device, its "
                "rank's"
            )
            raise ValueError(
                f"mixed devices: parameter {name!r} of stage {index} is on {parameter.device}, "
                f"expected {device}: {why}"
            )


def warn_of_cuda(devices: Mapping[int, torch.device], programs: Sequence[Any]) -> None:
    """Warns of what makes lanes of a CUDA device slow.

    Args:
        devices: by rank, for the ranks of this process.
        programs: theirs, in the same order.
    """
    num_lanes: Counter[torch.device] = Counter()
    for device, program in zip(devices.values(), programs, strict=True):
        if device.type == "cuda":
            num_lanes[device] += len(program.lanes)
    if not num_lanes:
        return
    if not _C.has_cuda_lanes():
        warnings.warn(
            "this pipert was built without its CUDA sources: lanes are torch's own streams, 32 of "
            "which all of torch shares. Build it where nvcc of CUDA "
            f"{torch.version.cuda or '?'} is found: PIPERT_CUDA=ON pip install "
            "--no-build-isolation --force-reinstall --no-deps .",
            stacklevel=2,
        )
    device, most = num_lanes.most_common(1)[0]
    if os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == "1" and most > 1:
        warnings.warn(
            f"CUDA_DEVICE_MAX_CONNECTIONS=1: all {most} lanes on {device} go through one hardware "
            "queue, where a transfer that waits holds up compute behind it, with transport "
            "'cuda_ipc' by some 300 us each time: expected 8 (CUDA's default) or more",
            stacklevel=2,
        )
