"""PiPPy's names and the shapes of its calls, on pipert's engine; see docs/torch_pipelining.md."""

from typing import Any

import torch
from torch import nn

from pipert.compat.torch_pipelining._IR import (
    LossWrapper,
    PipeSequential,
    PipeSplitWrapper,
    SplitPoint,
    SplitPolicy,
    TrivialLossWrapper,
    annotate_split_points,
    pipe_split,
)
from pipert.compat.torch_pipelining._IR import Pipe as _Pipe
from pipert.compat.torch_pipelining.schedules import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleLoopedBFS,
)
from pipert.compat.torch_pipelining.size_policy import (
    split_into_equal_size,
    split_on_size_threshold,
)
from pipert.compat.torch_pipelining.stage import _PipelineStage

__all__ = [
    "LossWrapper",
    "Pipe",
    "PipeSequential",
    "PipeSplitWrapper",
    "PipelineStage",
    "Schedule1F1B",
    "ScheduleGPipe",
    "ScheduleInterleaved1F1B",
    "ScheduleLoopedBFS",
    "SplitPoint",
    "TrivialLossWrapper",
    "annotate_split_points",
    "pipe_split",
    "pipeline",
    "split_into_equal_size",
    "split_on_size_threshold",
]


class Pipe(_Pipe):
    """A Pipe that remembers into how many pieces a batch is to be cut.

    Attributes:
        num_chunks: how many.
    """

    num_chunks = 1

    @staticmethod
    def from_tracing(  # type: ignore[override]
        mod: nn.Module,
        num_chunks: int,
        example_args: tuple[Any, ...],
        example_kwargs: dict[str, Any] | None = None,
        split_policy: SplitPolicy | None = None,
    ) -> "Pipe":
        """Cuts a model where it is annotated, or where a policy says.

        Args:
            mod: the model, whose submodules the stages share.
            num_chunks: how many pieces a batch is to be cut into.
            example_args: positional arguments, of a batch or of a microbatch.
            example_kwargs: keyword arguments, likewise.
            split_policy: such as `split_into_equal_size(4)`.
        """
        made = _Pipe.from_tracing(mod, example_args, example_kwargs, split_policy)
        pipe = Pipe(made.split_gm, made.num_stages, False, None)
        pipe.num_chunks = num_chunks
        return pipe


def pipeline(
    mod: nn.Module,
    num_chunks: int,
    example_args: tuple[Any, ...],
    example_kwargs: dict[str, Any] | None = None,
    split_policy: SplitPolicy | None = None,
) -> Pipe:
    """The same as Pipe.from_tracing."""
    return Pipe.from_tracing(mod, num_chunks, example_args, example_kwargs, split_policy)


def PipelineStage(  # noqa: N802 - PiPPy's class
    pipe: _Pipe, stage_index: int, device: torch.device, group: Any = None
) -> _PipelineStage:
    """A stage of a Pipe that schedules run; see `Pipe.build_stage`."""
    return pipe.build_stage(stage_index, device, group)
