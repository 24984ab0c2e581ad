"""CapturedSteps: whole passes, recorded once as a CUDA graph, then launched with one call."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pipert import _C
from pipert.batch import Batch
from pipert.recorded_batch import (
    NotRecordableError,
    plain_rest,
    plain_values,
    put_together,
    take_apart,
)
from pipert.recorded_result import RecordedResult
from pipert.results import StepResult

# Passes of a kind that run as they are before one is recorded: libraries are loaded, workspaces
# made, algorithms chosen.
NUM_WARMUPS = 2
# Kinds of passes whose recordings are kept. The one that was used longest ago goes first.
MAX_RECORDINGS = 8


T = TypeVar("T")


class Recording(Protocol):
    """A CudaGraph, or what tests put in its place."""

    def capture(self, run: Callable[[], T]) -> T:
        """Records what `run` does without doing it."""

    def prepare(self) -> None:
        """Before what the recording reads is written, for a replay on another stream."""

    def replay(self) -> None:
        """Does it."""


class PassKind(NamedTuple):
    """What a pass is asked to do, beside its batch."""

    training: bool
    compute_loss: bool
    keep_outputs: bool


RunPass = Callable[[Batch, PassKind], StepResult]


class _Key(NamedTuple):
    """Passes with equal ones are replayed from one recording."""

    kind: PassKind
    tensors: tuple[Any, ...]
    rest: Any
    state: int  # of the process and the modules


@dataclass
class _Recorded:
    recording: Recording  # what it has allocated lives as long
    inputs: _C.TensorSlot
    replay: _C.Replay
    result: RecordedResult


class CapturedSteps:
    """The passes of one pipeline whose ranks are threads of this process, on one CUDA device.

    A pass is recorded with all its ranks, stages, microbatches and transfers. It is replayed for
    batches of the same kind: equal shapes, dtypes and Python values, the same weights and gradients
    in the same memory. Other batches get recordings of their own, up to MAX_RECORDINGS.

    What Python code does (counters, prints, hooks) happens when it is recorded, and not again.

    Args:
        modules: of the stages.
        device: of the ranks.
        make_recording: makes an empty one.
        refusal: why nothing can be recorded; None: it can.
        main_gradients: gives the sums that gradients are added to, if the pipeline has them.

    Attributes:
        reason: why the last pass was not replayed; None: it was.
    """

    def __init__(
        self,
        modules: Iterable[Any],
        device: torch.device,
        make_recording: Callable[[], Recording],
        refusal: str | None,
        main_gradients: Callable[[], Sequence[Tensor]],
    ) -> None:
        self._modules = [module for module in modules if isinstance(module, nn.Module)]
        self._device = device
        self._make_recording = make_recording
        self._refusal = refusal
        self._main_gradients = main_gradients
        self._watch()
        self._last_stream = _C.LastStream()
        self._recorded: OrderedDict[_Key, _Recorded] = OrderedDict()
        self._num_seen: dict[_Key, int] = {}
        self._refused: dict[_Key, str] = {}
        self.reason: str | None = refusal or "it has not run yet"
        self.num_replays = 0

    def run(self, batch: Batch, kind: PassKind, run_pass: RunPass) -> StepResult:
        """One pass: replayed, recorded and replayed, or as `run_pass` runs it."""
        if self._refusal is not None:
            return run_pass(batch, kind)
        state = self._state()
        if (result := self._replay_usual(batch, kind, state)) is not None:
            return result
        try:
            tensors, rest = take_apart(batch)
            key = _Key(kind, self._describe(tensors), rest, state)
        except NotRecordableError as error:
            self.reason = str(error)
            return run_pass(batch, kind)
        found = self._recorded.get(key)
        if found is None:
            if not self._is_warm(key):
                return run_pass(batch, kind)
            found = self._record(key, batch, tensors, run_pass)
            if found is None:
                return run_pass(batch, kind)
        result = self._replay(key, found, tensors)
        assert result is not None, "the tensors have the description of those that were recorded"
        return result

    def clear(self) -> None:
        """Forgets all recordings: what they read or did has changed."""
        self._recorded.clear()
        self._num_seen.clear()
        self._refused.clear()
        self._watch()

    @property
    def num_recordings(self) -> int:
        """How many there are."""
        return len(self._recorded)

    def _watch(self) -> None:
        parts = list(dict.fromkeys(part for module in self._modules for part in module.modules()))
        self._dicts: list[dict[str, Any]] = [
            tensors for part in parts for tensors in (part._parameters, part._buffers) if tensors
        ]
        attributes = [part.__dict__ for part in parts]
        others = self._main_gradients()
        self._conditions = _C.PassConditions(self._dicts, attributes, others, self._device)

    def _state(self) -> int:
        state = self._conditions.state()
        if state is None:  # another tensor stands in the place of one
            self._watch()
            state = self._conditions.state()
            assert state is not None
        return state

    def _replay_usual(self, batch: Batch, kind: PassKind, state: int) -> StepResult | None:
        """For a batch as most are, with little work for the host; None if it takes more."""
        if (values := plain_values(batch)) is None:
            return None
        rest = plain_rest(batch)
        for key, found in reversed(self._recorded.items()):
            if key.state == state and key.kind == kind and key.rest == rest:
                result = self._replay(key, found, values)
                if result is not None:
                    return result
        return None

    def _describe(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        for tensor in tensors:
            if tensor.device != self._device:
                raise NotRecordableError(
                    f"an argument is on {tensor.device}, the ranks are on {self._device}"
                )
            if tensor.requires_grad:
                raise NotRecordableError("an argument requires a gradient")
        return tuple((t.shape, t.dtype, t.device, t.stride()) for t in tensors)

    def _is_warm(self, key: Any) -> bool:
        if key in self._refused:
            self.reason = self._refused[key]
            return False
        seen = self._num_seen.get(key, 0)
        if seen >= NUM_WARMUPS:
            return True
        if len(self._num_seen) > 64 * MAX_RECORDINGS:  # no two batches are alike
            self._num_seen.clear()
            self._refused.clear()
        self._num_seen[key] = seen + 1
        self.reason = f"warming up: pass {seen + 1} of {NUM_WARMUPS} of its kind"
        return False

    def _record(
        self, key: _Key, batch: Batch, tensors: Sequence[Tensor], run_pass: RunPass
    ) -> _Recorded | None:
        while len(self._recorded) >= MAX_RECORDINGS:
            self._recorded.popitem(last=False)
        gradients = self._conditions.gradients()
        held = [dict(tensors) for tensors in self._dicts]
        recording = self._make_recording()

        def run() -> RecordedResult:
            return RecordedResult(run_pass(put_together(batch, inputs.tensors), key.kind))

        try:
            inputs = _C.TensorSlot(tensors)
            inputs.fill(tensors)
            result = recording.capture(run)
            self._require_same(held)
        except BaseException as error:
            # Nothing has been computed: what stands there now never will be.
            self._conditions.set_gradients(gradients)
            for tensors_of, before in zip(self._dicts, held, strict=True):
                tensors_of.clear()
                tensors_of.update(before)
            # What was recorded before may listen to a generator that has lost its place.
            self._recorded.clear()
            cause = _innermost(error)
            if not isinstance(cause, Exception):  # Ctrl-C
                raise
            # If it is the user's own, it comes again where the pass runs as it is.
            self.reason = f"it can't be recorded: {_first_line(cause)}"
            if not isinstance(cause, torch.OutOfMemoryError):
                self._refused[key] = self.reason
            return None
        replay = _C.Replay(
            conditions=self._conditions,
            inputs=inputs,
            results=result.slot,
            gradients=self._conditions.gradients(),
            prepare=recording.prepare,
            launch=recording.replay,
            last=self._last_stream,
        )
        found = _Recorded(recording, inputs, replay, result)
        self._recorded[key] = found
        return found

    def _require_same(self, held: Sequence[Mapping[str, Any]]) -> None:
        for tensors, before in zip(self._dicts, held, strict=True):
            for name, tensor in tensors.items():
                if name not in before or tensor is not before[name]:
                    raise NotRecordableError(
                        f"a forward puts another tensor in the place of {name!r}: expected changes "
                        "in place"
                    )

    def _replay(self, key: _Key, found: _Recorded, values: tuple[Any, ...]) -> StepResult | None:
        """None, and nothing is done, if a value is no tensor, or of another kind than recorded."""
        tensors = found.replay.run(values)
        if tensors is None:
            return None
        if next(reversed(self._recorded)) is not key:
            self._recorded.move_to_end(key)
        self.reason = None
        self.num_replays += 1
        return found.result.of(tensors)


def refusal_of(
    kinds: Sequence[str],
    devices: Mapping[int, torch.device],
    *,
    options: Mapping[str, bool],
) -> str | None:
    """Why a pipeline's passes can't be recorded whole; None: nothing is known against it.

    Args:
        kinds: of the stages.
        devices: by rank.
        options: the pipeline's that matter here, by name: whether they are in use.
    """
    if others := sorted({kind for kind in kinds if kind != "captured"}):
        return f"a pass is recorded whole, and some stages are {others[0]!r}"
    if (device := next(iter(devices.values()))).type != "cuda":
        return f"only a CUDA device can record, the ranks are on {device}"
    if len(set(devices.values())) > 1:
        return "the ranks are on several devices"
    for name, why in _UNRECORDABLE_OPTIONS.items():
        if options.get(name):
            return f"{why} ({name})"
    return None


_UNRECORDABLE_OPTIONS = {
    "rng_seed": "what a step draws depends on its number",
    "network": "emulated links make the host wait",
    "device_times": "a replay takes no times",
    "recompute": "a forward that runs again sets the device's generator",
    "offload": "what goes to the host and back isn't recorded",
    "copies with buffers": "the buffers of two copies of a model are handed over by the host",
    "measure_memory": "a replay allocates nothing that could be measured",
}


def _innermost(error: BaseException) -> BaseException:
    """What a PipelineError wraps says more than it does."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    if isinstance(error, NotRecordableError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]
