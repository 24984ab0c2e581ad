"""Which way the captured stages of a pipeline are recorded."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pipert import _C
from pipert._C import Schedule
from pipert.captured.actions import CapturedActions
from pipert.captured.conditions import Conditions
from pipert.captured.cuda_graph import recordings_on
from pipert.captured.graphs import make_graph
from pipert.captured.refusals import options_in_use, refusal_of_actions, refusal_of_steps
from pipert.captured.steps import CapturedSteps
from pipert.local.local_stages import LocalStages
from pipert.local.main_gradients import MainGradients
from pipert.options import Options


def captured_passes(
    options: Options,
    schedule: Schedule,
    stages: LocalStages,
    devices: Mapping[int, torch.device],
    main_gradients: MainGradients | None,
    *,
    in_group: bool,
    recorder: _C.ActionRecorder | None,
    watch_leaves: Callable[[Sequence[Tensor] | None], bool],
) -> CapturedSteps | CapturedActions | None:
    """What runs the passes of a pipeline with captured stages; None: it has none.

    Args:
        options: the pipeline's.
        schedule: what the ranks run.
        stages: of this process.
        main_gradients: what gradients are added to, if there are any.
        devices: by rank of this process.
        in_group: whether ranks are in several processes.
        recorder: what `make_recorder` has given the stages.
        watch_leaves: as of Ranks.
    """
    if "captured" not in options.stage_kinds:
        return None

    def sums() -> list[Tensor]:
        return [main for _, main, _ in main_gradients.entries()] if main_gradients else []

    device = next(iter(devices.values()))
    conditions = Conditions([*stages.modules.values(), options.loss_fn], device, sums)
    in_use = options_in_use(options, schedule, stages)
    if not in_group:
        refusal = refusal_of_steps(options.stage_kinds, devices, in_use)
        return CapturedSteps(conditions, device, recordings_on(device), refusal, watch_leaves)
    refusal = refusal_of_actions(options.stage_kinds, devices, in_use, make_graph)
    return CapturedActions(
        conditions, stages, device, None if refusal is not None else recorder, refusal
    )
