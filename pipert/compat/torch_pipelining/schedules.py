"""Schedules: torch's classes by their names, on pipert's engine."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from pipert import _C
from pipert.compat.torch_pipelining.microbatch import TensorChunkSpec
from pipert.compat.torch_pipelining.multi_stage import (
    PipelineScheduleMulti,
    _PipelineScheduleRuntime,
)
from pipert.compat.torch_pipelining.orders import _Action, _ComputationType, one_round
from pipert.compat.torch_pipelining.overlap import _PipelineContext
from pipert.compat.torch_pipelining.pipeline_schedule import _PipelineSchedule
from pipert.compat.torch_pipelining.single_stage import (
    PipelineScheduleSingle,
    Schedule1F1B,
    ScheduleGPipe,
    _ScheduleForwardOnly,
)
from pipert.compat.torch_pipelining.stage import _PipelineStageBase

__all__ = [
    "PipelineScheduleMulti",
    "PipelineScheduleSingle",
    "Schedule1F1B",
    "ScheduleDualPipeV",
    "ScheduleGPipe",
    "ScheduleInterleaved1F1B",
    "ScheduleInterleavedZeroBubble",
    "ScheduleLoopedBFS",
    "ScheduleZBVZeroBubble",
    "_Action",
    "_ComputationType",
    "_PipelineContext",
    "_PipelineSchedule",
    "_PipelineScheduleRuntime",
    "_ScheduleForwardOnly",
    "get_schedule_class",
]


class ScheduleLoopedBFS(_PipelineScheduleRuntime):
    """Each stage runs all microbatches before the rank's next stage begins."""

    def __init__(
        self,
        stages: "list[_PipelineStageBase]",
        n_microbatches: int,
        loss_fn: "Callable[..., Tensor] | None" = None,
        output_merge_spec: dict[str, Any] | tuple[Any] | None = None,
        scale_grads: bool = True,
        backward_requires_autograd: bool = True,
        defer_pp_recv: bool = False,
    ) -> None:
        super().__init__(
            stages=stages,
            n_microbatches=n_microbatches,
            loss_fn=loss_fn,
            output_merge_spec=output_merge_spec,
            scale_grads=scale_grads,
            backward_requires_autograd=backward_requires_autograd,
            defer_pp_recv=defer_pp_recv,
        )
        self._set_schedule(self._make())

    def _make(self) -> _C.Schedule:
        return self._built("looped_bfs")


class _Named(_PipelineScheduleRuntime):
    """A schedule that comes with its class.

    Args:
        stages, n_microbatches, loss_fn, args_chunk_spec, kwargs_chunk_spec, output_merge_spec,
            scale_grads, backward_requires_autograd: see PipelineScheduleMulti.
        defer_pp_recv: has no effect.
    """

    def __init__(
        self,
        stages: "list[_PipelineStageBase]",
        n_microbatches: int,
        loss_fn: "Callable[..., Tensor] | None" = None,
        args_chunk_spec: tuple[TensorChunkSpec, ...] | None = None,
        kwargs_chunk_spec: dict[str, TensorChunkSpec] | None = None,
        output_merge_spec: dict[str, Any] | tuple[Any] | None = None,
        scale_grads: bool = True,
        backward_requires_autograd: bool = True,
        defer_pp_recv: bool = False,
    ) -> None:
        super().__init__(
            stages=stages,
            n_microbatches=n_microbatches,
            loss_fn=loss_fn,
            args_chunk_spec=args_chunk_spec,
            kwargs_chunk_spec=kwargs_chunk_spec,
            output_merge_spec=output_merge_spec,
            scale_grads=scale_grads,
            backward_requires_autograd=backward_requires_autograd,
            defer_pp_recv=defer_pp_recv,
        )
        self._set_schedule(self._make())

    def _make(self) -> _C.Schedule:
        raise NotImplementedError


class _Interleaved(_Named):
    """Microbatches go through a rank's stages in groups, one group after the other."""

    _name: ClassVar[str]
    _in_halves: ClassVar[bool]

    def _make(self) -> _C.Schedule:
        num_ranks, num_microbatches = self.pp_group_size, self._n_microbatches
        rounds = max(1, num_microbatches // num_ranks)
        if num_microbatches % rounds != 0:
            raise ValueError(
                f"{type(self).__name__} requires the number of microbatches to be a multiple of "
                f"the number of rounds ({rounds}), but got {num_microbatches}."
            )
        if num_microbatches >= num_ranks:
            return self._built(self._name, group_size=num_microbatches // rounds)
        num_chunks, rest = divmod(self._num_stages, num_ranks)
        if rest:
            raise ValueError(
                f"num_stages must be a multiple of {num_ranks} (num_ranks), got {self._num_stages}"
            )
        texts = one_round(num_ranks, num_chunks, num_microbatches, in_halves=self._in_halves)
        return _C.Schedule(texts, num_microbatches=num_microbatches, name=self._name)


class ScheduleInterleaved1F1B(_Interleaved):
    """1F1B with several stages on each rank."""

    _name, _in_halves = "interleaved_1f1b", False


class ScheduleInterleavedZeroBubble(_Interleaved):
    """Interleaved 1F1B whose backwards come in halves: input gradients first, weights later."""

    _name, _in_halves = "zb_interleaved", True


class _VShaped(_Named):
    """Two stages on each rank: one on the way down the V and one on the way up."""

    _name: ClassVar[str]

    def _num_ranks(self) -> int:
        first = self._stages[0]
        return first.num_stages // 2 if first.group is None else first.group_size

    def _make(self) -> _C.Schedule:
        if self._num_stages != 2 * self.pp_group_size:
            raise ValueError(
                f"{type(self).__name__} requires exactly 2 stages per rank, but got "
                f"{self._num_stages} on {self.pp_group_size} ranks."
            )
        return self._built(self._name)


class ScheduleZBVZeroBubble(_VShaped):
    """The zero-bubble schedule in the shape of a V."""

    _name = "zb_v"


class ScheduleDualPipeV(_VShaped):
    """DualPipe cut in half: forwards overlap with other microbatches' backwards."""

    _name = "dualpipe_v"


_CLASSES = {
    "1F1B": Schedule1F1B,
    "Interleaved1F1B": ScheduleInterleaved1F1B,
    "GPipe": ScheduleGPipe,
    "LoopedBFS": ScheduleLoopedBFS,
    "InterleavedZeroBubble": ScheduleInterleavedZeroBubble,
    "PipelineScheduleSingle": PipelineScheduleSingle,
    "PipelineScheduleMulti": PipelineScheduleMulti,
    "ZBVZeroBubble": ScheduleZBVZeroBubble,
    "DualPipeV": ScheduleDualPipeV,
}


def get_schedule_class(schedule_name: str) -> type[_PipelineSchedule]:
    """The class of a schedule by its name, in capitals or not.

    Raises:
        ValueError: there is none of that name.
    """
    for name, schedule in _CLASSES.items():
        if name.lower() == schedule_name.lower():
            return schedule
    raise ValueError(
        f"Unknown schedule name '{schedule_name}'. The valid options are {list(_CLASSES)}"
    )
