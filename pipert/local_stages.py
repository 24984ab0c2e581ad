"""LocalStages: the stages of one process."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipert._C import Schedule
from pipert.parameters import load_stages
from pipert.stages import LocalStage, Stages, make_stage


class LocalStages:
    """The stages of this process, in order. They belong to the user; Pipeline holds on to them.

    Args:
        stages: of the whole model, as the user gives them; only this process's are made.
        schedule: says which rank has which.
        devices: by rank, for the ranks of this process; modules are moved to their rank's.

    Attributes:
        modules: {stage index: module or function}.
        has_first: whether the model's first stage is here.
        has_last: whether its last one is.
    """

    def __init__(
        self, stages: Sequence[Any], schedule: Schedule, devices: Mapping[int, torch.device]
    ) -> None:
        made: dict[int, LocalStage] = {}
        for rank, device in devices.items():
            for index in schedule.placement.stages_of(rank):
                made[index] = make_stage(stages, index)
                if isinstance(call := made[index].call, nn.Module):
                    call.to(device)
        self._stages = [made[index] for index in sorted(made)]
        self._num_stages = schedule.num_stages
        self._global_names = (
            {name for names in stages.names for name in names}
            if isinstance(stages, Stages)
            else None
        )
        self.modules = {stage.index: stage.call for stage in self._stages}
        self.has_first = 0 in made
        self.has_last = schedule.num_stages - 1 in made

    def __iter__(self) -> Iterator[LocalStage]:
        return iter(self._stages)

    def named_parameters(self) -> Iterator[tuple[int, list[tuple[str, nn.Parameter]]]]:
        """By stage; a parameter that stages share is the first one's."""
        seen: set[nn.Parameter] = set()
        for stage in self._stages:
            own = [(name, p) for name, p in stage.named_parameters() if p not in seen]
            seen.update(p for _, p in own)
            yield stage.index, own

    def state_dict(self) -> dict[str, Tensor]:
        """Names as in the unpartitioned model."""
        return {name: v for stage in self._stages for name, v in stage.state_dict().items()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads what is these stages', all or nothing."""
        load_stages(self._stages, state_dict, self._global_names, self._num_stages)
