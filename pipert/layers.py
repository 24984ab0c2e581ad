"""Layers: what cuts between stages don't divide, numbered through the whole model."""

import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from torch import nn
from torch.utils.hooks import RemovableHandle

from pipert import _C
from pipert.local.local_stages import LocalStages
from pipert.processes.distributed import Peers
from pipert.signatures import context_keywords

_owners = itertools.count(1)


def next_owner() -> int:
    """A number that no other hooks of this process have."""
    return next(_owners)


def layers_of(stage: Any) -> list[Any]:
    """The layers of one stage, in order; one that is used twice stands there twice.

    Those of an nn.Sequential are its children, nested ones too, also of a subclass that leaves
    its forward as it is; those of another stage are what its method `pipert_layers()` tells, if it
    has one, else it is one layer.
    """
    if isinstance(stage, nn.Module) and callable(tell := getattr(stage, "pipert_layers", None)):
        return list(tell())
    if not _runs_its_children(stage) or len(stage) == 0:
        return [stage]
    return [layer for child in stage for layer in layers_of(child)]


def _runs_its_children(stage: Any) -> TypeGuard[nn.Sequential]:
    """Whether its forward is nn.Sequential's own."""
    return (
        isinstance(stage, nn.Sequential)
        and getattr(stage.forward, "__func__", None) is nn.Sequential.forward
    )


def first_layers(stages: LocalStages, stages_per_copy: int, peers: Peers | None) -> dict[int, int]:
    """The number of the first layer of each stage. A collective call in a group.

    Args:
        stages: of this process.
        stages_per_copy: how many stages the model has; those of a second copy are numbered alike.
        peers: the ranks of the group, who tell each other how many layers their stages have.
    """
    own = [[index, len(layers_of(call))] for index, call in stages.modules.items()]
    ranks = [own] if peers is None else peers.exchange("count the layers", own)
    counts = {index: count for rank in ranks for index, count in rank}
    firsts, total = [], 0
    for index in range(stages_per_copy):
        firsts.append(total)
        total += counts[index]
    return {index: firsts[index % stages_per_copy] for index in counts}


class LayerHooks:
    """The hooks of one pipeline on the layers of its stages. They go when it goes."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        weakref.finalize(self, _take_off, self._handles).atexit = False

    def key(self, owner: int, first_layers: Mapping[int, int], stages: Mapping[int, Any]) -> None:
        """Lets each layer draw from streams of its own.

        Args:
            owner: a number that the ranks have too.
            first_layers: by stage.
            stages: {stage index: module or function}.
        """
        places: dict[nn.Module, set[int]] = {}
        inner: set[nn.Module] = set()
        for index, stage in stages.items():
            layers = [layer for layer in layers_of(stage) if isinstance(layer, nn.Module)]
            for number, layer in enumerate(layers, first_layers[index]):
                places.setdefault(layer, set()).add(number)
            if len(layers) > 1:  # else entering the stage is entering the layer
                inner.update(layers)
        # Layers that share their hooks have one, for the places of all of them.
        together: dict[int, list[nn.Module]] = {}
        for layer in places:
            together.setdefault(id(layer._forward_pre_hooks), []).append(layer)
        for layers in together.values():
            if inner.isdisjoint(layers):
                continue
            numbers = {number for layer in layers for number in places[layer]}
            hook = _C.LayerHook(owner, sorted(numbers))
            self._handles.append(layers[0].register_forward_pre_hook(hook, prepend=True))

    def give_context(self, stages: Sequence[Any]) -> None:
        """Lets layers inside of Sequentials have what they ask for of their microbatch."""
        for layer in _each_hooked_once(_inner_layers(stages)):
            if keywords := context_keywords(layer):
                hook = _C.ContextHook(keywords)
                self._handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        """Takes them off."""
        _take_off(self._handles)


def _take_off(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


def _inner_layers(stages: Sequence[Any]) -> Iterator[nn.Module]:
    """Each layer that its Sequential calls."""
    return (layer for stage in stages for layer in layers_of(stage) if layer is not stage)


def _each_hooked_once(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Of layers that share their hooks, as copies in one process do, the first."""
    seen: set[int] = set()
    for layer in layers:
        if id(layer._forward_pre_hooks) not in seen:
            seen.add(id(layer._forward_pre_hooks))
            yield layer
