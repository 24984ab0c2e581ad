"""DeferredBatchNorm: batch norm's running statistics, of whole batches."""

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from pipert import _C

# What a norm's forward takes in the module's place while it runs.
_TRACKED = ("running_mean", "running_var", "num_batches_tracked")
_Use = tuple[int, int]  # the stage in its copy of the model, and which call of a microbatch


class DeferredBatchNorm:
    """Has batch norms update their running statistics once a pass, from all its microbatches.

    Each microbatch is normalised by its own statistics, as without it. The statistics are those of
    the whole batch: of both copies of the model, and of no forward that runs again.

    Args:
        stages: {stage: module or function}, of this process, of both copies of the model.
        ranks: of each stage.
        kinds: of the stages of one copy, see Options.
        twins: (module, its second copy) for modules of which both are in this process.

    Raises:
        ValueError: a batch norm can't be deferred.
    """

    def __init__(
        self,
        stages: Mapping[int, Any],
        ranks: Mapping[int, int],
        kinds: Sequence[str],
        twins: Sequence[tuple[nn.Module, nn.Module]],
    ) -> None:
        _check(stages, ranks, kinds)
        self._norms = _Norms(len(kinds))
        self._firsts = {id(second): first for first, second in twins}
        hooked: set[int] = set()
        handles: list[RemovableHandle] = []
        for stage in stages.values():
            for norm in _norms_of(stage):
                self._norms.of[norm] = _Sums()
                if id(norm._forward_pre_hooks) in hooked:  # copies of a module share their hooks
                    continue
                hooked.add(id(norm._forward_pre_hooks))
                before = _untraced(self._norms.before)
                after = _untraced(self._norms.after)
                handles += [
                    norm.register_forward_pre_hook(before, with_kwargs=True),
                    norm.register_forward_hook(after, with_kwargs=True, always_call=True),
                ]
        self._take_off = weakref.finalize(self, _remove, handles)
        self._take_off.atexit = False

    def remove(self) -> None:
        """Takes the hooks off: the norms are as they were."""
        self._take_off()

    def carriers(self, stage: Any) -> list[nn.Parameter]:
        """What has the sums of a stage's norms as gradients, for a copy in another process."""
        return [self._norms.of[norm].carrier(norm) for norm in _norms_of(stage)]

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Adds up statistics, and updates the running ones after a pass that ends well."""
        self._norms.active = True
        try:
            yield
            with torch.no_grad():
                self._commit()
        finally:
            self._norms.active = False
            for norm, sums in self._norms.of.items():
                sums.put_back(norm)  # where its hook was passed by
                sums.clear()

    def _commit(self) -> None:
        totals: dict[_BatchNorm, dict[_Use, Tensor]] = {}
        for norm, sums in self._norms.of.items():
            first = self._firsts.get(id(norm), norm)
            assert isinstance(first, _BatchNorm)
            total = totals.setdefault(first, {})
            for use, tensor in sums.by_use().items():
                total[use] = total[use] + tensor.to(total[use].device) if use in total else tensor
        for norm, total in totals.items():
            for use in sorted(total):
                _update(norm, total[use])


class _Sums:
    """Of one batch norm, in a pass."""

    def __init__(self) -> None:
        self._by_use: dict[_Use, Tensor] = {}  # each of shape (3, channels): see of_microbatch
        self._carrier: nn.Parameter | None = None
        self._last: tuple[int, int] | None = None  # stage and microbatch of the last call
        self._use: _Use = (0, 0)
        self._standing: tuple[Any, ...] | None = None  # in a call: what is in the module else

    def put_aside(self, norm: _BatchNorm) -> None:
        """The norm gets empty statistics to write to."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self._standing = (*(norm._buffers[name] for name in _TRACKED), norm.momentum)
        norm._buffers["running_mean"] = torch.zeros_like(norm.running_mean)
        norm._buffers["running_var"] = torch.zeros_like(norm.running_var)
        norm._buffers["num_batches_tracked"] = None
        norm.momentum = 1.0  # what it finds there counts nothing

    def put_back(self, norm: _BatchNorm) -> tuple[Tensor, Tensor] | None:
        """The norm has its own again. What it wrote: mean and variance; None: nothing was aside."""
        if self._standing is None:
            return None
        mean, variance = norm.running_mean, norm.running_var
        *buffers, norm.momentum = self._standing
        self._standing = None
        norm._buffers.update(zip(_TRACKED, buffers, strict=True))
        assert mean is not None
        assert variance is not None
        return mean, variance

    def carrier(self, norm: _BatchNorm) -> nn.Parameter:
        if self._carrier is None:
            assert norm.running_mean is not None
            zeros = torch.zeros(3, norm.num_features, dtype=_wide(norm.running_mean))
            self._carrier = nn.Parameter(zeros.to(norm.running_mean.device))
        return self._carrier

    def by_use(self) -> dict[_Use, Tensor]:
        if self._carrier is None:
            return self._by_use
        return {} if self._carrier.grad is None else {(0, 0): self._carrier.grad}

    def come_to(self, stage: int, microbatch: int) -> None:
        """Counts the calls of one norm for one microbatch."""
        again = self._last == (stage, microbatch)
        self._use = (stage, self._use[1] + 1 if again else 0)
        self._last = (stage, microbatch)

    def add(self, name: str, tensor: Tensor) -> None:
        if self._carrier is not None:
            if self._use[1] > 0:
                raise ValueError(
                    f"{name} is called twice for a microbatch, and its other copy is in another "
                    "process: deferred_batch_norm expects one call there"
                )
            if self._carrier.grad is None:
                self._carrier.grad = tensor
            else:
                self._carrier.grad += tensor
        elif self._use in self._by_use:
            self._by_use[self._use] += tensor
        else:
            self._by_use[self._use] = tensor

    def clear(self) -> None:
        self._by_use = {}
        self._last = None
        if self._carrier is not None:
            self._carrier.grad = None


class _Norms:
    """The hooks of all norms of a pipeline."""

    def __init__(self, num_pieces: int) -> None:
        self.active = False  # in a pass of this pipeline
        self.of: dict[_BatchNorm, _Sums] = {}
        self._num_pieces = num_pieces

    def before(self, norm: nn.Module, args: Any, kwargs: Any) -> None:
        assert isinstance(norm, _BatchNorm)
        sums = self.of.get(norm)
        if sums is not None and self.active and norm.training and norm.running_mean is not None:
            sums.put_aside(norm)

    def after(self, norm: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        assert isinstance(norm, _BatchNorm)
        sums = self.of.get(norm)
        written = None if sums is None else sums.put_back(norm)
        microbatch = _C.current_microbatch()
        if sums is None or written is None or output is None or microbatch is None:
            return
        if not microbatch.is_recomputing:
            x = args[0] if args else next(iter(kwargs.values()))
            sums.come_to(microbatch.stage % self._num_pieces, microbatch.index)
            sums.add(type(norm).__name__, _of_microbatch(x, *written))


@torch.no_grad()
def _of_microbatch(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """How many values each channel has, their sum and the sum of their squares: (3, channels)."""
    count = x.numel() // x.shape[1]
    mean, variance = mean.to(_wide(mean)), variance.to(_wide(variance))
    squares = variance * (count - 1) + mean * mean * count
    return torch.stack([torch.full_like(mean, count), mean * count, squares])


def _update(norm: _BatchNorm, total: Tensor) -> None:
    """As the norm's forward does with a whole batch of these sums."""
    if norm.running_mean is None or norm.running_var is None:
        return
    count, values, squares = total.to(norm.running_mean.device)
    mean = values / count
    variance = ((squares - values * mean) / (count - 1)).clamp_(min=0.0)
    share = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if share is None:
            share = 1.0 / float(norm.num_batches_tracked)
    if share is None:
        return
    for running, seen in ((norm.running_mean, mean), (norm.running_var, variance)):
        running.mul_(1.0 - share).add_(seen.to(running.dtype), alpha=share)


def _wide(tensor: Tensor) -> torch.dtype:
    """What sums of squares are in, where the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _norms_of(stage: Any) -> Iterator[_BatchNorm]:
    if isinstance(stage, nn.Module):
        for module in stage.modules():
            if isinstance(module, _BatchNorm) and module.track_running_stats:
                yield module


def _check(stages: Mapping[int, Any], ranks: Mapping[int, int], kinds: Sequence[str]) -> None:
    seen: dict[nn.Module, int] = {}
    for index, stage in stages.items():
        for norm in _norms_of(stage):
            if (kind := kinds[index % len(kinds)]) not in ("module", "auto"):
                raise ValueError(
                    f"stage {index} has a {type(norm).__name__} and is of kind {kind!r}: "
                    "deferred_batch_norm expects stage_kind='module' there"
                )
            if isinstance(norm, nn.SyncBatchNorm):
                raise ValueError(
                    f"stage {index} has a SyncBatchNorm, whose statistics are those of several "
                    "processes: deferred_batch_norm expects other batch norms"
                )
            other = seen.setdefault(norm, index)
            if ranks[other] != ranks[index]:
                raise ValueError(
                    f"stages {other} and {index} share a {type(norm).__name__}, and run on threads "
                    "of their own: deferred_batch_norm expects one for each"
                )


def _untraced(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that torch.compile, where somebody has used it, leaves out of what it compiles."""
    if "torch._dynamo" not in sys.modules:  # asking for it would import all of the compiler
        return hook
    disabled: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return disabled


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
