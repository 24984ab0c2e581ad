"""_PipelineSchedule: what all of torch's schedules have in common: step and eval."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pipert import _C
from pipert.batches.batch import Microbatch
from pipert.batches.results import StepResult
from pipert.compat.torch_pipelining.microbatch import (
    TensorChunkSpec,
    merge_chunks,
    split_args_kwargs_into_chunks,
)
from pipert.compat.torch_pipelining.orders import Order, order_of, schedule_of
from pipert.compat.torch_pipelining.overlap import Overlap, _PipelineContext
from pipert.compat.torch_pipelining.pipelines import CurrentLoss, check_stages, make_pipeline
from pipert.compat.torch_pipelining.stage import _PipelineStageBase
from pipert.pipeline import Pipeline

Microbatches = list[Any]

_MOST_PIPELINES = 4  # that a schedule keeps, of different numbers of microbatches


class _Failure(Sequence[Any]):
    """What stands for microbatches that can't be had: looking at them raises the error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __len__(self) -> int:
        raise self._error

    def __iter__(self) -> Iterator[Any]:
        raise self._error

    def __getitem__(self, index: Any) -> Any:
        raise self._error


class _PipelineSchedule:
    """Runs the stages of one rank, with the other ranks of their group.

    The first pass makes the Pipeline, with all ranks of the group.

    Args:
        n_microbatches: how many pieces a batch is cut into.
        loss_fn: `loss_fn(output, target)`, on every rank; None: `step` computes outputs alone.
        args_chunk_spec: how positional arguments are cut; None: tensors along dimension 0.
        kwargs_chunk_spec: the same of keyword arguments.
        output_merge_spec: how outputs are put together; None: along dimension 0.
        scale_grads: whether gradients are of the mean of the losses, not of their sum.
    """

    _computes_losses = True
    _backward_requires_autograd = True

    def __init__(
        self,
        n_microbatches: int,
        loss_fn: "Callable[..., Tensor] | None" = None,
        args_chunk_spec: tuple[TensorChunkSpec, ...] | None = None,
        kwargs_chunk_spec: dict[str, TensorChunkSpec] | None = None,
        output_merge_spec: dict[str, Any] | tuple[Any] | None = None,
        scale_grads: bool = True,
    ) -> None:
        # Users change these between passes: each pass looks at them anew.
        self._n_microbatches = n_microbatches
        self._loss_fn = loss_fn if self._computes_losses else None
        self.scale_grads = scale_grads
        self._args_chunk_spec = args_chunk_spec
        self._kwargs_chunk_spec = kwargs_chunk_spec
        self._output_merge_spec = output_merge_spec
        self._has_backward = self._loss_fn is not None

        self._stages: list[_PipelineStageBase] = []
        self._loss = CurrentLoss()
        self._schedule: _C.Schedule | None = None
        self._order: Order | None = None  # to become the schedule
        self._pipelines: dict[int, Pipeline] = {}  # by number of microbatches; the last one's last
        self._overlap: Overlap | None = None

    def _set_stages(self, stages: Sequence[_PipelineStageBase]) -> None:
        check_stages(stages)
        self._stages = list(stages)
        self._num_stages = stages[0].num_stages

    def _make(self) -> _C.Schedule | None:
        """The schedule that comes with the class, for its number of microbatches."""
        return None

    def _set_schedule(self, schedule: _C.Schedule | None) -> None:
        self._schedule, self._order = schedule, None
        if schedule is not None:
            placement = schedule.placement
            ranks = {stage: placement.rank_of(stage) for stage in range(placement.num_stages)}
            for stage in self._stages:
                stage.stage_index_to_group_rank = ranks

    @property
    def pipeline_order(self) -> Order:
        """By rank, its actions in torch's type.

        May be set between passes; until the first one it may be changed in place too.
        """
        if self._order is not None:
            return self._order
        order = {} if self._schedule is None else order_of(self._schedule)
        if not self._pipelines:
            self._order = order
        return order

    @pipeline_order.setter
    def pipeline_order(self, order: Order) -> None:
        self._order = order

    @property
    def pipeline(self) -> Pipeline | None:
        """What ran the last pass, for its `report`, `trace` and `close`; None until there was one.

        There is a Pipeline for each number of microbatches.
        """
        return next(reversed(self._pipelines.values()), None)

    def step(
        self,
        *args: Any,
        target: Any = None,
        losses: "list[Tensor] | None" = None,
        return_outputs: bool = True,
        loss_kwargs: dict[str, Any] | None = None,
        arg_mbs: Microbatches | None = None,
        kwarg_mbs: Microbatches | None = None,
        target_mbs: Microbatches | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs a whole batch; with a loss function its backward too.

        Args:
            *args: of the model, for the first stage's rank.
            target: of the loss function, for the last stage's rank.
            losses: on the last stage's rank it is emptied, and filled with each microbatch's loss.
            return_outputs: whether the last stage's rank gets the outputs.
            loss_kwargs: more arguments of the loss function.
            arg_mbs: instead of args, a tuple of them for each microbatch.
            kwarg_mbs: instead of kwargs, a dict of them for each microbatch.
            target_mbs: instead of target, one for each microbatch.
            **kwargs: of the stages on any rank whose forward takes them.

        Returns:
            The outputs, detached, put together as `output_merge_spec` says; None on ranks without
            the last stage.

        Raises:
            RuntimeError: gradients are off and there is a loss function, or the pass failed.
        """
        if self._has_backward and self._backward_requires_autograd and not torch.is_grad_enabled():
            raise RuntimeError(
                "step() requires gradients to be enabled for backward computation; it should not "
                "be used under torch.no_grad() context. Please call eval() instead."
            )
        for stage in self._stages:
            stage.clear_runtime_states()
        with self._telling():
            for is_given, pieces, names in (
                (bool(args), arg_mbs, "positional arguments or arg_mbs"),
                (bool(kwargs), kwarg_mbs, "keyword arguments or kwarg_mbs"),
                (target is not None, target_mbs, "target or target_mbs"),
            ):
                if is_given and pieces is not None:
                    raise ValueError(f"expected {names}, got both")
            cut_args, cut_kwargs = self._split_inputs(args, kwargs)
            if target is not None:
                targets, _ = split_args_kwargs_into_chunks((target,), None, self._n_microbatches)
                target_mbs = [piece for (piece,) in targets]
        self._step_microbatches(
            cut_args if arg_mbs is None else arg_mbs,
            cut_kwargs if kwarg_mbs is None else kwarg_mbs,
            target_mbs,
            losses,
            return_outputs,
            loss_kwargs,
        )
        last = self._last_stage()
        if last is None or not return_outputs:
            return None
        return self._merge_outputs(last.output_chunks)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """If what is inside fails here, the other ranks hear of it, which begin the pass."""
        try:
            yield
        except Exception as error:
            self._ready().evaluate(microbatches=_Failure(error))
            raise

    def eval(
        self,
        *args: Any,
        target: Any = None,
        losses: "list[Tensor] | None" = None,
        **kwargs: Any,
    ) -> Any:
        """As `step`, with forwards alone."""
        has_backward = self._has_backward
        try:
            self._has_backward = False
            return self.step(*args, target=target, losses=losses, **kwargs)
        finally:
            self._has_backward = has_backward

    def _step_microbatches(
        self,
        arg_mbs: Microbatches | None = None,
        kwarg_mbs: Microbatches | None = None,
        target_mbs: Microbatches | None = None,
        losses: "list[Tensor] | None" = None,
        return_outputs: bool = True,
        loss_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Runs a batch that is already cut; outputs go to the last stage's `output_chunks`."""
        last = self._last_stage()
        with self._telling():
            arg_mbs, kwarg_mbs = self._check_inputs(arg_mbs, kwarg_mbs, target_mbs, losses)
            if self._has_backward and last is not None and self._loss_fn is None:
                raise ValueError("a step with backward needs a loss function, got None")
        pipeline = self._ready()
        for stage in self._stages:
            stage.has_backward = self._has_backward
        microbatches = [Microbatch(a, k) for a, k in zip(arg_mbs, kwarg_mbs, strict=True)]
        context = _PipelineContext(self, arg_mbs, kwarg_mbs, target_mbs, losses)
        with nullcontext() if self._overlap is None else self._overlap.within(context):
            if not self._has_backward and last is not None and self._loss_fn is None:
                result = StepResult(None, None, pipeline(microbatches=microbatches))
            else:
                run = pipeline.step if self._has_backward else pipeline.evaluate
                result = run(
                    microbatches=microbatches,
                    target=target_mbs,
                    loss_kwargs=loss_kwargs,
                    return_outputs=return_outputs,
                    loss_weights=None if self.scale_grads else [1.0] * self._n_microbatches,
                )
        if last is not None:
            if losses is not None:
                losses.clear()
                losses.extend(() if result.losses is None else result.losses.unbind(0))
            for output in result.outputs if return_outputs else ():
                last.output_chunks.append(output)

    def _last_stage(self) -> _PipelineStageBase | None:
        return next((stage for stage in self._stages if stage.is_last), None)

    def _ready(self) -> Pipeline:
        """The Pipeline, made or brought up to date with what was changed since the last pass."""
        schedule = self._chosen()
        self._loss.set(self._loss_fn, self._last_stage())
        pipeline = self._pipelines.pop(self._n_microbatches, None)
        if pipeline is None:
            pipeline = make_pipeline(self._stages, schedule, self._loss, self._overlap)
        elif schedule is not pipeline.schedule:
            pipeline.reschedule(schedule)
        self._pipelines[self._n_microbatches] = pipeline  # as the last one
        if len(self._pipelines) > _MOST_PIPELINES:
            self._pipelines.pop(next(iter(self._pipelines))).close()
        return pipeline

    def _chosen(self) -> _C.Schedule:
        """The schedule of the next pass."""
        name = type(self).__name__
        if self._order:
            self._set_schedule(schedule_of(self._order, self._n_microbatches, name))
        if self._schedule is None or self._schedule.num_microbatches != self._n_microbatches:
            self._set_schedule(self._make())
        if self._schedule is None:
            raise ValueError(
                f"{name} has no order for {self._n_microbatches} microbatches: expected _load_csv "
                "or pipeline_order"
            )
        return self._schedule

    def _check_inputs(
        self,
        arg_mbs: Microbatches | None = None,
        kwarg_mbs: Microbatches | None = None,
        target_mbs: Microbatches | None = None,
        losses: "list[Tensor] | None" = None,
    ) -> tuple[Microbatches, Microbatches]:
        """Checks them, and gives ranks that were given nothing as many empty microbatches."""
        for name, pieces in (
            ("arg_mbs", arg_mbs),
            ("kwarg_mbs", kwarg_mbs),
            ("target_mbs", target_mbs),
        ):
            if pieces is not None and not isinstance(pieces, list):
                raise TypeError(f"{name} must be a list but got a {type(pieces)}")
            if pieces is not None and len(pieces) != self._n_microbatches:
                raise ValueError(f"Expecting {self._n_microbatches} {name} but got {len(pieces)}")
        if losses is not None and not isinstance(losses, list):
            raise TypeError(f"losses must be a list but got a {type(losses)}")
        if arg_mbs is None:
            arg_mbs = [()] * self._n_microbatches
        if kwarg_mbs is None:
            kwarg_mbs = [{}] * self._n_microbatches
        return arg_mbs, kwarg_mbs

    def _split_inputs(
        self, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> tuple[Microbatches, Microbatches]:
        if not args and not kwargs:
            return [()] * self._n_microbatches, [{}] * self._n_microbatches
        return split_args_kwargs_into_chunks(
            args, kwargs, self._n_microbatches, self._args_chunk_spec, self._kwargs_chunk_spec
        )

    def _merge_outputs(self, output_chunks: Microbatches) -> Any:
        return merge_chunks(output_chunks, self._output_merge_spec)
