"""Schedules in which each rank has one stage."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from pipert import _C
from pipert.compat.torch_pipelining.microbatch import TensorChunkSpec
from pipert.compat.torch_pipelining.pipeline_schedule import Microbatches, _PipelineSchedule
from pipert.compat.torch_pipelining.stage import _PipelineStageBase


class PipelineScheduleSingle(_PipelineSchedule):
    """A schedule in which each rank has one stage.

    Args:
        stage: this rank's. Without torch.distributed, a list of all stages: ranks are threads then.
        n_microbatches, loss_fn, args_chunk_spec, kwargs_chunk_spec, output_merge_spec, scale_grads:
            see _PipelineSchedule.
    """

    _name: ClassVar[str | None] = None

    def __init__(
        self,
        stage: "_PipelineStageBase | Sequence[_PipelineStageBase]",
        n_microbatches: int,
        loss_fn: "Callable[..., Tensor] | None" = None,
        args_chunk_spec: tuple[TensorChunkSpec, ...] | None = None,
        kwargs_chunk_spec: dict[str, TensorChunkSpec] | None = None,
        output_merge_spec: dict[str, Any] | tuple[Any] | None = None,
        scale_grads: bool = True,
    ) -> None:
        super().__init__(
            n_microbatches=n_microbatches,
            loss_fn=loss_fn,
            args_chunk_spec=args_chunk_spec,
            kwargs_chunk_spec=kwargs_chunk_spec,
            output_merge_spec=output_merge_spec,
            scale_grads=scale_grads,
        )
        self._set_stages([stage] if isinstance(stage, _PipelineStageBase) else stage)
        self._stage = stage
        first = self._stages[0]
        if first.group is not None and first.group_size != first.num_stages:
            raise ValueError(
                f"{type(self).__name__} has one stage on each rank, got {first.num_stages} stages "
                f"and {first.group_size} ranks"
            )
        self._set_schedule(self._make())

    def _make(self) -> _C.Schedule | None:
        if self._name is None:
            return None
        return _C.Schedule.build(
            self._name, num_ranks=self._num_stages, num_microbatches=self._n_microbatches
        )


class ScheduleGPipe(PipelineScheduleSingle):
    """All forwards, then all backwards."""

    _name = "gpipe"


class Schedule1F1B(PipelineScheduleSingle):
    """In its steady state a rank alternates between one forward and one backward."""

    _name = "1f1b"


class _ScheduleForwardOnly(PipelineScheduleSingle):
    """Forwards alone: outputs, and no losses."""

    _name = "gpipe"

    _computes_losses = False

    def _check_inputs(
        self,
        arg_mbs: Microbatches | None = None,
        kwarg_mbs: Microbatches | None = None,
        target_mbs: Microbatches | None = None,
        losses: "list[Tensor] | None" = None,
    ) -> tuple[Microbatches, Microbatches]:
        if target_mbs is not None or losses is not None:
            raise RuntimeError("Forward-only schedule does not support loss computation")
        return super()._check_inputs(arg_mbs, kwarg_mbs)
