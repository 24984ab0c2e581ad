"""Pipeline: the front of the runtime. It parses arguments and hands over to C++."""

import atexit
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pipert import _C
from pipert.arguments import (
    check_arguments,
    check_integers,
    check_options,
    check_placement,
    check_timeout,
    cut_already,
    default_num_ranks,
    load_schedule,
    resolve_devices,
    resolve_schedule,
)
from pipert.distributed import Peers, as_group
from pipert.errors import PipelineError, describe_for_peers
from pipert.gradients import clip_gradients, gradient_norms
from pipert.parameters import load_stages
from pipert.report import Report, Trace, make_report, summarize
from pipert.results import StepResult, mean_loss, merge_outputs
from pipert.stages import LocalStage, Stages, check_tied, make_stage, needs_target

_open: "weakref.WeakSet[Pipeline]" = weakref.WeakSet()


class Programs(tuple[_C.Program, ...]):
    """The programs of this process's ranks; prints as their text."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))


class Pipeline:
    """A partitioned model that trains through a schedule.

    One process: all ranks are threads of it. Under torchrun: this process is one rank of `group`.
    Every rank is constructed with the same arguments, and makes the same calls.

    Args:
        stages: what `split` returns, or any sequence of modules, of functions, or of functions
            without arguments that build one; a rank builds its own stages only.
        schedule: a name out of `schedules()`, a Schedule, or the path of a CSV file.
        num_microbatches: how many pieces a batch is cut into.
        loss_fn: `loss_fn(output, target)`, or `loss_fn(output)` when no target is given; returns
            one number as a tensor. Runs on the last stage's rank.
        num_ranks: in one process, the number of threads; by default one for each of `devices`, or
            for each stage.
        devices: one for each rank; the same one may repeat. Modules are moved to their rank's. By
            default the CPU. One device alone is everybody's; with `group` it is this rank's.
        group: a ProcessGroup or a one-dimensional DeviceMesh; None: one process. See `init`.
        placement: a Placement, or the rank of each stage, that the schedule must have.
        schedule_options: options of a schedule given by name, such as {"group_size": 4}.
        stage_kind: "module" (or "auto", which is the same here), or one word for each stage: stages
            run as Python modules.
        broadcast_loss: whether every rank gets the losses, not the last stage's alone.
        timeout_s: the limit of every wait of one rank for another, in seconds.
        receive_slots: receives that are posted ahead on each edge, at least.
        intra_op_threads: of torch's operators, for each rank; by default the caller's
            `torch.get_num_threads()` shared out among the ranks of this process.

    Attributes:
        schedule: the Schedule.
        program: what each rank of this process does in a step; prints as text.
        stages: {stage index: module}, this process's.

    Raises:
        ValueError, TypeError: an argument is wrong; the message says what was expected.
    """

    def __init__(
        self,
        stages: Sequence[Any],
        *,
        schedule: "str | os.PathLike[str] | _C.Schedule" = "1f1b",
        num_microbatches: int,
        loss_fn: Callable[..., Tensor] | None = None,
        num_ranks: int | None = None,
        devices: Any = None,
        group: Any = None,
        placement: "_C.Placement | Sequence[int] | None" = None,
        schedule_options: Mapping[str, int] | None = None,
        stage_kind: str | Sequence[str] = "module",
        broadcast_loss: bool = False,
        timeout_s: float = 300.0,
        receive_slots: int = 2,
        intra_op_threads: int | None = None,
    ) -> None:
        self._runtime: _C.Runtime | None = None
        self._last_failed = False
        self._process = os.getpid()
        self._group = None if group is None else as_group(group)
        timeout_s = check_timeout(timeout_s)
        self._peers = None if self._group is None else Peers(self._group, timeout_s)
        self._loss_fn = loss_fn
        self._broadcast_loss = broadcast_loss
        self._timeout_s = timeout_s
        with self._telling_peers():
            check_arguments(stages, loss_fn, stage_kind)
            check_integers(
                num_microbatches=num_microbatches,
                num_ranks=num_ranks,
                receive_slots=receive_slots,
                intra_op_threads=intra_op_threads,
            )
            schedule = load_schedule(schedule)
            if num_ranks is None:
                num_ranks = default_num_ranks(stages, schedule, devices, self._group)
            if self._peers is not None and num_ranks != self._peers.size:
                raise ValueError(
                    f"num_ranks must be the size of the group, {self._peers.size}, got {num_ranks}"
                )
            self.schedule = resolve_schedule(
                schedule, num_ranks, num_microbatches, len(stages), check_options(schedule_options)
            )
            check_placement(placement, self.schedule)
            self._can_train = any(a.kind != "F" for rank in self.schedule.actions for a in rank)
            programs = _C.lower(self.schedule, receive_slots=receive_slots)
            evaluation = _C.lower(
                self.schedule.forward_only(),
                receive_slots=receive_slots,
                send_slots=receive_slots + 2,  # nothing comes back that would show what was read
            )
            if self._peers is not None:
                self._peers.agree(
                    {
                        "schedule": self.schedule.name,
                        "num_microbatches": num_microbatches,
                        "num_stages": len(stages),
                        "the schedule's actions": self.schedule.to_csv(),
                        "receive_slots": receive_slots,
                        "broadcast_loss": broadcast_loss,
                    }
                )
            self._ranks = range(num_ranks) if self._peers is None else [self._peers.rank]
            self._devices = resolve_devices(devices, self._ranks, num_ranks)
            self.program = Programs(programs[rank] for rank in self._ranks)
            self._evaluation = [evaluation[rank] for rank in self._ranks]
            self._intra_op_threads = intra_op_threads or max(
                1, torch.get_num_threads() // len(self._ranks)
            )
            self._make_stages(stages)
            self._keywords = self._gather_keywords()
            self._connect()
        _open.add(self)

    def _telling_peers(self) -> AbstractContextManager[None]:
        """In a group, the others are told of a failure inside: they wait for this rank."""
        return nullcontext() if self._peers is None else self._peers.telling()

    def _make_stages(self, stages: Sequence[Any]) -> None:
        self._global_names = (
            {name for names in stages.names for name in names}
            if isinstance(stages, Stages)
            else None
        )
        if self._peers is not None:
            check_tied(stages, self.schedule.placement)
        self._local: dict[int, LocalStage] = {}
        for rank, device in zip(self._ranks, self._devices, strict=True):
            for index in self.schedule.placement.stages_of(rank):
                stage = make_stage(stages, index)
                if isinstance(stage.call, nn.Module):
                    stage.call.to(device)
                self._local[index] = stage
        self._local = dict(sorted(self._local.items()))
        self.stages = {index: stage.call for index, stage in self._local.items()}
        self._has_first = 0 in self._local
        self._has_last = self.schedule.num_stages - 1 in self._local
        if isinstance(self._loss_fn, nn.Module) and self._has_last:
            rank = self.schedule.placement.rank_of(self.schedule.num_stages - 1)
            self._loss_fn.to(self._devices[list(self._ranks).index(rank)])

    def _connect(self) -> None:
        """Makes the runtime; in a group, with new connections. A collective call there."""
        external = None
        if self._peers is not None:
            external = self._peers.connect(self.program[0], self._devices[0])
        # A waiting rank may only keep a core busy if no other rank needs it.
        spin_us = 200 if len(self._ranks) <= (os.cpu_count() or 1) else 0
        self._runtime = _C.Runtime(
            stages=[(s.index, s.call, s.spread, s.keywords) for s in self._local.values()],
            ranks=[
                (training, evaluation, str(device))
                for training, evaluation, device in zip(
                    self.program, self._evaluation, self._devices, strict=True
                )
            ],
            loss_fn=self._loss_fn,
            external=external,
            timeout_s=self._timeout_s,
            intra_op_threads=self._intra_op_threads,
            spin_us=spin_us,
            share_losses=self._broadcast_loss,
        )

    # --- running -----------------------------------------------------------------------------

    def step(
        self,
        *args: Any,
        target: Any = None,
        loss_kwargs: Mapping[str, Any] | None = None,
        return_outputs: bool = False,
        microbatches: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> StepResult:
        """Runs forward and backward of a whole batch, and adds to every parameter's `.grad`.

        The gradients are those of the mean of the microbatches' losses. The batch is cut along
        dimension 0 as by torch.tensor_split; microbatches of different sizes count by their rows.
        Tensors without dimensions, and values that aren't tensors, go to every microbatch whole.

        Args:
            *args: for the first stage, each of shape (batch size, ...). Other ranks ignore them.
            target: for the loss function, likewise. Ranks without the last stage ignore it.
            loss_kwargs: keyword arguments of the loss function, passed whole.
            return_outputs: whether the last stage's outputs are kept.
            microbatches: instead of args and kwargs, a batch that is already cut: for each
                microbatch a tuple of positional arguments, a dict of keyword arguments, or one
                argument. `target` then has one entry for each; the loss is their plain mean.
            **kwargs: keyword arguments, for every stage whose forward takes one of that name.

        Raises:
            ValueError, TypeError: an argument is wrong.
            PipelineError: the step failed on some rank. Gradients may have been added in part.
        """
        return self._run(
            args, kwargs, target, loss_kwargs, microbatches, True, True, return_outputs
        )

    def evaluate(
        self,
        *args: Any,
        target: Any = None,
        loss_kwargs: Mapping[str, Any] | None = None,
        return_outputs: bool = False,
        microbatches: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> StepResult:
        """As `step`, without gradients and without backward. Modules stay in the mode they are in.

        Without a loss function it computes outputs alone.
        """
        has_loss = self._loss_fn is not None or not self._has_last
        return self._run(
            args, kwargs, target, loss_kwargs, microbatches, False, has_loss, return_outputs
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of a batch, without gradients; None on ranks without the last stage."""
        return self._run(args, kwargs, None, None, None, False, False, True).outputs

    def _run(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        target: Any,
        loss_kwargs: Mapping[str, Any] | None,
        microbatches: Sequence[Any] | None,
        training: bool,
        compute_loss: bool,
        keep_outputs: bool,
    ) -> StepResult:
        runtime = self._ready_runtime()
        is_cut = microbatches is not None
        self._last_failed = True  # until the end
        batch_args: Any
        batch_kwargs: Any
        try:
            if microbatches is not None:
                if args or kwargs:
                    raise ValueError("expected microbatches or arguments of the batch, got both")
                batch_args, batch_kwargs = cut_already(microbatches)
                self._check_keywords({name for some in batch_kwargs for name in some})
            else:
                batch_args, batch_kwargs = (args or None), (kwargs or None)
                self._check_keywords(kwargs)
            self._check_batch(batch_args, batch_kwargs, target, training, compute_loss)
            with torch.set_grad_enabled(training):
                runtime.step(
                    args=batch_args,
                    kwargs=batch_kwargs,
                    target=target if compute_loss else None,
                    loss_kwargs=None if loss_kwargs is None else dict(loss_kwargs),
                    is_cut=is_cut,
                    training=training,
                    compute_loss=compute_loss,
                    keep_outputs=keep_outputs,
                )
        except PipelineError:  # the runtime has told the others
            raise
        except BaseException as error:
            self._withdraw(error)
            raise
        self._last_failed = False
        return self._result(runtime, compute_loss, keep_outputs, is_cut)

    def _ready_runtime(self) -> _C.Runtime:
        if self._runtime is None:
            raise ValueError("the pipeline is closed")
        if self._process != os.getpid():
            raise ValueError(
                "a forked process has no ranks: make the pipeline in the process itself"
            )
        if self._runtime.running():  # asked before anything is told to the other ranks
            raise ValueError(
                "the pipeline is running a step: it runs one at a time, for one thread"
            )
        if not self._runtime.usable():
            self._runtime.close()
            with self._telling_peers():
                self._connect()
        return self._runtime

    def _withdraw(self, error: BaseException) -> None:
        """The others may be in the step already: they are told that this rank won't come."""
        if self._peers is not None and self._runtime is not None:
            self._runtime.withdraw(describe_for_peers(error, self._peers.rank))

    def _check_batch(
        self, args: Any, kwargs: Any, target: Any, training: bool, compute_loss: bool
    ) -> None:
        if training and not self._can_train:
            raise ValueError(f"step needs a schedule with backwards, {self.schedule.name} has none")
        if training and self._has_last and self._loss_fn is None:
            raise ValueError("step needs a loss function: expected Pipeline(loss_fn=...), got None")
        if self._has_first and args is None and kwargs is None:
            raise ValueError("the first stage's rank needs the batch: expected arguments, got none")
        if not (compute_loss and self._has_last) or target is not None or self._loss_fn is None:
            return
        if needs_target(self._loss_fn):
            raise ValueError(
                "the last stage's rank needs the target: expected target=..., got None (the "
                "loss function takes an output and a target)"
            )

    def _gather_keywords(self) -> set[str] | None:
        """The keyword arguments that some stage takes; None: one takes any. Collective."""
        own = [stage.keywords for stage in self._local.values()]
        ranks = [own] if self._peers is None else self._peers.exchange("name the keywords", own)
        keywords: set[str] = set()
        for stage in (stage for rank in ranks for stage in rank):
            if stage is None:
                return None
            keywords.update(stage)
        return keywords

    def _check_keywords(self, kwargs: Iterable[str]) -> None:
        for name in kwargs:
            if self._keywords is not None and name not in self._keywords:
                known = ", ".join(sorted(self._keywords)) or "none"
                raise TypeError(
                    f"no stage's forward takes the keyword argument {name!r}; they take: {known}"
                )

    def _result(
        self, runtime: _C.Runtime, compute_loss: bool, keep_outputs: bool, is_cut: bool
    ) -> StepResult:
        loss = losses = outputs = None
        if compute_loss and (losses := runtime.losses()) is not None:
            loss = mean_loss(losses, runtime.loss_weights())
        if keep_outputs and (kept := runtime.outputs()) is not None:
            outputs = kept if is_cut else merge_outputs(kept)
        return StepResult(loss=loss, losses=losses, outputs=outputs)

    # --- parameters --------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This process's parameters, under their names in the unpartitioned model, each once."""
        for _, named in self._named_parameters_by_stage():
            yield from named

    def _named_parameters_by_stage(self) -> Iterator[tuple[int, list[tuple[str, nn.Parameter]]]]:
        """A parameter that stages share is the first one's."""
        seen: set[nn.Parameter] = set()
        for index, stage in self._local.items():
            own = [(name, p) for name, p in stage.named_parameters() if p not in seen]
            seen.update(p for _, p in own)
            yield index, own

    def parameters(self) -> Iterator[nn.Parameter]:
        """This process's parameters, each once, in the order of the stages."""
        for _, parameter in self.named_parameters():
            yield parameter

    def state_dict(self) -> dict[str, Tensor]:
        """This process's parameters and buffers, under their names in the unpartitioned model."""
        return {k: v for stage in self._local.values() for k, v in stage.state_dict().items()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads this process's parameters and buffers; entries of other stages are skipped.

        Args:
            state_dict: by the names of the unpartitioned model; the whole model's will do.

        Raises:
            ValueError: a name is missing or unknown, or a shape differs. Nothing is loaded then.
        """
        load_stages(
            list(self._local.values()), state_dict, self._global_names, self.schedule.num_stages
        )

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scales all gradients of the whole model so that their 2-norm is at most `max_norm`.

        A collective call in a group. The bits don't depend on how stages are spread over processes.

        Returns:
            The norm before, a scalar.
        """
        with self._telling_peers():
            if not max_norm >= 0:
                raise ValueError(f"max_norm must not be negative, got {max_norm}")
            norms = {
                index: gradient_norms(p for _, p in named)
                for index, named in self._named_parameters_by_stage()
            }
            if self._peers is not None:
                told = self._peers.exchange("clip gradients", list(norms.items()))
                norms = {index: own for part in told for index, own in part}
        ordered = [norm for index in sorted(norms) for norm in norms[index]]
        return clip_gradients(self.parameters(), ordered, max_norm)

    def train(self, mode: bool = True) -> "Pipeline":
        """Sets this process's modules to training or evaluation mode, as nn.Module.train does."""
        for stage in self.stages.values():
            if isinstance(stage, nn.Module):
                stage.train(mode)
        return self

    def eval(self) -> "Pipeline":
        """The same as train(False)."""
        return self.train(False)

    # --- looking at it -----------------------------------------------------------------------

    def trace(self) -> Trace:
        """What this process's ranks did in the last pass.

        Raises:
            ValueError: there was none.
        """
        return Trace(self._traces())

    def report(self) -> Report:
        """Where the time of the last pass went, on all ranks. A collective call in a group.

        Raises:
            ValueError: there was none.
        """
        with self._telling_peers():
            parts = [summarize(raw) for raw in self._traces()]
            if self._peers is not None:
                told = self._peers.exchange("make a report", parts)
                parts = [part for rank in told for part in rank]
        return make_report(parts, self.schedule)

    def _traces(self) -> list[Any]:
        if self._runtime is None:
            raise ValueError("the pipeline is closed")
        if self._runtime.running():
            raise ValueError("the pipeline is running a step: ask when that has ended")
        if self._last_failed:
            raise ValueError("nothing to show: the last pass failed")
        traces = self._runtime.traces()
        if not all(events for *_, events in traces):
            raise ValueError("nothing to show: no pass has run yet")
        return traces

    def close(self) -> None:
        """Ends the threads and connections. The modules stay as they are."""
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None
        _open.discard(self)

    def close_at_exit(self) -> None:
        """Closes what can be closed: a forked process has no threads to end."""
        if self._process == os.getpid() and not (self._runtime and self._runtime.running()):
            self.close()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        where = "threads" if self._peers is None else f"rank {self._peers.rank} of a group"
        return (
            f"<pipert.Pipeline {self.schedule.name}: {self.schedule.num_stages} stages on "
            f"{self.schedule.num_ranks} ranks, {self.schedule.num_microbatches} microbatches, "
            f"{where}>"
        )


@atexit.register
def _close_all() -> None:
    """Threads that wait for a GIL that is gone would take the process down with them."""
    for pipeline in list(_open):
        pipeline.close_at_exit()
