"""StageMaker: cuts shallow copies of a transformers model down to single stages."""

import copy

from torch import nn

from pipert.checkpoints.meta_copy import on_meta
from pipert.integrations.transformers.plan_stage import PlanStage
from pipert.integrations.transformers.plans import Plan
from pipert.integrations.transformers.shallow_copy import ShallowCopy
from pipert.integrations.transformers.stage_arguments import StageArguments
from pipert.integrations.transformers.stand_ins import Entry, Giver, HandOver, StandIn
from pipert.split.outputs import Outputs


class StageMaker:
    """Makes the stages of one model.

    Args:
        model: the whole model.
        base: the path in it of the model without its head; empty: itself.
        plan: how that is built.
        arguments: what the forwards take.
        outputs: those that the last stage returns; None: all.
    """

    def __init__(
        self,
        model: nn.Module,
        base: str,
        plan: Plan,
        arguments: StageArguments,
        outputs: Outputs = None,
    ) -> None:
        self._model = model
        self._base = base
        self._plan = plan
        self._arguments = arguments
        self._outputs = outputs
        self._shapes: dict[nn.Module, nn.Module] = {}

    def make(self, begin: int, end: int, *, is_first: bool, is_last: bool) -> PlanStage:
        """The stage with the layers from `begin` to `end`.

        The first one has what comes before the layers, too, and the last one what comes behind.
        """
        hand_over = None if is_first else HandOver()
        copied = ShallowCopy(self._model)
        if hand_over is not None:
            for path in self._plan.first:
                self._exchange(copied, path, hand_over)
        self._cut_layers(copied, begin, end, hand_over)
        if not is_last:
            for path in self._plan.last:
                self._exchange(copied, path, None)
        self._take_own(copied)
        if self._base and not is_last:
            copied.module._modules = {self._base: copied.at(self._base)}
        names = self._arguments
        return PlanStage(
            copied.module,
            base=self._base,
            hand_over=hand_over,
            is_last=is_last,
            received_as=names.last_received_as if is_last else names.received_as,
            fixed=names.last_fixed if is_last else names.fixed,
            outputs=self._outputs,
        )

    def _path(self, path: str) -> str:
        return f"{self._base}.{path}" if self._base else path

    def _cut_layers(
        self, copied: ShallowCopy, begin: int, end: int, hand_over: HandOver | None
    ) -> None:
        path = self._path(self._plan.layers)
        for i, (name, layer) in enumerate(self._model.get_submodule(path).named_children()):
            at = f"{path}.{name}"
            if hand_over is not None and i == begin - 1:
                copied.put(
                    at, Giver(self._shape(layer), hand_over, True, self._plan.returns_tuples)
                )
            elif not begin <= i < end:
                copied.put(at, StandIn(self._shape(layer), self._plan.returns_tuples))
            elif hand_over is not None and i == begin == 0:
                copied.at(at).register_forward_pre_hook(
                    Entry(hand_over), prepend=True, with_kwargs=True
                )

    def _exchange(self, copied: ShallowCopy, path: str, hand_over: HandOver | None) -> None:
        path = self._path(path)
        module = copied.get(path)
        if module is None:  # such as a pooler that the model was built without
            return
        shape = self._shape(module)
        copied.put(path, Giver(shape, hand_over) if hand_over is not None else StandIn(shape))

    def _take_own(self, copied: ShallowCopy) -> None:
        """Copies what every stage runs, such as rotary tables: each may be on another device."""
        base = copied.at(self._base)
        for name, child in base._modules.items():
            if name not in self._plan.children and child is not None:
                base._modules[name] = copy.deepcopy(child)

    def _shape(self, module: nn.Module) -> nn.Module:
        if module not in self._shapes:
            self._shapes[module] = on_meta(module)
        return self._shapes[module]
