"""CapturedSteps: whole passes, recorded once as a CUDA graph, then launched with one call."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from pipert import _C
from pipert.batches.batch import Batch
from pipert.batches.results import StepResult
from pipert.captured.batch import (
    NotRecordableError,
    plain_rest,
    plain_values,
    put_together,
    take_apart,
)
from pipert.captured.conditions import Conditions
from pipert.captured.kinds import (
    MAX_RECORDINGS,
    NUM_WARMUPS,
    PassKey,
    PassKind,
    RunPass,
    describe,
)
from pipert.captured.result import RecordedResult

T = TypeVar("T")


class Recording(Protocol):
    """A CudaGraph, or what tests put in its place."""

    def capture(self, run: Callable[[], T]) -> T:
        """Records what `run` does without doing it."""

    def prepare(self) -> None:
        """Before what the recording reads is written, for a replay on another stream."""

    def replay(self) -> None:
        """Does it."""


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
        conditions: that recordings are made under.
        device: of the ranks.
        make_recording: makes an empty one.
        refusal: why nothing can be recorded; None: it can.
        watch_leaves: as of Ranks.

    Attributes:
        reason: why the last pass was not replayed; None: it was.
    """

    def __init__(
        self,
        conditions: Conditions,
        device: torch.device,
        make_recording: Callable[[], Recording],
        refusal: str | None,
        watch_leaves: Callable[[Sequence[Tensor] | None], bool],
    ) -> None:
        self._watch_leaves = watch_leaves
        self._conditions = conditions
        self._device = device
        self._make_recording = make_recording
        self._refusal = refusal
        self._busy = threading.Lock()  # while a pass runs: a replay takes none of the ranks'
        self._last_stream = _C.LastStream()
        self._recorded: OrderedDict[PassKey, _Recorded] = OrderedDict()
        self._num_seen: dict[PassKey, int] = {}
        self._refused: dict[PassKey, str] = {}
        self.reason: str | None = refusal or "it has not run yet"
        self.num_replays = 0

    def run(self, batch: Batch, kind: PassKind, run_pass: RunPass) -> StepResult:
        """One pass: replayed, recorded and replayed, or as `run_pass` runs it.

        Raises:
            ValueError: another thread's is running.
        """
        if self._refusal is not None:
            return run_pass(batch, kind)
        if not self._busy.acquire(blocking=False):
            raise ValueError(
                "the pipeline is running a step: it runs one at a time, for one thread"
            )
        try:
            return self._run(batch, kind, run_pass)
        finally:
            self._busy.release()

    def _run(self, batch: Batch, kind: PassKind, run_pass: RunPass) -> StepResult:
        try:
            state = self._conditions.state()
            if (result := self._replay_usual(batch, kind, state)) is not None:
                return result
            tensors, rest = take_apart(batch)
            key = PassKey(kind, describe(tensors, self._device), rest, state)
        except NotRecordableError as error:
            self.reason = str(error)
            return run_pass(batch, kind)
        found = self._recorded.get(key)
        if found is None:
            if not self._is_warm(key):
                return self._run_as_it_is(key, batch, run_pass)
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
        self._conditions.forget()

    @property
    def num_recordings(self) -> int:
        """How many there are."""
        return len(self._recorded)

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

    def _run_as_it_is(self, key: PassKey, batch: Batch, run_pass: RunPass) -> StepResult:
        if key in self._refused:
            return run_pass(batch, key.kind)
        self._watch_leaves(self._conditions.leaves)
        try:
            return run_pass(batch, key.kind)
        finally:
            if self._watch_leaves(None):  # nobody would know where a replay has put their gradients
                self.reason = self._refused[key] = (
                    "it can't be recorded: backward gives a gradient to a tensor that is no "
                    "parameter of a stage's module or of the loss function's"
                )

    def _record(
        self, key: PassKey, batch: Batch, tensors: Sequence[Tensor], run_pass: RunPass
    ) -> _Recorded | None:
        while len(self._recorded) >= MAX_RECORDINGS:
            self._recorded.popitem(last=False)
        before = self._conditions.snapshot()
        recording = self._make_recording()

        def run() -> RecordedResult:
            return RecordedResult(run_pass(put_together(batch, inputs.tensors), key.kind))

        try:
            inputs = _C.TensorSlot(tensors)
            inputs.fill(tensors)
            result = recording.capture(run)
            before.require_same_tensors()
        except BaseException as error:
            before.put_back()
            if not self._refuse(key, error):
                raise
            return None
        replay = _C.Replay(
            conditions=before.conditions,
            inputs=inputs,
            results=result.slot,
            gradients=before.conditions.gradients(),
            prepare=recording.prepare,
            launch=recording.replay,
            last=self._last_stream,
        )
        found = _Recorded(recording, inputs, replay, result)
        self._recorded[key] = found
        return found

    def _refuse(self, key: PassKey, error: BaseException) -> bool:
        """Notes why a pass can't be recorded. False: somebody wants to stop.

        Apart from who caught it: a local variable there would hold the error, which holds that
        frame, and so the recording's memory until the next collection.
        """
        cause = _innermost(error)
        if not isinstance(cause, Exception):  # Ctrl-C
            return False
        # If it is the user's own, it comes again where the pass runs as it is.
        self.reason = f"it can't be recorded: {_first_line(cause)}"
        if not isinstance(cause, torch.OutOfMemoryError):
            self._refused[key] = self.reason
        return True

    def _replay(self, key: PassKey, found: _Recorded, values: tuple[Any, ...]) -> StepResult | None:
        """None, and nothing is done, if a value is no tensor, or of another kind than recorded."""
        tensors = found.replay.run(values)
        if tensors is None:
            return None
        if next(reversed(self._recorded)) is not key:
            self._recorded.move_to_end(key)
        self.reason = None
        self.num_replays += 1
        return found.result.of(tensors)


def _innermost(error: BaseException) -> BaseException:
    """What a PipelineError wraps says more than it does."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    if isinstance(error, NotRecordableError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]
