"""LocalStages: the stages of one process."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipert._C import Schedule
from pipert.argument_names import ArgumentNames
from pipert.copies import LocalCopies, RemoteCopy
from pipert.devices import check_placed
from pipert.local_stage import LocalStage, make_second, make_stage
from pipert.parameters import load_stages
from pipert.stages import Stages


class LocalStages:
    """The stages of this process, in order. They belong to the user; Pipeline holds on to them.

    Args:
        stages: of the whole model, as the user gives them; only this process's are made.
        schedule: says which rank has which.
        devices: by rank, for the ranks of this process; modules are moved to their rank's.

    Attributes:
        modules: {stage index: module or function}, of both copies of the model if there are two.
        has_first: whether the model's first stage is here.
        has_last: whether its last one is.
        local_copies: second copies of modules whose first ones are here too.
        remote_copies: the stages whose other copy is in another process.
        argument_names: by which stages with specs are given the batch's arguments; None: without.
    """

    def __init__(
        self, stages: Sequence[Any], schedule: Schedule, devices: Mapping[int, torch.device]
    ) -> None:
        placement = schedule.placement
        self.local_copies = LocalCopies()
        self.remote_copies: list[RemoteCopy] = []
        made: dict[int, LocalStage] = {}  # by stage of the model
        self._stages: list[LocalStage] = []
        for index in range(placement.num_stages):
            device = devices.get(placement.rank_of(index))
            if device is None:
                continue
            first = made.get(index % placement.stages_per_copy)
            if first is not None:
                self._stages.append(make_second(first, index, placement, self.local_copies, device))
                continue
            stage = make_stage(stages, index, placement)
            made[stage.piece] = stage
            self._stages.append(stage)
            if isinstance(stage.call, nn.Module):
                stage.call.to(device)
        check_placed(
            (stage.index, stage, devices[placement.rank_of(stage.index)]) for stage in self
        )
        self._model = [made[piece] for piece in sorted(made)]  # each piece of the model once
        self._num_pieces = placement.stages_per_copy
        self._ranks = {stage.index: placement.rank_of(stage.index) for stage in self._stages}
        if placement.num_copies > 1:
            self._find_remote_copies(schedule)
        self._global_names = (
            {name for names in stages.names for name in names}
            if isinstance(stages, Stages)
            else None
        )
        self.argument_names: ArgumentNames | None = None
        if isinstance(stages, Stages) and stages.specs is not None:
            self.argument_names = ArgumentNames(stages)
        self.modules = {stage.index: stage.call for stage in self._stages}
        self.has_first = any(stage.is_first for stage in self._stages)
        self.has_last = any(stage.is_last for stage in self._stages)

    def _find_remote_copies(self, schedule: Schedule) -> None:
        pieces = [stage.piece for stage in self._stages]
        for stage in self._stages:
            if pieces.count(stage.piece) == 1:
                module = stage.call if isinstance(stage.call, nn.Module) else None
                self.remote_copies.append(RemoteCopy(schedule.placement, stage.index, module))
        self.remote_copies.sort(key=lambda remote: remote.piece)

    def __iter__(self) -> Iterator[LocalStage]:
        return iter(self._stages)

    def shared(self) -> list[Any]:
        """What processes with other copies of these stages are told of, as _C.Runtime takes it."""
        known: set[nn.Parameter] = set()
        return [remote.for_runtime(known) for remote in self.remote_copies]

    def named_parameters(self) -> Iterator[tuple[int, list[tuple[str, nn.Parameter]]]]:
        """By stage of the model; a parameter that stages share is the first one's."""
        seen: set[nn.Parameter] = set()
        for stage in self._model:
            own = [(name, p) for name, p in stage.named_parameters() if p not in seen]
            seen.update(p for _, p in own)
            yield stage.piece, own

    def parameters_of_several_ranks(self) -> set[nn.Parameter]:
        """Those to which several threads of this process add gradients at once."""
        ranks: dict[nn.Parameter, set[int]] = {}
        for stage in self._model:
            for _, parameter in stage.named_parameters():
                ranks.setdefault(parameter, set()).add(self._ranks[stage.index])
        return {parameter for parameter, of in ranks.items() if len(of) > 1}

    def state_dict(self) -> dict[str, Tensor]:
        """Names as in the unpartitioned model."""
        return {name: v for stage in self._model for name, v in stage.state_dict().items()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads what is these stages', all or nothing."""
        load_stages(self._model, state_dict, self._global_names, self._num_pieces)
