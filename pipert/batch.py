"""Batch: what a caller gives to one pass, and what the pass needs of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from pipert._C import Schedule
from pipert.distributed import Peers
from pipert.local_stages import LocalStages
from pipert.signatures import needs_target


class Batch(NamedTuple):
    """The arguments of `Pipeline.step`, unchecked; it says what each of them means."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any = None
    loss_kwargs: Mapping[str, Any] | None = None
    microbatches: Sequence[Any] | None = None

    @property
    def is_cut(self) -> bool:
        """Whether it came as microbatches."""
        return self.microbatches is not None

    def arguments(self) -> tuple[Any, Any]:
        """Positional and keyword arguments; if it is cut, a list of each, by microbatch.

        Raises:
            ValueError, TypeError: there is no telling which microbatch gets what.
        """
        if self.microbatches is None:
            return self.args or None, self.kwargs or None
        if self.args or self.kwargs:
            raise ValueError("expected microbatches or arguments of the batch, got both")
        if not isinstance(self.microbatches, Sequence) or isinstance(self.microbatches, str):
            raise TypeError(
                f"microbatches must be a sequence with one entry for each, got "
                f"{type(self.microbatches).__name__}"
            )
        args: list[Any] = []
        kwargs: list[Any] = []
        for microbatch in self.microbatches:
            if isinstance(microbatch, dict):
                args.append(())
                kwargs.append(microbatch)
            else:
                args.append(microbatch if isinstance(microbatch, tuple) else (microbatch,))
                kwargs.append({})
        return args, kwargs


class BatchChecks:
    """What the stages of this process need of a batch. Making it is a collective call in a group.

    Args:
        schedule: the pipeline's.
        stages: of this process.
        loss_fn: the pipeline's.
        peers: the ranks of the group, who tell each other what their stages take.
    """

    def __init__(
        self,
        schedule: Schedule,
        stages: LocalStages,
        loss_fn: Callable[..., Tensor] | None,
        peers: Peers | None,
    ) -> None:
        self._schedule = schedule.name
        self._can_train = any(a.kind != "F" for rank in schedule.actions for a in rank)
        self._stages = stages
        self._loss_fn = loss_fn
        self._keywords = _all_keywords(stages, peers)

    def check(self, batch: Batch, training: bool, compute_loss: bool) -> tuple[Any, Any]:
        """Checks that what is needed was given, and returns the batch's arguments.

        Raises:
            ValueError, TypeError: the message says what was expected.
        """
        args, kwargs = batch.arguments()
        self._check_keywords({name for some in kwargs for name in some} if batch.is_cut else kwargs)
        has_last, loss_fn = self._stages.has_last, self._loss_fn
        if training and not self._can_train:
            raise ValueError(f"step needs a schedule with backwards, {self._schedule} has none")
        if training and has_last and loss_fn is None:
            raise ValueError("step needs a loss function: expected Pipeline(loss_fn=...), got None")
        if self._stages.has_first and args is None and kwargs is None:
            raise ValueError("the first stage's rank needs the batch: expected arguments, got none")
        if not (compute_loss and has_last) or loss_fn is None or batch.target is not None:
            return args, kwargs
        if needs_target(loss_fn):
            raise ValueError(
                "the last stage's rank needs the target: expected target=..., got None (the "
                "loss function takes an output and a target)"
            )
        return args, kwargs

    def _check_keywords(self, names: Iterable[str] | None) -> None:
        for name in names or ():
            if self._keywords is not None and name not in self._keywords:
                known = ", ".join(sorted(self._keywords)) or "none"
                raise TypeError(
                    f"no stage's forward takes the keyword argument {name!r}; they take: {known}"
                )


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
