"""CapturedActions: the actions of one rank of a group, recorded once each as CUDA graphs."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipert import _C
from pipert.batch import Batch
from pipert.captured import MAX_RECORDINGS, NUM_WARMUPS, PassKind, RunPass
from pipert.local_stages import LocalStages
from pipert.recorded_batch import NotRecordableError, put_together, take_apart
from pipert.results import StepResult

# By type of device, what makes its graphs: None: C++ does. Tests put stand-ins here.
make_graph: dict[str, Callable[[], Any] | None] = {"cuda": None}

_MAX_KINDS = 64


class _Key(NamedTuple):
    """Passes with equal ones differ in what other ranks send, if at all."""

    kind: PassKind
    tensors: tuple[Any, ...]
    rest: Any
    state: int  # of the process and the modules


@dataclass
class _Passes:
    recordings: _C.PassRecordings
    batch: Batch | None = None  # of tensors of the recordings' own; None: none was needed yet


class CapturedActions:
    """The passes of one rank of a group, whose actions run as graphs of the device.

    A pass runs as ever, messages and all; but each forward and backward is launched with one call
    that runs no Python. Each rank records on its own: what the others do makes no difference.

    What Python code does (counters, prints, hooks) happens when a pass is recorded, and not again.

    Args:
        stages: of this process.
        loss_fn: the pipeline's.
        device: of the rank.
        recorder: the stages'; None: nothing is recorded, because of `refusal`.
        refusal: why nothing can be recorded; None: it can.
        main_gradients: gives the sums that gradients are added to, if the pipeline has them.

    Attributes:
        reason: why the last pass was not replayed, or not all of it; None: it was.
    """

    def __init__(
        self,
        stages: LocalStages,
        loss_fn: Any,
        device: torch.device,
        recorder: _C.ActionRecorder | None,
        refusal: str | None,
        main_gradients: Callable[[], Sequence[Tensor]],
    ) -> None:
        self._stages = stages
        called = [*stages.modules.values(), loss_fn]
        self._modules = [module for module in called if isinstance(module, nn.Module)]
        self._device = device
        self._recorder = recorder
        self._refusal = refusal
        self._main_gradients = main_gradients
        self._passes: OrderedDict[_Key, _Passes] = OrderedDict()
        self.reason: str | None = refusal or "it has not run yet"
        self.num_replays = 0
        self._watch()

    def run(self, batch: Batch, kind: PassKind, run_pass: RunPass) -> StepResult:
        """One pass: replayed, recorded on the way, or as it is."""
        if self._recorder is None:
            return run_pass(batch, kind)
        try:
            state = self._state()
            needed = self._needed(batch)
            tensors, rest = take_apart(needed)
            key = _Key(kind, self._describe(tensors), rest, state)
        except NotRecordableError as error:
            self.reason = str(error)
            return run_pass(batch, kind)
        passes = self._find(key)
        if passes.batch is None and passes.recordings.is_warm():
            passes.recordings.batch = [torch.empty_like(tensor) for tensor in tensors]
            passes.batch = put_together(needed, passes.recordings.batch)
        if passes.batch is not None:
            batch = _merge(passes.batch, batch)
        return self._run(passes, tensors, batch, kind, run_pass)

    def clear(self) -> None:
        """Forgets all recordings: what they read or did has changed."""
        self._passes.clear()
        self._watch()

    @property
    def num_recordings(self) -> int:
        """How many there are."""
        return sum(passes.recordings.num_recordings for passes in self._passes.values())

    def _run(
        self,
        passes: _Passes,
        tensors: Sequence[Tensor],
        batch: Batch,
        kind: PassKind,
        run_pass: RunPass,
    ) -> StepResult:
        assert self._recorder is not None
        self._recorder.begin(
            recordings=passes.recordings,
            leaves=self._leaves,
            batch=tensors,
            reads_copies=passes.batch is not None,
        )
        try:
            result = run_pass(batch, kind)
        except BaseException:
            self.reason = self._recorder.end(completed=False)[1] or "the last pass failed"
            raise
        mode, self.reason = self._recorder.end(completed=True)
        self.num_replays += mode == "replay"
        if mode == "record" and (name := self._replaced()) is not None:
            self.reason = (
                f"it can't be recorded: a forward puts another tensor in the place of {name!r}: "
                "expected changes in place"
            )
            passes.recordings.drop(self.reason, is_final=True)
        if mode == "record":
            self._drop_oldest()
        return result

    def _find(self, key: _Key) -> _Passes:
        passes = self._passes.get(key)
        if passes is None:
            if len(self._passes) == _MAX_KINDS:
                self._passes.popitem(last=False)
            passes = self._passes[key] = _Passes(_C.PassRecordings(NUM_WARMUPS))
        self._passes.move_to_end(key)
        return passes

    def _drop_oldest(self) -> None:
        while self.num_recordings > MAX_RECORDINGS:
            for key, passes in self._passes.items():
                if passes.recordings.drop_oldest():
                    break
                if passes.recordings.num_recordings:
                    del self._passes[key]
                    break

    def _watch(self) -> None:
        parts = list(dict.fromkeys(part for module in self._modules for part in module.modules()))
        self._dicts: list[dict[str, Any]] = [
            tensors for part in parts for tensors in (part._parameters, part._buffers) if tensors
        ]
        attributes = [part.__dict__ for part in parts]
        others = self._main_gradients()
        held = [t for tensors in self._dicts for t in tensors.values() if isinstance(t, Tensor)]
        self._leaves = [*{id(tensor): tensor for tensor in held}.values(), *others]
        odd = (type(t).__name__ for t in held if type(t) not in (Tensor, nn.Parameter))
        self._odd = next(odd, None)  # a DTensor, say
        self._conditions = _C.PassConditions(self._dicts, attributes, others, self._device)

    def _state(self) -> int:
        state = self._conditions.state()
        if state is None:  # another tensor stands in the place of one
            self.clear()
            state = self._conditions.state()
            assert state is not None
        if self._odd is not None:
            raise NotRecordableError(f"a weight is a {self._odd}")
        return state

    def _needed(self, batch: Batch) -> Batch:
        """What this rank's stages take of a batch."""
        first, last = self._stages.has_first, self._stages.has_last
        takes_any = any(stage.keywords is None for stage in self._stages)
        names = {name for stage in self._stages for name in stage.keywords or ()}
        cut = batch.microbatches
        takes_cut = first or (
            isinstance(cut, Sequence) and any(isinstance(piece, dict) for piece in cut)
        )
        return Batch(
            batch.args if first else (),
            {name: v for name, v in batch.kwargs.items() if takes_any or name in names},
            batch.target if last else None,
            batch.loss_kwargs if last else None,
            cut if takes_cut else None,
        )

    def _describe(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        for tensor in tensors:
            if tensor.device != self._device:
                raise NotRecordableError(
                    f"an argument is on {tensor.device}, the rank is on {self._device}"
                )
            if tensor.requires_grad:
                raise NotRecordableError("an argument requires a gradient")
            if not tensor.is_contiguous() and torch.empty_like(tensor).stride() != tensor.stride():
                raise NotRecordableError("an argument is not dense in memory")
        return tuple((t.shape, t.dtype, t.stride()) for t in tensors)

    def _replaced(self) -> str | None:
        """The name of a tensor that the pass has put in another's place."""
        if self._conditions.state() is not None:
            return None
        known = {id(tensor) for tensor in self._leaves}
        named = (entry for tensors in self._dicts for entry in tensors.items())
        new = (name for name, t in named if t is not None and id(t) not in known)
        return next(new, "a tensor")


def _merge(own: Batch, batch: Batch) -> Batch:
    """The batch with what a rank needs of it in the recordings' own memory."""
    return Batch(
        own.args or batch.args,
        {**batch.kwargs, **own.kwargs},
        batch.target if own.target is None else own.target,
        own.loss_kwargs or batch.loss_kwargs,
        batch.microbatches if own.microbatches is None else own.microbatches,
    )


def refusal_of_actions(
    kinds: Sequence[str], devices: Mapping[int, torch.device], options: Mapping[str, bool]
) -> str | None:
    """Why the actions of a rank of a group can't be recorded; None: nothing is known against it.

    Args:
        kinds: of the stages.
        devices: by rank of this process.
        options: the pipeline's that matter here, by name: whether they are in use.
    """
    if others := sorted({kind for kind in kinds if kind != "captured"}):
        return f"a rank's memory is recorded as one, and some stages are {others[0]!r}"
    device = next(iter(devices.values()))
    if device.type not in make_graph:
        return f"only a CUDA device can record, the rank is on {device}"
    for name, why in _UNRECORDABLE_OPTIONS.items():
        if options.get(name):
            return f"{why} ({name})"
    return None


_UNRECORDABLE_OPTIONS = {
    "rng_seed": "what a step draws depends on its number",
    "recompute": "a forward that runs again sets the device's generator",
    "offload": "what goes to the host and back isn't recorded",
    "overlap_fn": "halves of a pair may run on several threads",
    "copies": "the gradients of two copies of a model are added up by the host",
    "measure_memory": "a replay allocates nothing that could be measured",
}


def make_recorder(
    kinds: Sequence[str], devices: Mapping[int, torch.device]
) -> _C.ActionRecorder | None:
    """Makes what records the stages of this process, one rank of a group; None where none can."""
    if len(devices) != 1 or refusal_of_actions(kinds, devices, {}) is not None:
        return None
    [device] = devices.values()
    return _C.ActionRecorder(str(device), make_graph[device.type])
