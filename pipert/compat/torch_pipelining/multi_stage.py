"""Schedules in which a rank may have several stages: with any order, or one from a file."""

import logging
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from pipert import _C
from pipert.compat.torch_pipelining.microbatch import TensorChunkSpec
from pipert.compat.torch_pipelining.orders import (
    TRANSFERS,
    Order,
    _Action,
    _ComputationType,
    check_compute_only,
    read_order,
    schedule_of,
    with_transfers,
    write_rows,
)
from pipert.compat.torch_pipelining.overlap import Overlap, _PipelineContext
from pipert.compat.torch_pipelining.pipeline_schedule import _PipelineSchedule
from pipert.compat.torch_pipelining.stage import _PipelineStageBase

Format = Literal["compute_only", "compute_comms"]

logger = logging.getLogger(__name__)


class PipelineScheduleMulti(_PipelineSchedule):
    """A schedule in which a rank may have several stages.

    Args:
        stages: this rank's; without torch.distributed, all of them: ranks are threads then.
        n_microbatches, loss_fn, args_chunk_spec, kwargs_chunk_spec, output_merge_spec, scale_grads:
            see _PipelineSchedule.
        use_full_backward: ignored, as in torch.
        backward_requires_autograd: whether `step` refuses to run with gradients off.
    """

    def __init__(
        self,
        stages: "list[_PipelineStageBase]",
        n_microbatches: int,
        loss_fn: "Callable[..., Tensor] | None" = None,
        args_chunk_spec: tuple[TensorChunkSpec, ...] | None = None,
        kwargs_chunk_spec: dict[str, TensorChunkSpec] | None = None,
        output_merge_spec: dict[str, Any] | tuple[Any] | None = None,
        use_full_backward: bool | None = None,
        scale_grads: bool = True,
        backward_requires_autograd: bool = True,
    ) -> None:
        super().__init__(
            n_microbatches=n_microbatches,
            loss_fn=loss_fn,
            args_chunk_spec=args_chunk_spec,
            kwargs_chunk_spec=kwargs_chunk_spec,
            output_merge_spec=output_merge_spec,
            scale_grads=scale_grads,
        )
        if use_full_backward is not None:
            logger.warning("use_full_backward has no effect: the schedule says what is whole")
        self._set_stages(stages)
        self._backward_requires_autograd = backward_requires_autograd
        self.rank = self._stages[0].group_rank
        self.pp_group_size = self._num_ranks()

    def _num_ranks(self) -> int:
        """Of the group; in one process, one for each device."""
        first = self._stages[0]
        if first.group is not None:
            return first.group_size
        return len({str(stage.device) for stage in self._stages})

    def _built(self, name: str, **options: Any) -> _C.Schedule:
        return _C.Schedule.build(
            name,
            num_ranks=self.pp_group_size,
            num_microbatches=self._n_microbatches,
            num_stages=self._num_stages,
            **options,
        )

    @property
    def stage_index_to_group_rank(self) -> dict[int, int]:
        """Which rank has which stage."""
        return self._stages[0].stage_index_to_group_rank

    def _load_csv(self, filename: str, format: Format = "compute_only") -> None:  # noqa: A002
        """Takes the order in a file that `_dump_csv` wrote, torch's too, and its placement."""
        if format != "compute_only":
            raise AssertionError(f'format must be "compute_only", got {format}')
        self._set_schedule(schedule_of(read_order(filename), self._n_microbatches, str(filename)))

    def _dump_csv(self, filename: str) -> None:
        """Writes a row for each rank and a cell for each action."""
        write_rows(filename, [self.pipeline_order[rank] for rank in sorted(self.pipeline_order)])


class _PipelineScheduleRuntime(PipelineScheduleMulti):
    """A PipelineScheduleMulti with files of transfers, and functions for overlapped pairs.

    Its arguments are PipelineScheduleMulti's and `defer_pp_recv`, which has no effect: a receive
    that waits for its message holds up nothing else.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("defer_pp_recv", False)
        super().__init__(*args, **kwargs)

    def register_custom_function(
        self,
        computation_type: _ComputationType,
        custom_function: "Callable[[_Action, _PipelineContext], None]",
    ) -> None:
        """Has the halves of overlapped pairs run by `custom_function(action, context)`.

        It calls `context.forward()` and `context.backward()`, each once, from any thread. To be
        said before the first pass.

        Raises:
            NotImplementedError: for another kind than OVERLAP_F_B.
        """
        if computation_type not in set(_ComputationType) - TRANSFERS:
            raise ValueError(f"Invalid computation type {computation_type}")
        if computation_type is not _ComputationType.OVERLAP_F_B:
            raise NotImplementedError(
                f"{computation_type.value} runs in pipert's engine, without Python of a schedule: "
                "expected OVERLAP_F_B, or hooks on the modules"
            )
        if self._pipelines:
            raise RuntimeError("expected a function before the first step or eval")
        if self._overlap is not None:
            logger.warning("another function for OVERLAP_F_B replaces the one before")
        self._overlap = Overlap(custom_function)

    def _prepare_schedule_with_comms(
        self,
        actions: Order,
        format: Format = "compute_only",  # noqa: A002
    ) -> None:
        """Takes an order. Its sends and receives, if it has any, are left to pipert."""
        if format not in ("compute_only", "compute_comms"):
            raise NotImplementedError(f"{format=} is not implemented")
        if format == "compute_only":
            check_compute_only(actions)
        self._set_schedule(schedule_of(actions, self._n_microbatches, type(self).__name__))

    def _load_csv(self, filename: str, format: Format = "compute_only") -> None:  # noqa: A002
        """As PipelineScheduleMulti's; a file of "compute_comms" may have transfers too."""
        self._prepare_schedule_with_comms(read_order(filename), format)

    def _dump_csv(self, filename: str, format: Format = "compute_comms") -> None:  # noqa: A002
        """Writes the order; with "compute_comms", with the transfers as pipert issues them."""
        if format not in ("compute_only", "compute_comms"):
            raise NotImplementedError(f"{format=} is not implemented")
        if format == "compute_only":
            super()._dump_csv(filename)
        else:
            write_rows(filename, with_transfers(self._chosen()))
