"""LossWeights: what each microbatch's loss counts, by the tokens (say) that it is the mean of."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipert.processes.group import as_group

_IGNORED = -100  # as torch's losses have it


class LossWeights:
    """Counts microbatches, and gives each loss its share of the whole.

    The weight of a microbatch is its count, times the replicas that average their gradients, over
    the count of all microbatches of all replicas. So the mean over the replicas' gradients is that
    of the mean loss over everything counted.

    Args:
        count: of a microbatch's target, a number; or "tokens".
        ignore_index: what "tokens" doesn't count; None: that of the loss function.
        group: the replicas of this rank, whose counts are added up; None: there is one.
        loss_fn: the pipeline's.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """

    def __init__(
        self,
        count: "Callable[[Any], Any] | str",
        ignore_index: int | None,
        group: Any,
        loss_fn: Any,
    ) -> None:
        if isinstance(count, str):
            if count != "tokens":
                raise ValueError(f"loss_weight must be 'tokens' if it is a word, got {count!r}")
        elif not callable(count):
            raise TypeError(
                "loss_weight must be a function of a microbatch's target, or 'tokens', got "
                f"{type(count).__name__}"
            )
        if ignore_index is None:
            ignore_index = getattr(loss_fn, "ignore_index", _IGNORED)
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
            raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}")
        self._ignore_index = ignore_index
        self._count = self._count_tokens if isinstance(count, str) else count
        self._group = None if group is None else as_group(group)

    def weigh(self, global_count: float | None, targets: Sequence[Any]) -> list[float]:
        """The weights of the microbatches. A collective call where there are replicas.

        Args:
            global_count: of all microbatches of all replicas; None: it is counted.
            targets: of the microbatches, or their keyword arguments where there is no target.

        Raises:
            TypeError, ValueError: a count is no number from 0, or nothing counts.
        """
        counts = self._counts(targets)
        if global_count is None:
            global_count = self._total(sum(counts))
        if not global_count > 0:
            raise ValueError(
                f"loss_weight: the microbatches must count something, got {global_count:g} in all"
            )
        replicas = 1 if self._group is None else dist.get_world_size(self._group)
        return [count * replicas / global_count for count in counts]

    def _counts(self, targets: Sequence[Any]) -> list[float]:
        given = [self._count(target) for target in targets]
        if all(isinstance(count, Tensor) and count.numel() == 1 for count in given):
            # One wait for the device.
            given = torch.stack([count.detach().reshape(()) for count in given]).tolist()
        counts = []
        for microbatch, count in enumerate(given):
            if isinstance(count, Tensor) and count.numel() == 1:
                count = count.item()
            if isinstance(count, bool) or not isinstance(count, int | float):
                raise TypeError(
                    f"loss_weight must give a number, got {type(count).__name__} for microbatch "
                    f"{microbatch}"
                )
            if not 0 <= count < math.inf:
                raise ValueError(
                    f"loss_weight must give a number from 0, got {count} for microbatch "
                    f"{microbatch}"
                )
            counts.append(count)
        return counts

    def _total(self, own: float) -> float:
        if self._group is None:
            return own
        on_gpu = "nccl" in dist.get_backend(self._group)
        total = torch.tensor(own, dtype=torch.float64, device="cuda" if on_gpu else "cpu")
        dist.all_reduce(total, group=self._group)
        return total.item()

    def _count_tokens(self, target: Any) -> Tensor:
        if not isinstance(target, Tensor):
            raise TypeError(
                "loss_weight='tokens' needs a tensor for the target, got "
                f"{type(target).__name__}: expected a function that counts it"
            )
        return (target != self._ignore_index).sum()


def make_loss_weights(
    count: Any, ignore_index: int | None, group: Any, loss_fn: Any
) -> LossWeights | None:
    """Of `Pipeline`'s arguments; None: microbatches count by their rows.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    if count is not None:
        return LossWeights(count, ignore_index, group, loss_fn)
    for name, value in (("ignore_index", ignore_index), ("count_group", group)):
        if value is not None:
            raise ValueError(f"{name} goes with loss_weight: expected loss_weight=..., got None")
    return None


def check_loss_weights(weights: Any, num_microbatches: int) -> list[float]:
    """What `step` was given for the weights of its microbatches' losses.

    Raises:
        TypeError, ValueError: they aren't as many numbers from 0 as microbatches.
    """
    if isinstance(weights, Tensor):
        weights = weights.tolist()
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        raise TypeError(
            f"loss_weights must be a list of {num_microbatches} numbers (num_microbatches), got "
            f"{type(weights).__name__}"
        )
    if len(weights) != num_microbatches:
        raise ValueError(
            f"loss_weights must have {num_microbatches} entries (num_microbatches), got "
            f"{len(weights)}"
        )
    for microbatch, weight in enumerate(weights):
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise TypeError(
                f"loss_weights[{microbatch}] must be a number, got {type(weight).__name__}"
            )
        if not 0 <= weight < math.inf:
            raise ValueError(f"loss_weights[{microbatch}] must be a number from 0, got {weight}")
    return [float(weight) for weight in weights]
