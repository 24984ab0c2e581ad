"""Ranks: those of this process, in the C++ runtime that runs their programs."""

import atexit
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipert import _C
from pipert.captured import make_recorder
from pipert.devices import warn_of_cuda
from pipert.errors import PipelineError, describe_for_peers
from pipert.layers import LayerHooks, first_layers, next_owner
from pipert.local.copies import check_remote_copies
from pipert.local.local_stages import LocalStages
from pipert.local.plan import Plan
from pipert.local.profiler import wants_ranges
from pipert.local.programs import Programs
from pipert.local.thread_generator import follow_thread_generator
from pipert.options import Options
from pipert.processes.connection import Connection
from pipert.processes.distributed import Peers, telling
from pipert.processes.transports import EdgeTransport
from pipert.reports.trace import RawTrace
from pipert.signatures import context_keywords

_open: "weakref.WeakSet[Ranks]" = weakref.WeakSet()


class Ranks:
    """The ranks of this process. They own the runtime, and in a group its connections.

    Making them is a collective call in a group, and so is the first pass after one that failed.

    Args:
        devices: by rank, for the ranks of this process.
        schedule: the pipeline's.
        stages: of this process.
        peers: the ranks of the group; None: one process.
        options: the pipeline's.

    Attributes:
        plan: what the schedule makes of them.
        transports: of the edges of this process's ranks.
        recorder: what can record the actions of the rank; None: nothing does.
    """

    def __init__(
        self,
        devices: Mapping[int, torch.device],
        schedule: _C.Schedule,
        stages: LocalStages,
        peers: Peers | None,
        options: Options,
    ) -> None:
        self.plan = Plan(schedule, devices, options, stages.routes)
        self._devices = devices
        self._routes = stages.routes
        self._options = options
        self._peers = peers
        self._process = os.getpid()
        self._last_failed = False
        self._busy = threading.Lock()  # while a pass is being prepared or runs
        self._hooks = LayerHooks()
        owner = next_owner()
        firsts: dict[int, int] = {}
        if options.rng_seed is not None:
            firsts = first_layers(stages, schedule.placement.stages_per_copy, peers)
        # Several lanes add to these: their gradients meet on one stream as long as torch's node for
        # each stays the same one.
        self._meeting_points = [
            torch.autograd.graph.get_gradient_edge(parameter)
            for parameter in stages.parameters_of_several_ranks()
            if parameter.requires_grad and parameter.device.type != "cpu"
        ]
        warn_of_cuda(devices, self.plan.programs)
        self._own_stages = {s.index for s in stages}
        self.recorder = None if peers is None else make_recorder(options.stage_kinds, devices)
        self._make_runtime = partial(
            _C.Runtime,
            stages=[
                (
                    *(s.index, s.call, s.is_first, s.is_last, s.spread, s.keywords),
                    options.stage_kinds[s.index % len(options.stage_kinds)] == "native",
                    context_keywords(s.call),
                )
                for s in stages
            ],
            loss_fn=options.loss_fn,
            overlap_fn=options.overlap_fn,
            timeout_s=options.timeout_s,
            intra_op_threads=options.intra_op_threads
            or max(1, torch.get_num_threads() // len(devices)),
            # A waiting rank may only keep a core busy if no other rank needs it.
            spin_us=200 if len(devices) <= (os.cpu_count() or 1) else 0,
            share_losses=options.broadcast_loss,
            measure_memory=options.measure_memory,
            rng_seed=options.rng_seed,
            owner=owner,
            first_layers=firsts,
            network=options.network,
            traced_passes=options.traced_passes,
            device_times=options.device_times,
            profiler_ranges=wants_ranges(),
            compression=options.compression,
            recorder=self.recorder,
            batch_specs=stages.name_specs(options.specs).for_runtime(),
        )
        self._copies = sorted({remote.peer for remote in stages.remote_copies})
        self._ties = sorted(stages.ties.peers)
        self._has_copies = schedule.placement.num_copies > 1
        self._runtime: _C.Runtime | None = None
        self._connect()
        is_keyed = options.rng_seed is not None
        if len(devices) > 1 or is_keyed or options.recompute != "none":
            follow_thread_generator()
        self._hooks.give_context(list(stages.modules.values()))
        if is_keyed:
            self._hooks.key(owner, firsts, stages.modules)
        _open.add(self)

    def _connect(self) -> _C.Runtime:
        """Makes the runtime; in a group, with new connections. A collective call there."""
        self._runtime, self.transports = self._open(self.plan)
        return self._runtime

    def _open(self, plan: Plan) -> tuple[_C.Runtime, list[EdgeTransport]]:
        """Makes a runtime, and tells what carries its edges."""
        make_runtime = partial(plan.complete(self._make_runtime), advise=plan.advise)
        if self._peers is None:
            return make_runtime(external=None), _between_threads(plan.programs)
        device = next(iter(self._devices.values()))
        connection = Connection(
            self._peers,
            plan.programs[0],
            device,
            {"copies": self._copies, "ties": self._ties},
            self._options.transport,
        )
        runtime = make_runtime(external=connection.channels)
        return runtime, connection.transports

    def recomputed(self) -> list[int]:
        """Stages of this process some of whose forwards run twice."""
        return sorted(self._own_stages & self.plan.recomputed.keys())

    def reschedule(self, schedule: _C.Schedule) -> None:
        """Runs another schedule from the next pass on. A collective call in a group.

        If it fails, everywhere, all stays as it was.

        Args:
            schedule: with its stages on the same ranks.

        Raises:
            ValueError: closed, forked, or a pass is running.
            PipelineError: another rank failed, or is gone.
        """
        with self._alone():
            if self._runtime is None:
                raise ValueError("the pipeline is closed")
            plan = Plan(schedule, self._devices, self._options, self._routes)
            runtime, transports = self._open(plan)
            try:
                if self._peers is not None:
                    self._peers.exchange("put the schedule in place")
            except BaseException:
                runtime.close()
                raise
            old, self._runtime, self.plan = self._runtime, runtime, plan
            self.transports = transports
            self._last_failed = False
            old.close()

    def share_weights(self, stages: LocalStages) -> None:
        """Second copies of the model, and who shares a weight, start with the same values.

        A collective call in a group where there is such a thing, else nothing.
        """
        if self._peers is None or not (self._has_copies or stages.ties.cross):
            return
        own = {str(remote.piece): remote.describe() for remote in stages.remote_copies}
        check_remote_copies(self._peers.exchange("compare the copies of the model", own))
        with self.one_pass() as runtime:
            runtime.share_weights(shared=stages.shared(), tied=stages.ties.shared(False))

    @contextmanager
    def one_pass(self) -> Iterator[_C.Runtime]:
        """Gives a runtime that can run a pass. Other processes are told of a failure inside.

        Raises:
            ValueError: no pass can begin: closed, forked, or one is running.
        """
        with self._alone(), self._announced_pass() as runtime:
            yield runtime

    def check_ready(self) -> None:
        """Raises ValueError if no pass can begin: closed, forked, or one is running."""
        self._require_process()
        if self._busy.locked():
            raise self._is_busy()
        if self._runtime is None:
            raise ValueError("the pipeline is closed")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No pass runs or begins while it lasts."""
        self._require_process()
        if not self._busy.acquire(blocking=False):  # before anything is told to the other ranks
            raise self._is_busy()
        try:
            yield
        finally:
            self._busy.release()

    def _require_process(self) -> None:
        if self._process != os.getpid():
            raise ValueError(
                "a forked process has no ranks: make the pipeline in the process itself"
            )

    @staticmethod
    def _is_busy() -> ValueError:
        return ValueError("the pipeline is running a step: it runs one at a time, for one thread")

    @contextmanager
    def _announced_pass(self) -> Iterator[_C.Runtime]:
        runtime = self._ready_runtime()
        self._last_failed = True  # until the end
        try:
            yield runtime
        except PipelineError:  # the runtime has told the others
            raise
        except BaseException as error:  # the others may be in the pass already
            if self._peers is not None and self._runtime is not None:
                self._runtime.withdraw(describe_for_peers(error, self._peers.rank))
            raise
        self._last_failed = False

    def _ready_runtime(self) -> _C.Runtime:
        if self._runtime is None:
            raise ValueError("the pipeline is closed")
        if not self._runtime.usable():
            self._runtime.close()
            with telling(self._peers):
                self._connect()
        return self._runtime

    def _idle_runtime(self) -> _C.Runtime:
        """The runtime, to be asked about the last pass.

        Raises:
            ValueError: the pipeline is closed, or is running a step.
        """
        if self._runtime is None:
            raise ValueError("the pipeline is closed")
        if self._runtime.running():
            raise ValueError("the pipeline is running a step: ask when that has ended")
        return self._runtime

    def num_traces(self) -> int:
        """How many passes the trace has.

        Raises:
            ValueError: there is nothing to show.
        """
        runtime = self._idle_runtime()
        if self._options.traced_passes == 0:
            raise ValueError("nothing to show: the pipeline was made with trace='off'")
        if self._last_failed:
            raise ValueError("nothing to show: the last pass failed")
        num_passes = runtime.num_traces()
        if num_passes == 0:
            raise ValueError("nothing to show: no pass has run yet")
        return num_passes

    def traces(self, ago: int = 0) -> list[RawTrace]:
        """What the last pass did, or the one `ago` passes before, by rank.

        Raises:
            ValueError: there is nothing to show.
        """
        num_passes = self.num_traces()
        if isinstance(ago, bool) or not isinstance(ago, int) or not 0 <= ago < num_passes:
            raise ValueError(
                f"ago must be from 0 to {num_passes - 1}, the passes that the trace has, got "
                f"{ago!r}"
            )
        assert self._runtime is not None
        return self._runtime.traces(ago)

    def device_timed(self) -> list[int]:
        """Ranks of this process whose times are their device's. Ask after `traces`."""
        return [] if self._runtime is None else self._runtime.device_timed()

    def memory(self) -> list[Any]:
        """What the ranks held in the last pass, as `memory.RawMemory`, in the order of `traces`.

        Raises:
            ValueError: the pipeline is closed.
        """
        if self._runtime is None:
            raise ValueError("the pipeline is closed")
        return self._runtime.memory()

    def watch_leaves(self, leaves: Sequence[Tensor] | None) -> bool:
        """Whether a stage was seen to train other tensors than those of the last call.

        Args:
            leaves: that it is about from here on; None: nothing is looked at.
        """
        return self._runtime is not None and self._runtime.watch_leaves(leaves)

    def unsplit_nodes(self) -> dict[int, list[tuple[str, str]]]:
        """By stage: (name, reason) of what couldn't be split.

        Raises:
            ValueError: the pipeline is closed, or is running a step.
        """
        return self._idle_runtime().unsplit_nodes()

    def peak_activations(self) -> dict[int, int]:
        """By rank: the most activations at a time in the last pass. Ask after `traces`."""
        return {} if self._runtime is None else self._runtime.peak_activations()

    def stage_kinds(self) -> tuple[dict[int, str], str | None]:
        """How each stage of this process ran in the last pass, and the loss function.

        Raises:
            ValueError: the pipeline is closed, or is running a step.
        """
        runtime = self._idle_runtime()
        return runtime.stage_kinds(), runtime.loss_kind()

    def close(self) -> None:
        """Ends the threads and connections."""
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None
        self._hooks.remove()
        _open.discard(self)

    def close_at_exit(self) -> None:
        """Closes what can be closed: a forked process has no threads to end."""
        if self._process == os.getpid() and not (self._runtime and self._runtime.running()):
            self.close()


def _between_threads(programs: Programs) -> list[EdgeTransport]:
    """Of the edges where all ranks are in this process."""
    edges = sorted(
        {
            (slot["source"], slot["destination"])
            for program in programs
            for slot in program.slots
            if slot["kind"] != "local"
        }
    )
    return [EdgeTransport(*edge, "local", "threads of one process") for edge in edges]


@atexit.register
def _close_all() -> None:
    """Threads that wait for a GIL that is gone would take the process down with them."""
    for ranks in list(_open):
        ranks.close_at_exit()
