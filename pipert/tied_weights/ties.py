"""Ties: the parameters that several stages use, as one process has them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipert._C import Placement
from pipert.local.local_stage import LocalStage
from pipert.processes.distributed import Peers
from pipert.stages import Stages
from pipert.tied_weights.checksums import checksum
from pipert.tied_weights.local_tie import LocalTie, Place, place_of, replace_everywhere
from pipert.tied_weights.tied import Tied, find_ties, merge_ties
from pipert.tied_weights.twins import Twins


class Ties:
    """The parameters that several stages use, each of which is one.

    Stages of this process on one device have one object, on several devices twins of the owner's,
    with gradients that are added to its own after each pass. What other processes use too is
    exchanged with them by the runtime (csrc/runtime/tied_exchange.h). Making them is a collective
    call in a group.

    Args:
        stages: of the whole model, as the user gives them.
        made: this process's, by stage of the model, before they are moved to their devices.
        devices: theirs, by stage of the model.
        placement: of all stages.
        peers: the ranks of the group; None: one process.

    Attributes:
        all: of the whole model, the same in all processes.
        cross: whether some are used in several processes.

    Raises:
        ValueError: a tied parameter isn't there, isn't alike everywhere, or can't be one.
    """

    def __init__(
        self,
        stages: Sequence[Any],
        made: Mapping[int, LocalStage],
        devices: Mapping[int, torch.device],
        placement: Placement,
        peers: Peers | None,
    ) -> None:
        self.all = _all_ties(stages, made, peers)
        self.cross = False
        self._here: list[LocalTie] = []
        self._twins = Twins()
        found = {
            use: place_of(made[use[0]], use[1], devices[use[0]])
            for tied in self.all
            for use in tied.uses
            if use[0] in made
        }
        if self.all:
            _check_alike(self.all, found, peers)
        for tied in self.all:
            owner, others = _ranks_of(tied, placement) if peers is not None else (0, [])
            self.cross |= bool(others)
            tie = LocalTie(tied, owner, others, None if peers is None else peers.rank)
            tie.places = [found[use] for use in tied.uses if use in found]
            if tie.places:
                self._here.append(tie)
                self._join(tie, made)

    def _join(self, tie: LocalTie, made: Mapping[int, LocalStage]) -> None:
        """Makes it one object on each device, before modules move and take their objects along."""
        first, device = tie.parameter(), tie.places[0].device
        if is_lazy(first):
            raise ValueError(
                f"the weight {tie.name} is tied, and its module's first call makes it: expected a "
                "parameter that is there"
            )
        for place in tie.places[1:]:
            known = place.parameter()
            if place.device == device:
                replace_everywhere(made[place.stage].call, known, first)
                continue
            if place.module is tie.places[0].module:
                raise ValueError(
                    f"stages {tie.places[0].stage} and {place.stage} have one module with the "
                    f"weight {tie.name}, and are on different devices: expected a module for each, "
                    "which may share the weight"
                )
            twin = self._twins.twin(first, place.device)
            twin.twin_of = first  # type: ignore[attr-defined]  # whoever finds it in a module
            replace_everywhere(made[place.stage].call, known, twin)

    # --- in a pass ---------------------------------------------------------------------------

    @property
    def peers(self) -> set[int]:
        """The ranks of the processes that this one exchanges some with."""
        return {peer for tie in self._here for peer in tie.peers}

    def shared(self, main_grads: bool) -> list[Any]:
        """Those that are exchanged with other processes, as _C.Runtime takes them."""
        return [
            (
                *(tie.name, tie.tied.uses[0][0], tie.is_owner, tie.peers, tie.parameter()),
                getattr(tie.parameter(), "main_grad", None)
                if main_grads and tie.parameter().requires_grad
                else None,
            )
            for tie in self._here
            if tie.peers
        ]

    def twins(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that stand for others on another device, under their names."""
        names = {id(tie.parameter()): tie.name for tie in self._here}
        for first, twin in self._twins:
            yield names[id(first)], twin

    def __bool__(self) -> bool:
        """Whether stages of this process use a parameter that others use too."""
        return bool(self._here)

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Makes twins equal, and adds up their gradients after a pass that ends well."""
        elsewhere = [
            (tie.parameter(), place)
            for tie in self._here
            for place in tie.places
            if place.device != tie.places[0].device
        ]
        if not elsewhere:
            yield
            return
        for first, place in elsewhere:
            twin = self._twins.twin(first, place.device)
            if place.parameter() is not twin:
                twin.twin_of = first  # type: ignore[attr-defined]
                setattr(place.module, place.attribute, twin)
        self._twins.keep({id(first) for first, _ in elsewhere})
        try:
            yield
            self._twins.add_gradients()
            self._add_main_gradients()
        finally:
            self._twins.drop_gradients()
            for _, twin in self._twins:
                if (main := getattr(twin, "main_grad", None)) is not None:
                    main.zero_()

    def _add_main_gradients(self) -> None:
        for first, twin in self._twins:
            main = getattr(twin, "main_grad", None)
            if main is not None and hasattr(first, "main_grad"):
                first.main_grad.add_(main.to(first.device))

    # --- names -------------------------------------------------------------------------------

    def names(self) -> dict[nn.Parameter, str]:
        """What those that are here, without twins, are called in the unpartitioned model."""
        return {tie.parameter(): tie.name for tie in self._here}

    def foreign(self) -> set[nn.Parameter]:
        """Those that another process owns, and twins."""
        return {tie.parameter() for tie in self._here if not tie.is_owner} | {
            twin for _, twin in self._twins
        }

    def of_owners(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state in which those that are owned here have all their names, and others none."""
        state = dict(state)
        for tie in self._here:
            value = state.get(tie.name) if tie.is_owner else None
            for _, name in tie.tied.uses:
                if value is None:
                    state.pop(name, None)
                else:
                    state[name] = value
        return state

    def with_all_names(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state in which those that are used here have all their names if they have one.

        Those of other owners that it lacks are there as they are: the owner knows what they become.
        """
        state = dict(state)
        for tie in self._here:
            values = [state[name] for _, name in tie.tied.uses if name in state]
            if not values and not tie.is_owner:
                values = [tie.parameter().detach()]
            for _, name in tie.tied.uses if values else ():
                state.setdefault(name, values[0])
        return state

    def check(self, peers: Peers | None) -> None:
        """Checks that all processes have the same bits. A collective call in a group.

        Raises:
            ValueError: names the weights that differ, and who has another than its owner.
        """
        if peers is None:
            return
        own = [[tie.name, tie.is_owner, checksum(tie.parameter())] for tie in self._here]
        told = peers.exchange("check tied weights", own)
        rows = [(rank, *row) for rank, of in enumerate(told) for row in of]
        owners = {name: (rank, bits) for rank, name, is_owner, bits in rows if is_owner}
        differing = [
            f"{name} on rank {rank} from its owner's on rank {owners[name][0]}"
            for rank, name, _, bits in rows
            if bits != owners[name][1]
        ]
        if differing:
            raise ValueError(
                "tied weights differ: " + ", ".join(differing) + ": expected the same optimizer, "
                "with the same state, on all ranks that use them"
            )


def _all_ties(
    stages: Sequence[Any], made: Mapping[int, LocalStage], peers: Peers | None
) -> tuple[Tied, ...]:
    """Those of all processes, declared and found."""
    prefixes = ["" if isinstance(stages, Stages) else f"{i}." for i in range(len(stages))]
    calls = [made[i].call if i in made else given for i, given in enumerate(stages)]
    declared = stages.tied if isinstance(stages, Stages) else ()
    ties = merge_ties([*declared, *find_ties(calls, prefixes)])
    if peers is None:
        return ties
    told = peers.exchange("find tied weights", [tied.uses for tied in ties])
    return merge_ties(
        Tied(tuple((stage, name) for stage, name in uses)) for rank in told for uses in rank
    )


def _ranks_of(tied: Tied, placement: Placement) -> tuple[int, list[int]]:
    """The rank that owns it, and the others that use it, the last stage's first.

    Raises:
        ValueError: ranks that have one of its uses in a copy of the model lack another.
    """
    stages = list(dict.fromkeys(stage for stage, _ in tied.uses))
    size, count = placement.stages_per_copy, placement.num_stages
    ranks = [{placement.rank_of(i) for i in range(s, count, size)} for s in stages]
    owner = placement.rank_of(stages[0])
    if all(of == ranks[0] for of in ranks):
        return owner, []
    if placement.num_copies > 1:
        other = next(s for s, of in zip(stages, ranks, strict=True) if of != ranks[0])
        raise ValueError(
            f"stages {stages[0]} and {other} share the weight {tied.uses[0][1]}, are in different "
            "processes, and the schedule runs two copies of the model: expected both on the same "
            "ranks, a schedule that runs one copy, or one process"
        )
    users = dict.fromkeys(placement.rank_of(stage) for stage in reversed(stages))
    return owner, [rank for rank in users if rank != owner]


def _check_alike(
    ties: Sequence[Tied], found: Mapping[tuple[int, str], Place], peers: Peers | None
) -> None:
    """Checks that the uses of each have one shape and dtype. A collective call in a group."""
    own = []
    for (stage, name), place in found.items():
        p = place.parameter()
        shape = "a shape that isn't known yet" if is_lazy(p) else str(list(p.shape))
        own.append([stage, name, f"{str(p.dtype).removeprefix('torch.')}{shape}"])
    told = [own] if peers is None else peers.exchange("compare tied weights", own)
    kinds = {(stage, name): kind for rank in told for stage, name, kind in rank}
    for tied in ties:
        first, *others = tied.uses
        for use in others:
            if kinds[use] != kinds[first]:
                raise ValueError(
                    f"tied weights must be alike: {first[1]} of stage {first[0]} is "
                    f"{kinds[first]}, {use[1]} of stage {use[0]} is {kinds[use]}"
                )
