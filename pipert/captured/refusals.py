"""Why a pipeline's passes, or the actions of its ranks, can't be recorded."""

from collections.abc import Container, Mapping, Sequence

import torch
from torch import nn

from pipert._C import Schedule
from pipert.local.local_stages import LocalStages
from pipert.options import Options


def options_in_use(options: Options, schedule: Schedule, stages: LocalStages) -> dict[str, bool]:
    """What matters here of a pipeline, by name: whether it is in use."""
    has_copies = schedule.placement.num_copies > 1
    modules = [module for module in stages.modules.values() if isinstance(module, nn.Module)]
    return {
        "rng_seed": options.rng_seed is not None,
        "network": options.network is not None,
        "device_times": options.device_times,
        "measure_memory": options.measure_memory,
        "recompute": options.recompute != "none",
        "offload": any(a.kind == "OFFLOAD" for rank in schedule.actions for a in rank),
        "loss_weight": options.loss_weights is not None,
        "overlap_fn": options.overlap_fn is not None,
        "copies": has_copies,
        "ties": stages.ties.cross,
        "copies with buffers": has_copies and any(list(module.buffers()) for module in modules),
    }


def refusal_of_steps(
    kinds: Sequence[str], devices: Mapping[int, torch.device], in_use: Mapping[str, bool]
) -> str | None:
    """Why passes can't be recorded whole, of ranks in one process; None: nothing is known.

    Args:
        kinds: of the stages.
        devices: by rank.
        in_use: as of `options_in_use`.
    """
    if others := sorted({kind for kind in kinds if kind != "captured"}):
        return f"a pass is recorded whole, and some stages are {others[0]!r}"
    if (device := next(iter(devices.values()))).type != "cuda":
        return f"only a CUDA device can record, the ranks are on {device}"
    if len(set(devices.values())) > 1:
        return "the ranks are on several devices"
    return _first_reason(
        in_use,
        **_EVERYWHERE,
        network="emulated links make the host wait",
        device_times="a replay takes no times",
        **{
            "copies with buffers": "the buffers of two copies of a model are handed over by the "
            "host"
        },
    )


def refusal_of_actions(
    kinds: Sequence[str],
    devices: Mapping[int, torch.device],
    in_use: Mapping[str, bool],
    recording_types: Container[str],
) -> str | None:
    """Why the actions of one rank of a group can't be recorded; None: nothing is known.

    Args:
        kinds: of the stages.
        devices: by rank of this process.
        in_use: as of `options_in_use`.
        recording_types: of devices that have graphs.
    """
    if others := sorted({kind for kind in kinds if kind != "captured"}):
        return f"a rank's memory is recorded as one, and some stages are {others[0]!r}"
    device = next(iter(devices.values()))
    if device.type not in recording_types:
        return f"only a CUDA device can record, the rank is on {device}"
    return _first_reason(
        in_use,
        **_EVERYWHERE,
        overlap_fn="halves of a pair may run on several threads",
        copies="the gradients of two copies of a model are added up by the host",
        ties="the gradients of weights that stages in several processes share are added up by "
        "the host",
    )


_EVERYWHERE = {
    "loss_weight": "what losses count is counted anew in each batch",
    "rng_seed": "what a step draws depends on its number",
    "recompute": "a forward that runs again sets the device's generator",
    "offload": "what goes to the host and back isn't recorded",
    "measure_memory": "a replay allocates nothing that could be measured",
}


def _first_reason(in_use: Mapping[str, bool], **reasons: str) -> str | None:
    return next((f"{why} ({name})" for name, why in reasons.items() if in_use.get(name)), None)
