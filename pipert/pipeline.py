"""Pipeline: the front of the runtime. It parses arguments and hands over to C++."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipert import _C
from pipert.arguments import check_stages, choose_schedule, place_loss, resolve_devices
from pipert.batches.batch import Batch
from pipert.batches.batch_checks import BatchChecks
from pipert.batches.loss_weights import make_loss_weights
from pipert.batches.losses import make_loss
from pipert.batches.results import StepResult, result_of
from pipert.batches.specs import BatchSpecs
from pipert.captured import CapturedActions, CapturedSteps, PassKind, captured_passes
from pipert.compression import check_compressible
from pipert.gradients import clip_gradients, gradient_norms, own_gradient
from pipert.local.local_stages import LocalStages
from pipert.local.main_gradients import MainGradients, main_gradient
from pipert.local.ranks import Ranks
from pipert.local.routes import described_stages
from pipert.options import Options, stage_kinds, time_limit, traced_passes
from pipert.processes.compatibility import require_same
from pipert.processes.distributed import Peers, telling
from pipert.processes.group import as_group
from pipert.processes.transports import EdgeTransport
from pipert.recompute import Recompute
from pipert.reports.gathering import gather_traces, make_trace
from pipert.reports.measured_costs import measured_costs
from pipert.reports.memory import summarize_memory
from pipert.reports.report import Report, UnsplitNode, make_report, summarize_stages
from pipert.reports.trace import Trace


class Pipeline:
    """A partitioned model that trains through a schedule.

    One process: all ranks are threads of it. Under torchrun: this process is one rank of `group`.
    Every rank is constructed with the same arguments, and makes the same calls.

    Args:
        stages: what `split` returns, or any sequence of modules, of functions, or of functions
            without arguments that build one; a rank builds its own stages only.
        schedule: a name out of `schedules()`, a Schedule, or the path of a CSV or JSON file.
        num_microbatches: how many pieces a batch is cut into.
        loss_fn: `loss_fn(output, target)`, or `loss_fn(output)` when no target is given; returns
            one number as a tensor, or (loss, dict of metrics), or a dict of losses, which are added
            up. A dict of functions: the losses are added up. "output": the model's output has the
            loss. Runs on the last stage's rank. See docs/batches.md.
        num_ranks: in one process, the number of threads; by default one for each of `devices`, or
            for each stage.
        devices: one for each rank; the same one may repeat. Modules are moved to their rank's. By
            default the CPU. One device alone is everybody's; with `group` it is this rank's.
        group: a ProcessGroup or a one-dimensional DeviceMesh; None: one process. See `init`.
        placement: a Placement, or the rank of each stage, that the schedule must have.
        schedule_options: options of a schedule given by name, such as {"group_size": 4}.
        stage_kind: "module", "native", "captured", or one word for each stage. A module runs in
            Python; a native stage is exported to a graph of torch's operators, which C++ runs
            without Python, to the same bits; see docs/native.md. With "captured", on a CUDA device,
            whole passes are recorded and launched with one call; in a group each forward and
            backward is. See docs/gpu.md. "auto" is "module".
        overlap_fn: `overlap_fn(forward, backward)` runs the halves of the schedule's overlapped
            pairs: each an OverlapHalf, to be called once, in any order and from any thread. None:
            the forward runs first, then the backward.
        broadcast_loss: whether every rank gets the losses, not the last stage's alone.
        timeout_s: the limit of every wait of one rank for another, in seconds.
        receive_slots: receives that are posted ahead on each edge, at least.
        send_slots: the most messages of each edge that are on their way at a time; a rank that
            would send one more waits until the peer has read one. None: in a step as many as the
            schedule makes, in an evaluation `receive_slots` + 2. Overruled where the ranks would
            then wait for each other.
        intra_op_threads: of torch's operators, for each rank; by default the caller's
            `torch.get_num_threads()` shared out among the ranks of this process.
        main_grads: whether each microbatch's gradients are added to `parameter.main_grad` (float32,
            made here unless it is there) and dropped from `.grad`. The caller zeroes the sums
            (`zero_main_grads`) and gives them to his optimizer.
        measure_memory: whether `report` tells the bytes that each rank held.
        rng_seed: None: random layers draw as usual. A number: what each layer draws depends on this
            seed, `step_index`, the layer and the microbatch alone, under every schedule, partition
            and number of ranks. Layers are the children of an nn.Sequential, nested ones too, also
            of a subclass that leaves its forward as it is; any other stage is one layer.
        recompute: which forwards keep their stage's input alone, and run again before their
            backward: "none", "all", "except_last" (each stage's last forward keeps its
            activations), a list of stages, or a function of a stage and a microbatch. Stages are
            those of `stages`, by position: in both copies where the schedule runs two.
        network: to measure what a schedule makes of slow links: messages between ranks of this
            process take the `latency` (seconds), `bandwidth` (bytes a second) and `links` of these
            Costs, as `simulate` has them. None: as fast as they can.
        transport: what carries the messages between ranks. "auto" picks for each edge: "local"
            between threads of one process, "shm" (shared memory) between CPU ranks of one host,
            "cuda_ipc" (copy engines) between GPU ranks of one host, "process_group"
            (torch.distributed) else. One of these words: that one, on all edges.
        trace: of how many passes it is kept what each instruction did, for `trace`, `report` and
            `costs`: "last", "off", or a number.
        device_times: whether a CUDA device takes the time of what it does, for these three: else
            they have the host's times, which say when work was issued. See docs/trace.md.
        compression: what the float32 tensors of messages are rounded to on their way between ranks,
            activations and gradients alike: "bfloat16", "float16" (beyond 65504: infinite) or
            "fp8_block" (a byte an element, with a scale for each 32). This changes losses and
            gradients; other dtypes travel as they are. "none": every bit arrives.
        deferred_batch_norm: whether batch norms update their running statistics once a pass, to
            what they would be after the whole batch, not with each microbatch. Microbatches are
            normalised by their own statistics either way.
        args_spec, kwargs_spec, target_spec: how values of a batch are cut into microbatches: a
            Cut along a dimension (or its number), REPLICATE, or a CustomCut; for all of it, or in
            tuples, lists and dicts like the value's. None: tensors along dimension 0, all else
            whole.
        output_spec: how `return_outputs` puts the microbatches' outputs together, likewise.
        loss_weight: what a microbatch's loss counts: a function of its target that gives a number,
            or "tokens" for those that aren't `ignore_index`; its weight is its share in the sum.
            None: microbatches count by their rows.
        ignore_index: of loss_weight="tokens"; by default the loss function's own, or -100.
        count_group: a ProcessGroup or one-dimensional DeviceMesh of replicas that average their
            gradients: what loss_weight counts is added up over it, before each pass.

    Attributes:
        schedule: the Schedule.
        program: what each rank of this process does in a step; prints as text.
        stages: {stage index: module}, this process's. Where the schedule runs two copies of the
            model, with n stages each, n + s is the second copy of s.
        step_index: how many steps have been made; set it after restoring a checkpoint, on every
            rank, to go on with the random numbers of a run with `rng_seed`.

    Raises:
        ValueError, TypeError: an argument is wrong; the message says what was expected.
    """

    def __init__(
        self,
        stages: Sequence[Any],
        *,
        schedule: "str | os.PathLike[str] | _C.Schedule" = "1f1b",
        num_microbatches: int,
        loss_fn: Callable[..., Any] | Mapping[str, Callable[..., Tensor]] | str | None = None,
        num_ranks: int | None = None,
        devices: Any = None,
        group: Any = None,
        placement: "_C.Placement | Sequence[int] | None" = None,
        schedule_options: Mapping[str, int] | None = None,
        stage_kind: str | Sequence[str] = "module",
        overlap_fn: "Callable[[_C.OverlapHalf, _C.OverlapHalf], Any] | None" = None,
        broadcast_loss: bool = False,
        timeout_s: float = 300.0,
        receive_slots: int = 2,
        send_slots: int | None = None,
        intra_op_threads: int | None = None,
        main_grads: bool = False,
        measure_memory: bool = False,
        rng_seed: int | None = None,
        recompute: Recompute = "none",
        network: "_C.Costs | None" = None,
        transport: str = "auto",
        trace: "str | int" = "last",
        device_times: bool = False,
        compression: str = "none",
        deferred_batch_norm: bool = False,
        args_spec: Any = None,
        kwargs_spec: Any = None,
        target_spec: Any = None,
        output_spec: Any = None,
        loss_weight: Callable[[Any], Any] | str | None = None,
        ignore_index: int | None = None,
        count_group: Any = None,
    ) -> None:
        self._peers = None if group is None else Peers(as_group(group))
        with telling(self._peers):
            check_stages(stages)
            loss_fn = make_loss(loss_fn)
            options = Options(
                loss_fn=loss_fn,
                stage_kinds=stage_kinds(stage_kind, len(stages)),
                overlap_fn=overlap_fn,
                broadcast_loss=broadcast_loss,
                timeout_s=time_limit(timeout_s),
                receive_slots=receive_slots,
                send_slots=send_slots,
                intra_op_threads=intra_op_threads,
                main_grads=main_grads,
                measure_memory=measure_memory,
                rng_seed=rng_seed,
                recompute=recompute,
                network=network,
                transport=transport,
                traced_passes=traced_passes(trace),
                device_times=device_times,
                compression=compression,
                deferred_batch_norm=deferred_batch_norm,
                specs=BatchSpecs.parse(args_spec, kwargs_spec, target_spec, output_spec),
                loss_weights=make_loss_weights(loss_weight, ignore_index, count_group, loss_fn),
            )
            self.schedule = choose_schedule(
                schedule,
                stages,
                num_microbatches=num_microbatches,
                num_ranks=num_ranks,
                devices=devices,
                group_size=None if self._peers is None else self._peers.size,
                placement=placement,
                options=schedule_options,
            )
            options.check_fit(self.schedule, is_one_process=self._peers is None)
            ranks: Sequence[int] = range(self.schedule.num_ranks)
            if self._peers is not None:
                ranks = [self._peers.rank]
                self._peers.timeout_s = options.timeout_s
                common = {**options.common(), **described_stages(stages)}
                require_same(self._peers, self.schedule, "make the pipeline", **common)
            on = resolve_devices(devices, ranks, self.schedule.num_ranks)
            check_compressible(compression, on)
            self._stages = LocalStages(stages, self.schedule, on, self._peers)
            if deferred_batch_norm:
                self._stages.defer_batch_norm(options.stage_kinds)
            self._stages.reduce_once_a_pass(options.stage_kinds, main_grads, self._peers)
            place_loss(loss_fn, self.schedule, on)
            self._main_gradients = MainGradients(self._stages) if main_grads else None
            self._checks = BatchChecks(self.schedule, self._stages, options, self._peers)
            self._ranks = Ranks(on, self.schedule, self._stages, self._peers, options)
            self._devices = on
            self._captured = self._make_captured(options)
            self._ranks.share_weights(self._stages)
        self._options = options
        self._has_loss = loss_fn is not None
        self._step_index = 0
        self.program = self._ranks.plan.programs
        self.stages = self._stages.modules

    def _make_captured(self, options: Options) -> CapturedSteps | CapturedActions | None:
        return captured_passes(
            options,
            self.schedule,
            self._stages,
            self._devices,
            self._main_gradients,
            in_group=self._peers is not None,
            recorder=self._ranks.recorder,
            watch_leaves=self._ranks.watch_leaves,
        )

    # --- running -----------------------------------------------------------------------------

    def step(
        self,
        *args: Any,
        target: Any = None,
        loss_kwargs: Mapping[str, Any] | None = None,
        return_outputs: bool = False,
        microbatches: Sequence[Any] | None = None,
        loss_weights: Sequence[float] | None = None,
        global_count: float | None = None,
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
                microbatch a tuple of positional arguments, a dict of keyword arguments, a
                Microbatch with both, or one argument. `target` then has one entry for each; the
                loss is their plain mean.
            loss_weights: by microbatch, what its loss counts; the loss is the weighted sum, and so
                are the gradients. For the last stage's rank.
            global_count: what all microbatches of all replicas count, instead of counting them for
                the pipeline's loss_weight.
            **kwargs: keyword arguments, for every stage whose forward takes one of that name. With
                stages that `split` has wired, `args` have names too: each stage takes its own, and
                a rank needs no others.

        Raises:
            ValueError, TypeError: an argument is wrong.
            PipelineError: the step failed on some rank. Gradients may have been added in part.
        """
        batch = Batch(args, kwargs, target, loss_kwargs, microbatches, loss_weights, global_count)
        return self._run(batch, PassKind(True, True, return_outputs))

    def evaluate(
        self,
        *args: Any,
        target: Any = None,
        loss_kwargs: Mapping[str, Any] | None = None,
        return_outputs: bool = False,
        microbatches: Sequence[Any] | None = None,
        loss_weights: Sequence[float] | None = None,
        global_count: float | None = None,
        **kwargs: Any,
    ) -> StepResult:
        """As `step`, without gradients and without backward. Modules stay in the mode they are in.

        Without a loss function it computes outputs alone.
        """
        batch = Batch(args, kwargs, target, loss_kwargs, microbatches, loss_weights, global_count)
        has_loss = self._has_loss or not self._stages.has_last
        return self._run(batch, PassKind(False, has_loss, return_outputs))

    def __call__(self, *args: Any, microbatches: Sequence[Any] | None = None, **kwargs: Any) -> Any:
        """The outputs of a batch, without gradients; None on ranks without the last stage.

        As those of `evaluate`, without losses, whether there is a loss function or not.
        """
        batch = Batch(args, kwargs, microbatches=microbatches)
        return self._run(batch, PassKind(False, False, True)).outputs

    def _run(self, batch: Batch, kind: PassKind) -> StepResult:
        if self._captured is None:
            result = self._run_pass(batch, kind)
        else:
            self._ranks.check_ready()
            result = self._captured.run(batch, kind, self._run_pass)
        self._step_index += kind.training
        return result

    def _run_pass(self, batch: Batch, kind: PassKind) -> StepResult:
        begun_ns = time.monotonic_ns()
        with self._ranks.one_pass() as runtime:
            args, kwargs = self._checks.check(batch, kind.training, kind.compute_loss)
            loss_weights, weigh = self._checks.weights(batch, kind.compute_loss)
            with self._stages.one_pass(kind.training), torch.set_grad_enabled(kind.training):
                runtime.step(
                    args=args,
                    kwargs=kwargs,
                    target=batch.target if kind.compute_loss else None,
                    loss_kwargs=None if batch.loss_kwargs is None else dict(batch.loss_kwargs),
                    is_cut=batch.is_cut,
                    training=kind.training,
                    compute_loss=kind.compute_loss,
                    keep_outputs=kind.keep_outputs,
                    main_gradients=(
                        self._main_gradients.entries()
                        if self._main_gradients and kind.training
                        else []
                    ),
                    shared=self._stages.shared(),
                    tied=self._stages.ties.shared(self._main_gradients is not None),
                    loss_weights=loss_weights,
                    weigh=weigh,
                    step=self._step_index,
                    begun_ns=begun_ns,
                )
            if kind.training and self._stages.shares_gradients:
                runtime.share_gradients(tied=self._stages.ties.shared(main_grads=False))
        result = result_of(
            runtime,
            kind.compute_loss,
            kind.keep_outputs,
            batch.is_cut,
            self.schedule.num_microbatches,
            self._options.specs.output,
        )
        runtime.end_trace()
        return result

    def forget_captured(self) -> None:
        """Forgets the passes that were recorded for `stage_kind="captured"`.

        For who changed what Python code alone sees: a number that a module's forward reads, a hook,
        a layer that was put in. Changes of weights, gradients, batches and modes are seen anyway.
        """
        if self._captured is not None:
            self._captured.clear()

    @property
    def step_index(self) -> int:
        """How many steps have been made: the number of the next one."""
        return self._step_index

    @step_index.setter
    def step_index(self, step: int) -> None:
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**63:
            raise ValueError(f"step_index must be a number of steps, from 0, got {step!r}")
        self._step_index = step

    # --- parameters --------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This process's parameters, under their names in the unpartitioned model, each once.

        One that several stages use has its first stage's name, in each process that uses it.
        """
        for _, named in self._stages.named_parameters():
            yield from named

    def parameters(self) -> Iterator[nn.Parameter]:
        """This process's parameters, each once, in the order of the stages."""
        for _, parameter in self.named_parameters():
            yield parameter

    def state_dict(self) -> dict[str, Tensor]:
        """This process's parameters and buffers, under their names in the unpartitioned model.

        A parameter that several stages use is there where its first stage is, under all its names.
        """
        return self._stages.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads this process's parameters and buffers; entries of other stages are skipped.

        Where stages in several processes share parameters it is a collective call: those become
        what their owner loads, on all ranks.

        Args:
            state_dict: by the names of the unpartitioned model; the whole model's will do. Of a
                parameter that several stages use one name is enough.

        Raises:
            ValueError: a name is missing or unknown, or a shape differs. Nothing is loaded then.
        """
        peers = self._peers if self._stages.ties.cross else None
        with telling(peers):
            agree = None if peers is None else partial(peers.exchange, "load a state dict")
            self._stages.load_state_dict(state_dict, agree)
            if peers is not None:
                self._ranks.share_weights(self._stages)

    def check_tied(self) -> None:
        """Checks that a weight that stages in several processes share is the same in all of them.

        It stays so as long as their optimizers do the same. A collective call in a group.

        Raises:
            ValueError: it isn't, bit for bit; the message says which, and on which ranks.
        """
        with telling(self._peers):
            self._stages.ties.check(self._peers)

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scales all gradients of the whole model so that their 2-norm is at most `max_norm`.

        With `main_grads` they are those in `main_grad`. A collective call in a group. The bits
        don't depend on how stages are spread over processes.

        Returns:
            The norm before, a scalar.
        """
        with telling(self._peers):
            if not max_norm >= 0:
                raise ValueError(f"max_norm must not be negative, got {max_norm}")
            gradient_of = own_gradient if self._main_gradients is None else main_gradient
            norms = gradient_norms(self._stages, self._peers, gradient_of)
        return clip_gradients(map(gradient_of, self.parameters()), norms, max_norm)

    def zero_main_grads(self) -> None:
        """Sets this process's `main_grad`s to zero, in place: before a step, or after the update.

        Raises:
            ValueError: the pipeline was made without `main_grads`.
        """
        if self._main_gradients is None:
            raise ValueError("the pipeline has no main gradients: expected main_grads=True")
        self._main_gradients.zero()

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

    def trace(self, *, all_ranks: bool = False, ago: int = 0) -> Trace:
        """What the ranks did in the last pass.

        Args:
            all_ranks: in a group, whether it has the ranks of all processes, their clocks aligned.
                It is a collective call then.
            ago: how many passes before the last one; see the option `trace`.

        Raises:
            ValueError: there was none.
        """
        peers = self._peers if all_ranks else None
        with telling(peers):
            self._require_actions()
            raw = self._ranks.traces(ago)
            peaks = {} if ago else self._ranks.peak_activations()
            program_of = self._ranks.plan.program_of
            timed = self._ranks.device_timed()
            if peers is None:
                return make_trace(raw, program_of, peaks, timed)
            call = f"trace the pass {ago} ago"
            [trace] = gather_traces([raw], peaks, program_of, peers, timed, call)
            return trace

    def _require_actions(self) -> None:
        if isinstance(self._captured, CapturedSteps) and self._captured.num_recordings > 0:
            raise ValueError(
                "nothing to show: passes are replayed, which says nothing of their actions; "
                "expected another stage_kind than 'captured'"
            )

    def report(self) -> Report:
        """Where time and memory of the last pass went, on all ranks. A collective call in a group.

        Raises:
            ValueError: there was none.
        """
        with telling(self._peers):
            trace = self.trace()  # says so if there is nothing to show
            memory = [
                summarize_memory(raw, trace.events_of(raw[0])) for raw in self._ranks.memory()
            ]
            stages = [
                summarize_stages(
                    self._ranks.unsplit_nodes(),
                    self.stage_kinds,
                    self._ranks.recomputed(),
                    self._ranks.transports,
                )
            ]
            if self._peers is not None:
                told = self._peers.exchange("make a report", [memory, stages])
                memory = [part for rank in told for part in rank[0]]
                stages = [part for rank in told for part in rank[1]]
        return make_report(self.trace(all_ranks=True), memory, stages, self.schedule)

    def costs(self) -> _C.Costs:
        """What stages and messages take, measured in the steps that the trace has.

        For `Schedule.simulate` and `Schedule.search`. A collective call in a group. In seconds and
        bytes, of a microbatch; the median over the steps and their microbatches. An edge's latency
        is measured on messages that were waited for, and includes what their size takes: the
        bandwidth stays infinite. A backward that always ran whole counts half for its input and
        half for its weights.

        Raises:
            ValueError: there was no step, evaluations at most.
        """
        with telling(self._peers):
            self._require_actions()
            passes = [self._ranks.traces(ago) for ago in range(self._ranks.num_traces())]
            passes = [raw for raw in passes if raw[0][1]]
            if not passes:
                raise ValueError("nothing to show: the trace has evaluations, and no step")
            traces = gather_traces(
                passes,
                {},
                self._ranks.plan.program_of,
                self._peers,
                self._ranks.device_timed(),
                "measure costs",
            )
        return measured_costs(traces, self.schedule)

    def reschedule(
        self,
        schedule: "str | os.PathLike[str] | _C.Schedule",
        *,
        schedule_options: Mapping[str, int] | None = None,
    ) -> None:
        """Puts another schedule in place, from the next pass on. A collective call in a group.

        Weights, gradients, optimizers and `step_index` stay as they are, and so do the Pipeline's
        options. If it fails, it fails on every rank, and the old schedule stays.

        Args:
            schedule: as of Pipeline, such as what `Schedule.search` found with `costs`. Each stage
                must be on the rank that it is on now.
            schedule_options: as of Pipeline.

        Raises:
            ValueError, TypeError: the schedule doesn't fit; the message says what was expected.
            PipelineError: another rank failed, or didn't come.
        """
        with telling(self._peers):
            placement = self.schedule.placement
            chosen = choose_schedule(
                schedule,
                range(placement.stages_per_copy),
                num_microbatches=self.schedule.num_microbatches,
                num_ranks=placement.num_ranks,
                devices=None,
                group_size=None,
                placement=placement,
                options=schedule_options,
            )
            self._options.check_fit(chosen, is_one_process=self._peers is None)
            if self._peers is not None:
                require_same(self._peers, chosen, "reschedule", **self._options.common())
            checks = BatchChecks(chosen, self._stages, self._options, self._peers)
            self._ranks.reschedule(chosen)
        self.schedule = chosen
        self._captured = self._make_captured(self._options)
        self.program = self._ranks.plan.programs
        self._checks = checks

    def unsplit_nodes(self) -> dict[int, list[UnsplitNode]]:
        """What kept backward from being split into its input half and its weight half.

        Of this process's stages, in all steps so far: {stage: nodes of its autograd graph}. Such a
        node computes its weights' gradients in the input half; a stage that isn't named splits
        whole. Only a schedule with I and W actions splits anything.
        """
        return {
            stage: [UnsplitNode(name, reason) for name, reason in nodes]
            for stage, nodes in self._ranks.unsplit_nodes().items()
        }

    @property
    def transports(self) -> list[EdgeTransport]:
        """What carries the edges of this process's ranks, and why; `report` has all edges."""
        return list(self._ranks.transports)

    @property
    def stage_kinds(self) -> dict[int, str]:
        """How each stage of this process ran in the last pass.

        "native", "captured", "module", or "module: <reason>" where a native or captured stage ran
        its module after all.
        """
        kinds = self._ranks.stage_kinds()[0]
        if self._captured is None:
            return kinds
        reason = self._captured.reason
        how = "captured" if reason is None else f"module: {reason}"
        wanted = self._options.stage_kinds
        return {
            stage: how if wanted[stage % len(wanted)] == "captured" else kind
            for stage, kind in kinds.items()
        }

    @property
    def loss_kind(self) -> str | None:
        """The same of the loss function; None where the last stage is in another process."""
        return self._ranks.stage_kinds()[1]

    def close(self) -> None:
        """Ends the threads and connections. The modules stay as they are."""
        self._ranks.close()
        self._stages.release()
        self.forget_captured()

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
