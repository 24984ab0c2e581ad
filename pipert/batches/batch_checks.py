"""BatchChecks: what the stages of a process need of a batch."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from pipert._C import Schedule
from pipert.batches.batch import Batch
from pipert.batches.loss_weights import check_loss_weights
from pipert.batches.losses import loss_needs_target, loss_of_output
from pipert.batches.specs import check_names
from pipert.local.local_stages import LocalStages
from pipert.options import Options
from pipert.processes.distributed import Peers


class BatchChecks:
    """What the stages of this process need of a batch. Making it is a collective call in a group.

    Args:
        schedule: the pipeline's.
        stages: of this process.
        options: the pipeline's.
        peers: the ranks of the group, who tell each other what their stages take.
    """

    def __init__(
        self,
        schedule: Schedule,
        stages: LocalStages,
        options: Options,
        peers: Peers | None,
    ) -> None:
        self._schedule = schedule.name
        self._num_microbatches = schedule.num_microbatches
        self._can_train = any(a.kind != "F" for rank in schedule.actions for a in rank)
        self._stages = stages
        self._loss_fn = options.loss_fn
        self._loss_weights = options.loss_weights
        self._keywords = _all_keywords(stages, peers)
        if stages.argument_names is None and self._keywords is not None:
            check_names(options.specs.kwargs, self._keywords)

    def check(self, batch: Batch, training: bool, compute_loss: bool) -> tuple[Any, Any]:
        """Checks that what is needed was given, and returns the batch's arguments.

        Raises:
            ValueError, TypeError: the message says what was expected.
        """
        args, kwargs = self._arguments(batch)
        has_last, loss_fn = self._stages.has_last, self._loss_fn
        if training and not self._can_train:
            raise ValueError(f"step needs a schedule with backwards, {self._schedule} has none")
        if training and has_last and loss_fn is None:
            raise ValueError("step needs a loss function: expected Pipeline(loss_fn=...), got None")
        is_wired = self._stages.argument_names is not None
        if self._stages.has_first and args is None and kwargs is None and not is_wired:
            raise ValueError("the first stage's rank needs the batch: expected arguments, got none")
        if not (compute_loss and has_last) or loss_fn is None:
            return args, kwargs
        if batch.target is not None and loss_fn is loss_of_output:
            raise ValueError(
                "loss_fn='output' takes the loss of the model's output: expected no target, got "
                f"{type(batch.target).__name__}"
            )
        if batch.target is None and loss_needs_target(loss_fn):
            raise ValueError(
                "the last stage's rank needs the target: expected target=..., got None (the "
                "loss function takes an output and a target)"
            )
        return args, kwargs

    def weights(
        self, batch: Batch, compute_loss: bool
    ) -> tuple[list[float], Callable[[list[Any]], list[float]] | None]:
        """What the microbatches' losses count: their weights, or what weighs their targets.

        Neither where they count by their rows, or elsewhere than on the last stage's rank.

        Raises:
            ValueError, TypeError: the message says what was expected.
        """
        chosen, counted = batch.loss_weights, self._loss_weights
        if batch.global_count is not None:
            _check_count(batch.global_count, counted is not None)
        if chosen is not None:
            if counted is not None:
                raise ValueError(
                    "expected loss_weights or Pipeline(loss_weight=...) to weigh losses, got both"
                )
            chosen = check_loss_weights(chosen, self._num_microbatches)
        if not (self._stages.has_last and compute_loss and self._loss_fn is not None):
            return [], None
        weigh = None if counted is None else partial(counted.weigh, batch.global_count)
        return list(chosen or []), weigh

    def _arguments(self, batch: Batch) -> tuple[Any, Any]:
        if self._stages.argument_names is not None:
            return self._named_arguments(self._stages.argument_names.bind(batch))
        args, kwargs = batch.arguments()
        self._check_keywords({name for some in kwargs for name in some} if batch.is_cut else kwargs)
        return args, kwargs

    def _named_arguments(self, batch: Batch) -> tuple[Any, Any]:
        """Those that wired stages of this process take; the others are other ranks' business."""
        args, kwargs = batch.arguments()
        taken = {name for stage in self._stages for name in stage.keywords or ()}
        if not batch.is_cut:
            own = {name: value for name, value in (kwargs or {}).items() if name in taken}
            self._require_arguments(own, "")
            return args, own or None
        entries = [{name: v for name, v in some.items() if name in taken} for some in kwargs]
        for microbatch, entry in enumerate(entries):
            self._require_arguments(entry, f"microbatches[{microbatch}]: ")
        return args, entries

    def _require_arguments(self, named: Mapping[str, Any], where: str) -> None:
        for stage in self._stages:
            for name in stage.required:
                if name not in named:
                    raise ValueError(
                        f"{where}stage {stage.piece} needs the argument {name!r}: expected it on "
                        "the stage's rank, got none"
                    )

    def _check_keywords(self, names: Iterable[str] | None) -> None:
        for name in names or ():
            if self._keywords is not None and name not in self._keywords:
                known = ", ".join(sorted(self._keywords)) or "none"
                raise TypeError(
                    f"no stage's forward takes the keyword argument {name!r}; they take: {known}"
                )


def _check_count(count: Any, is_used: bool) -> None:
    if not is_used:
        raise ValueError("global_count goes with Pipeline(loss_weight=...), which is None")
    if isinstance(count, bool) or not isinstance(count, int | float):
        raise TypeError(f"global_count must be a number, got {type(count).__name__}")
    if not 0 < count < math.inf:
        raise ValueError(f"global_count must be a positive number, got {count}")


def _all_keywords(stages: LocalStages, peers: Peers | None) -> set[str] | None:
    """The keyword arguments that some stage takes, on any rank; None: one takes any."""
    own = [stage.keywords for stage in stages]
    ranks = [own] if peers is None else peers.exchange("name the keywords", own)
    keywords: set[str] = set()
    for stage in (stage for rank in ranks for stage in rank):
        if stage is None:
            return None
        keywords.update(stage)
    return keywords
