"""CapturedActions: the actions of one rank of a group, recorded once each as CUDA graphs."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipert import _C
from pipert.batches.batch import Batch, Microbatch
from pipert.batches.results import StepResult
from pipert.captured.batch import NotRecordableError, put_together, take_apart
from pipert.captured.conditions import Conditions, replacement
from pipert.captured.kinds import (
    MAX_RECORDINGS,
    NUM_WARMUPS,
    PassKey,
    PassKind,
    RunPass,
    describe,
)
from pipert.local.local_stages import LocalStages

_MAX_KINDS = 64


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
        conditions: that recordings are made under.
        stages: of this process.
        device: of the rank.
        recorder: the stages'; None: nothing is recorded, because of `refusal`.
        refusal: why nothing can be recorded; None: it can.

    Attributes:
        reason: why the last pass was not replayed, or not all of it; None: it was.
    """

    def __init__(
        self,
        conditions: Conditions,
        stages: LocalStages,
        device: torch.device,
        recorder: _C.ActionRecorder | None,
        refusal: str | None,
    ) -> None:
        self._conditions = conditions
        self._stages = stages
        self._device = device
        self._recorder = recorder
        self._passes: OrderedDict[PassKey, _Passes] = OrderedDict()
        self.reason: str | None = refusal or "it has not run yet"
        self.num_replays = 0

    def run(self, batch: Batch, kind: PassKind, run_pass: RunPass) -> StepResult:
        """One pass: replayed, recorded on the way, or as it is."""
        if self._recorder is None:
            return run_pass(batch, kind)
        try:
            state = self._conditions.state()
            batch = self._named(batch)
            needed = self._needed(batch)
            tensors, rest = take_apart(needed)
            key = PassKey(kind, describe(tensors, self._device), rest, state)
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
        self._conditions.forget()

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
            leaves=self._conditions.leaves,
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
        if mode == "record" and (name := self._conditions.replaced()) is not None:
            self.reason = f"it can't be recorded: {replacement(name)}"
            passes.recordings.drop(self.reason, is_final=True)
        if mode == "record":
            self._drop_oldest()
        return result

    def _find(self, key: PassKey) -> _Passes:
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

    def _named(self, batch: Batch) -> Batch:
        names = self._stages.argument_names
        try:
            return batch if names is None else names.bind(batch)
        except (TypeError, ValueError) as error:  # it comes again where the pass runs as it is
            raise NotRecordableError(str(error)) from error

    def _needed(self, batch: Batch) -> Batch:
        """What this rank's stages take of a batch."""
        first, last = self._stages.has_first, self._stages.has_last
        takes_any = any(stage.keywords is None for stage in self._stages)
        names = {name for stage in self._stages for name in stage.keywords or ()}
        cut = batch.microbatches
        takes_cut = first or (
            isinstance(cut, Sequence) and any(isinstance(piece, dict | Microbatch) for piece in cut)
        )
        return Batch(
            batch.args if first else (),
            {name: v for name, v in batch.kwargs.items() if takes_any or name in names},
            batch.target if last else None,
            batch.loss_kwargs if last else None,
            cut if takes_cut else None,
            batch.loss_weights if last else None,
        )


def _merge(own: Batch, batch: Batch) -> Batch:
    """The batch with what a rank needs of it in the recordings' own memory."""
    return batch._replace(
        args=own.args or batch.args,
        kwargs={**batch.kwargs, **own.kwargs},
        target=batch.target if own.target is None else own.target,
        loss_kwargs=own.loss_kwargs or batch.loss_kwargs,
        microbatches=batch.microbatches if own.microbatches is None else own.microbatches,
    )
