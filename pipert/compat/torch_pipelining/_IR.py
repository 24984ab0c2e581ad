"""Pipe: a model that was cut by tracing it, as a module that runs its stages in turn."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.distributed.pipelining._IR import (
    LossWrapper,
    PipeSequential,
    SplitPoint,
    TrivialLossWrapper,
)

from pipert.compat.torch_pipelining.policy import cuts_of_policy
from pipert.compat.torch_pipelining.stage import PipeInfo, _PipelineStage
from pipert.split import pipe_split, split
from pipert.split.points import annotate_split_points as mark_split_points
from pipert.split.points import marked
from pipert.stages import Stages

__all__ = [
    "LossWrapper",
    "Pipe",
    "PipeSequential",
    "PipeSplitWrapper",
    "SplitPoint",
    "TrivialLossWrapper",
    "annotate_split_points",
    "pipe_split",
    "pipeline",
]

SplitPolicy = Callable[[fx.GraphModule], fx.GraphModule]


class PipeSplitWrapper:
    """An old place of SplitPoint."""

    SplitPoint = SplitPoint


def annotate_split_points(mod: nn.Module, spec: dict[str, SplitPoint]) -> None:
    """Marks modules where a stage is to begin or to end; see pipert.annotate_split_points."""
    mark_split_points(mod, spec)


class Pipe(nn.Module):
    """A model in stages. Calling it runs them one after the other, with autograd through all.

    Args:
        split_gm: what another Pipe has; `Pipe.from_tracing` and `pipeline` make one.
        num_stages: how many there are.
        has_loss_and_backward: False: losses belong to schedules.
        loss_spec: None.

    Attributes:
        split_gm: a module with a child `submod_pp_0`, `submod_pp_1`, ... for each stage. Prints the
            stages and what goes from one to another.
        num_stages, has_loss_and_backward, loss_spec: as given.
        stages: the same as pipert.Stages, for pipert.Pipeline.
        replicated_params: for each parameter that several stages use, its name in each of them. In
            pipert they stay one parameter.
    """

    def __init__(
        self,
        split_gm: fx.GraphModule,
        num_stages: int,
        has_loss_and_backward: bool,
        loss_spec: Any,
    ) -> None:
        super().__init__()
        stages = getattr(split_gm, "stages", None)
        if not isinstance(stages, Stages):
            raise TypeError(
                "split_gm must come from another Pipe of pipert's; make one with pipeline(...) or "
                "Pipe.from_tracing(...)"
            )
        self.split_gm = split_gm
        self.stages = stages
        self.num_stages = num_stages
        self.has_loss_and_backward = has_loss_and_backward
        self.loss_spec = loss_spec
        self.replicated_params = [
            {f"submod_pp_{stage}": name for stage, name in tied.uses} for tied in stages.tied
        ]

    @staticmethod
    def from_tracing(
        mod: nn.Module,
        example_args: tuple[Any, ...],
        example_kwargs: dict[str, Any] | None = None,
        split_policy: SplitPolicy | None = None,
    ) -> "Pipe":
        """Cuts a model where it is annotated, or where a policy says.

        Args:
            mod: the model, whose submodules the stages share.
            example_args: positional arguments of one microbatch.
            example_kwargs: keyword arguments of one microbatch.
            split_policy: gets the exported model, and inserts calls of `pipe_split` into its graph.

        Raises:
            ValueError: it can't be traced, or cut there; the message has the line.
        """
        cuts = {}
        num_stages = None  # what the model says
        if split_policy is not None:
            cuts = cuts_of_policy(mod, example_args, example_kwargs, split_policy)
            num_stages = len(cuts) + 1
        with marked(mod, cuts):
            stages = split(
                mod,
                num_stages,
                example_args=example_args,
                example_kwargs=example_kwargs,
                by="trace",
                send_arguments=True,
            )
        return Pipe._of(stages)

    @staticmethod
    def _of(stages: Stages) -> "Pipe":
        return Pipe(_SplitModule(stages), len(stages), False, None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the unpartitioned model returns; gradients too are its own."""
        stages = self.stages
        if len(args) > len(stages.arguments):
            raise TypeError(
                f"the model takes {len(stages.arguments)} positional arguments, got {len(args)}"
            )
        arguments = {**dict(zip(stages.arguments, args, strict=False)), **kwargs}
        values: dict[str, Any] = {}
        result = None
        for index, spec in enumerate(stages.specs or ()):
            result = self.get_stage_module(index)(
                *(values[name] for name in spec.inputs),
                **{name: arguments[name] for name in spec.arguments if name in arguments},
            )
            if spec.outputs:
                values.update(zip(spec.outputs, result, strict=True))
        return result

    def get_stage_module(self, stage_idx: int) -> nn.Module:
        """The module of a stage."""
        if not 0 <= stage_idx < self.num_stages:
            raise ValueError(f"Invalid stage index {stage_idx}!")
        return self.split_gm.get_submodule(f"submod_pp_{stage_idx}")

    def build_stage(
        self, stage_index: int, device: torch.device, group: Any = None
    ) -> _PipelineStage:
        """A stage that schedules run.

        Args:
            stage_index: its number.
            device: to which its module is moved, unless it is on "meta".
            group: as of PipelineStage.
        """
        return _PipelineStage(
            self.get_stage_module(stage_index), stage_index, self.info(), device, group
        )

    def info(self) -> PipeInfo:
        """What the stages are to each other, without their modules."""
        stages = self.stages
        wiring = stages.with_modules([None] * len(stages))
        return PipeInfo(_graph_of(stages), self.num_stages, self.has_loss_and_backward, wiring)

    def print_readable(self) -> None:
        """Prints the code of the whole and of each stage."""
        self.split_gm.print_readable()

    def __str__(self) -> str:
        return str(self.split_gm)

    def __repr__(self) -> str:
        return repr(self.split_gm)


class _SplitModule(fx.GraphModule):
    """The stages as children of one module, whose code says what goes where."""

    def __init__(self, stages: Stages) -> None:
        modules = {f"submod_pp_{i}": module for i, module in enumerate(stages)}
        super().__init__(modules, _graph_of(stages), "GraphModule")
        self.stages = stages

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(
                "To run pipeline locally, invoke the Pipe object directly, not `split_gm`"
            )

        self.forward = refuse


def _graph_of(stages: Stages) -> fx.Graph:
    """One call for each stage: its values by position, its arguments by name."""
    graph = fx.Graph()
    named = [name for spec in stages.specs or () for name in spec.arguments]
    arguments = {
        name: graph.placeholder(name) for name in dict.fromkeys([*stages.arguments, *named])
    }
    values: dict[str, fx.Node] = {}
    result = None
    for index, spec in enumerate(stages.specs or ()):
        result = graph.call_module(
            f"submod_pp_{index}",
            tuple(values[name] for name in spec.inputs),
            {name: arguments[name] for name in spec.arguments},
        )
        for position, name in enumerate(spec.outputs):
            values[name] = graph.call_function(operator.getitem, (result, position))
    graph.output(result)
    return graph


def pipeline(
    module: nn.Module,
    mb_args: tuple[Any, ...],
    mb_kwargs: dict[str, Any] | None = None,
    split_spec: dict[str, SplitPoint] | None = None,
    split_policy: SplitPolicy | None = None,
) -> Pipe:
    """Cuts a model into stages by tracing it.

    Args:
        module: the model, whose submodules the stages share.
        mb_args: positional arguments of one microbatch.
        mb_kwargs: keyword arguments of one microbatch.
        split_spec: {path of a submodule: SplitPoint}: marks the module so. Without it, cuts are
            where the module is annotated, or where its forward calls `pipe_split`.
        split_policy: see `Pipe.from_tracing`; not together with split_spec.
    """
    if split_spec is not None and split_policy is not None:
        raise ValueError(
            "Cannot specify both `split_spec` and `split_policy`. Please use only one of them."
        )
    if split_spec is not None:
        annotate_split_points(module, split_spec)
    return Pipe.from_tracing(module, mb_args, mb_kwargs, split_policy)
