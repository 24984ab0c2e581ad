"""Options: how a Pipeline runs, whatever its stages and its schedule are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipert import _C
from pipert.arguments import check_integers
from pipert.batches.loss_weights import LossWeights
from pipert.batches.specs import BatchSpecs
from pipert.compression import check_compression
from pipert.keyed_random import check_seed
from pipert.processes.transports import check_transport
from pipert.recompute import Recompute


@dataclass(frozen=True)
class Options:
    """Pipeline's arguments of the same names, each checked alone.

    Attributes:
        stage_kinds: by stage of one copy of the model; see `stage_kinds`.
        timeout_s: see `time_limit`.
        traced_passes: see `traced_passes`.
        loss_fn: see `make_loss`.
        specs: of args_spec, kwargs_spec, target_spec and output_spec.
        loss_weights: of loss_weight, ignore_index and count_group.

    Raises:
        ValueError, TypeError: the message says what was expected.
    """

    loss_fn: Callable[..., Any] | None
    stage_kinds: Sequence[str]
    overlap_fn: Callable[[_C.OverlapHalf, _C.OverlapHalf], Any] | None
    broadcast_loss: bool
    timeout_s: float
    receive_slots: int
    send_slots: int | None
    intra_op_threads: int | None
    main_grads: bool
    measure_memory: bool
    rng_seed: int | None
    recompute: Recompute
    network: _C.Costs | None
    transport: str
    traced_passes: int
    device_times: bool
    compression: str
    deferred_batch_norm: bool
    specs: BatchSpecs
    loss_weights: LossWeights | None

    def __post_init__(self) -> None:
        if self.rng_seed is not None:
            check_seed(self.rng_seed)
        check_integers(
            receive_slots=self.receive_slots,
            send_slots=self.send_slots,
            intra_op_threads=self.intra_op_threads,
        )
        _check_flags(
            broadcast_loss=self.broadcast_loss,
            main_grads=self.main_grads,
            measure_memory=self.measure_memory,
            device_times=self.device_times,
            deferred_batch_norm=self.deferred_batch_norm,
        )
        if self.network is not None and not isinstance(self.network, _C.Costs):
            raise TypeError(f"network must be pipert.Costs, got {type(self.network).__name__}")
        check_compression(self.compression)

    def check_fit(self, schedule: _C.Schedule, *, is_one_process: bool) -> None:
        """Checks that the schedule can run so.

        Raises:
            ValueError, TypeError: it can't; the message says why.
        """
        _check_overlap(self.overlap_fn, schedule)
        check_transport(self.transport, is_one_process)
        if self.network is not None:
            if not is_one_process:
                raise ValueError("network is emulated between ranks of one process, got a group")
            schedule.simulate(self.network)  # says what doesn't fit
        copies = schedule.placement.num_copies
        if self.main_grads and copies > 1:
            raise ValueError(
                f"main_grads needs a schedule that runs one copy of the model, "
                f"{schedule.name} has {copies}: their gradients meet in .grad"
            )

    def common(self) -> dict[str, Any]:
        """What must be the same on all ranks, as JSON values."""
        return {
            "receive_slots": self.receive_slots,
            "send_slots": self.send_slots,
            "joint_pairs": self.overlap_fn is not None,
            "broadcast_loss": self.broadcast_loss,
            "main_grads": self.main_grads,
            "measure_memory": self.measure_memory,
            "traced_passes": self.traced_passes,
            "rng_seed": self.rng_seed,
            "transport": self.transport,
            "compression": self.compression,
            "deferred_batch_norm": self.deferred_batch_norm,
            "specs": self.specs.describe(),
            "counts_losses": self.loss_weights is not None,
        }

    def lowerings(
        self, schedule: _C.Schedule, stage_graph: _C.StageGraph | None = None
    ) -> tuple[_C.Lowering, _C.Lowering]:
        """What makes the ranks' programs: of steps, and of passes without backward.

        Args:
            schedule: the pipeline's.
            stage_graph: what its stages exchange beyond the chain; None: nothing.
        """
        # Of a step every message is answered sooner or later, which shows that it was read. Of an
        # evaluation none is.
        in_evaluation = self.receive_slots + 2 if self.send_slots is None else self.send_slots
        return (
            _C.Lowering(
                schedule,
                receive_slots=self.receive_slots,
                send_slots=self.send_slots,
                joint_pairs=self.overlap_fn is not None,
                stage_graph=stage_graph,
            ),
            _C.Lowering(
                schedule.forward_only(),
                receive_slots=self.receive_slots,
                send_slots=in_evaluation,
                stage_graph=stage_graph,
            ),
        )


def stage_kinds(stage_kind: Any, num_stages: int) -> list[str]:
    """The kind of each stage, from one word or one for each."""
    if not isinstance(stage_kind, Sequence):
        raise TypeError(
            f"stage_kind must be one word or one for each of the {num_stages} stages, got "
            f"{stage_kind!r}"
        )
    kinds = [stage_kind] * num_stages if isinstance(stage_kind, str) else list(stage_kind)
    if len(kinds) != num_stages:
        raise ValueError(
            f"stage_kind must be one word or one for each of the {num_stages} stages, got "
            f"{len(kinds)}"
        )
    for kind in kinds:
        if kind not in ("module", "native", "captured", "auto"):
            raise ValueError(
                f"stage_kind must be 'module', 'native', 'captured' or 'auto', got {kind!r}"
            )
    return kinds


def time_limit(timeout_s: Any) -> float:
    """A time limit in seconds that C++ can count in; infinity becomes thirty years."""
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise ValueError(f"timeout_s must be a positive number of seconds, got {timeout_s!r}")
    return min(float(timeout_s), 1e9)


def traced_passes(trace: Any) -> int:
    """How many passes the trace keeps: of "last", "off" or a number."""
    if trace == "last":
        return 1
    if trace == "off":
        return 0
    if isinstance(trace, bool) or not isinstance(trace, int) or not 1 <= trace < 2**31:
        raise ValueError(
            f"trace must be 'last', 'off' or how many passes are kept, from 1, got {trace!r}"
        )
    return trace


def _check_flags(**values: Any) -> None:
    """Checks that each is True or False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def _check_overlap(overlap_fn: Any, schedule: _C.Schedule) -> None:
    """Checks that there is something for it to overlap."""
    if overlap_fn is None:
        return
    if not callable(overlap_fn):
        raise TypeError(
            f"overlap_fn must be a function of two halves, got {type(overlap_fn).__name__}"
        )
    if not any(a.kind == "OVERLAP_F_B" for actions in schedule.actions for a in actions):
        raise ValueError(
            f"overlap_fn needs a schedule with overlapped pairs, such as dualpipe_v: "
            f"{schedule.name} has none"
        )
