"""LocalStages: the stages of one process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pipert._C import Schedule
from pipert.batches.argument_names import ArgumentNames
from pipert.batches.specs import BatchSpecs
from pipert.devices import check_placed, move_stage
from pipert.local.batch_norm import DeferredBatchNorm
from pipert.local.copies import LocalCopies, RemoteCopy
from pipert.local.local_stage import LocalStage, make_second, make_stage
from pipert.local.parameters import check_state, copy_state
from pipert.local.replicas import Replicas, check_replicas
from pipert.local.routes import routes_of
from pipert.processes.distributed import Peers
from pipert.stages import Stages
from pipert.tied_weights.ties import Ties


class LocalStages:
    """The stages of this process, in order. They belong to the user; Pipeline holds on to them.

    Args:
        stages: of the whole model, as the user gives them; only this process's are made.
        schedule: says which rank has which.
        devices: by rank, for the ranks of this process; modules are moved to their rank's.
        peers: the ranks of the group, for which it is a collective call; None: one process.

    Attributes:
        modules: {stage index: module or function}, of both copies of the model if there are two.
        has_first: whether the model's first stage is here.
        has_last: whether its last one is.
        local_copies: second copies of modules whose first ones are here too.
        remote_copies: the stages whose other copy is in another process.
        ties: the parameters that several stages use.
        shares_gradients: whether theirs must be made equal once more behind a step, in all
            processes: replicas' sums of one gradient, made in several places, differ by rounding.
        argument_names: by which stages with specs are given the batch's arguments; None: without.
        routes: of the values that all stages exchange; None where they have no specs.
    """

    def __init__(
        self,
        stages: Sequence[Any],
        schedule: Schedule,
        devices: Mapping[int, torch.device],
        peers: Peers | None,
    ) -> None:
        placement = schedule.placement
        self.routes = routes_of(stages)
        self.local_copies = LocalCopies()
        self._batch_norm: DeferredBatchNorm | None = None
        self._replicas: Replicas | None = None
        self.shares_gradients = False
        self.remote_copies: list[RemoteCopy] = []
        made: dict[int, LocalStage] = {}  # by stage of the model
        indices = range(placement.num_stages)
        where = {i: devices[r] for i in indices if (r := placement.rank_of(i)) in devices}
        for index in where:
            if index % placement.stages_per_copy not in made:
                made[index % placement.stages_per_copy] = make_stage(stages, index, placement)
        here = {stage.index: stage for stage in made.values()}
        self.ties = Ties(
            stages, made, {s.piece: where[s.index] for s in here.values()}, placement, peers
        )
        for stage in here.values():
            if isinstance(stage.call, nn.Module):
                move_stage(stage.index, stage.call, where[stage.index])
        for index in where.keys() - here.keys():
            first = made[index % placement.stages_per_copy]
            here[index] = make_second(first, index, placement, self.local_copies, where[index])
        self._stages = [here[index] for index in where]
        check_placed((stage.index, stage, where[stage.index]) for stage in self)
        self._model = [made[piece] for piece in sorted(made)]  # each piece of the model once
        self._num_pieces = placement.stages_per_copy
        self._num_copies = placement.num_copies
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

    def name_specs(self, specs: BatchSpecs) -> BatchSpecs:
        """The specs of a batch whose arguments come as these stages take them."""
        return specs if self.argument_names is None else self.argument_names.name_specs(specs)

    def shared(self) -> list[Any]:
        """What processes with other copies of these stages are told of, as _C.Runtime takes it."""
        known: set[nn.Parameter] = set()
        norms = self._batch_norm
        return [
            remote.for_runtime(known, [] if norms is None else norms.carriers(remote.module))
            for remote in self.remote_copies
        ]

    def named_parameters(self) -> Iterator[tuple[int, list[tuple[str, nn.Parameter]]]]:
        """By stage of the model; a parameter that stages share is the first one's.

        So is its name, in processes too that have a later one alone.
        """
        names = self.ties.names()
        seen = {twin for _, twin in self.ties.twins()}
        for stage in self._model:
            own = [(names.get(p, name), p) for name, p in stage.named_parameters() if p not in seen]
            seen.update(p for _, p in own)
            yield stage.piece, own

    def defer_batch_norm(self, kinds: Sequence[str]) -> None:
        """From now on running statistics are those of whole batches. `kinds`: see Options.

        Raises:
            ValueError: that can't be.
        """
        self._batch_norm = DeferredBatchNorm(
            self.modules, self._ranks, kinds, self.local_copies.pairs()
        )

    def reduce_once_a_pass(
        self, kinds: Sequence[str], main_grads: bool, peers: Peers | None
    ) -> None:
        """From now on gradients are reduced over replicas behind a pass.

        A collective call in a group where processes share weights.

        Args:
            kinds: see Options.
            main_grads: likewise.
            peers: the ranks of the group; None: one process.

        Raises:
            ValueError: a stage is wrapped so that they can't.
        """
        copies = self._num_copies
        check_replicas(self.modules, self._ranks, kinds, num_copies=copies, main_grads=main_grads)
        can_wait = copies == 1 and not main_grads and not self.ties.all
        self._replicas = Replicas(self.modules, defer_sharded=can_wait)
        if self.ties.cross and peers is not None:
            told = peers.exchange("tell of replicas", self._replicas.reduces_copied)
            self.shares_gradients = any(told)

    @contextmanager
    def one_pass(self, training: bool) -> Iterator[None]:
        """Does before a pass, and after one that ends well, what these stages need there.

        What stands for something else here is made equal, and its gradients are added to the
        other's; running statistics that were deferred are updated; gradients are reduced over
        replicas.
        """
        norms = nullcontext() if self._batch_norm is None else self._batch_norm.one_pass()
        replicas = self._replicas.one_pass() if training and self._replicas else nullcontext()
        with replicas, self.ties.one_pass(), self.local_copies.one_pass(), norms:
            yield

    def release(self) -> None:
        """Takes off what this pipeline has put on the modules."""
        if self._batch_norm is not None:
            self._batch_norm.remove()

    def parameters_of_several_ranks(self) -> set[nn.Parameter]:
        """Those to which several threads of this process add gradients at once."""
        ranks: dict[nn.Parameter, set[int]] = {}
        for stage in self._model:
            for _, parameter in stage.named_parameters():
                ranks.setdefault(parameter, set()).add(self._ranks[stage.index])
        return {parameter for parameter, of in ranks.items() if len(of) > 1}

    def state_dict(self) -> dict[str, Tensor]:
        """Names as in the unpartitioned model, all of a tied parameter's where its owner is."""
        state = {name: v for stage in self._model for name, v in stage.state_dict().items()}
        return self.ties.of_owners(state)

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], agree: Callable[[], object] | None
    ) -> None:
        """Loads what is these stages', all or nothing; calls `agree` once it is known to fit."""
        if isinstance(state_dict, Mapping):
            state_dict = self.ties.with_all_names(state_dict)
        check_state(self._model, state_dict, self._global_names, self._num_pieces)
        if agree is not None:
            agree()
        copy_state(self._model, state_dict)
