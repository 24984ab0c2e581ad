"""Replicas: stages whose gradients other processes average with theirs, once a pass."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# Note [Once a pass]
#
# torch's wrappers reduce the gradients of each backward: DistributedDataParallel of the one that
# comes next after a forward, and of no other. With several microbatches on their way that is wrong,
# not only slow. So they are told to leave gradients alone during a pass, and to reduce the sums
# behind it, when all other ranks of this pipeline have ended theirs well. All replicas of a stage
# run one schedule, so they come to this in the same order.


class Replicas:
    """What is wrapped in DistributedDataParallel or fully_shard in the stages of this process.

    Args:
        stages: {stage index: module or function}, of this process.
        defer_sharded: whether sharded gradients can wait for the end of a pass, as parts of their
            modules; else each microbatch's are reduced in its backward.
    """

    def __init__(self, stages: Mapping[int, Any], *, defer_sharded: bool) -> None:
        modules = [stage for stage in stages.values() if isinstance(stage, nn.Module)]
        self._copied = [
            part for part in _each(modules) if isinstance(part, DistributedDataParallel)
        ]
        self._sharded = _outermost_sharded(modules) if defer_sharded else []

    @property
    def reduces_copied(self) -> bool:
        """Whether DistributedDataParallel changes gradients behind a pass."""
        return bool(self._copied)

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Reduces gradients after a pass that ends well, and none before."""
        waiting = [wrapper for wrapper in self._copied if wrapper.require_backward_grad_sync]
        for wrapper in waiting:
            wrapper.require_backward_grad_sync = False
        for module in self._sharded:
            _set_sync(module, False)
        try:
            yield
        finally:
            for wrapper in waiting:
                wrapper.require_backward_grad_sync = True
            for module in self._sharded:
                _set_sync(module, True)
        for wrapper in waiting:
            _reduce_copied(wrapper)
        for module in self._sharded:
            _reduce_sharded(module)


def check_replicas(
    stages: Mapping[int, Any],
    ranks: Mapping[int, int],
    kinds: Sequence[str],
    *,
    num_copies: int,
    main_grads: bool,
) -> None:
    """Checks that the gradients of wrapped stages can be reduced.

    Args:
        stages: {stage index: module or function}, of this process.
        ranks: of each stage.
        kinds: of the stages of one copy of the model, see Options.
        num_copies: of the model, in the schedule.
        main_grads: whether `.grad` is given up for another sum.

    Raises:
        ValueError: they can't.
    """
    using: dict[Any, int] = {}
    for index, stage in stages.items():
        wrappers = [p for p in _each([stage]) if isinstance(p, DistributedDataParallel)]
        for wrapper in wrappers:
            _check_copied(wrapper, index, kinds[index % len(kinds)], num_copies, main_grads)
        groups = [wrapper.process_group for wrapper in wrappers]
        groups += [p.device_mesh for module in _outermost_sharded([stage]) for p in _shards(module)]
        for group in groups:
            other = using.setdefault(group, index)
            if group.size() > 1 and ranks[other] != ranks[index]:
                raise ValueError(
                    f"stages {other} and {index} communicate over one group, from threads that "
                    "know no order among them: expected a process for each rank, or a group for "
                    "each of the two"
                )


def _check_copied(
    wrapper: DistributedDataParallel, index: int, kind: str, num_copies: int, main_grads: bool
) -> None:
    where = f"stage {index} is wrapped in DistributedDataParallel: expected "
    if wrapper.static_graph:
        raise ValueError(f"{where}it without static_graph, which counts its backwards")
    if main_grads:
        raise ValueError(f"{where}main_grads=False, for it reduces .grad")
    if num_copies > 1:
        raise ValueError(f"{where}a schedule with one copy of the model, got {num_copies}")
    if kind == "captured":
        raise ValueError(f"{where}another stage_kind than 'captured'")
    own = set(wrapper.module.parameters())
    if not own.issuperset(wrapper._module_parameters):
        raise ValueError(
            f"{where}the parameters that it was made with, got others: weights that are tied must "
            "be one object before their stages are wrapped"
        )


def _shards(module: nn.Module) -> list[Any]:
    return [p for p in module.parameters() if hasattr(p, "device_mesh")]


def _each(stages: Iterable[Any]) -> list[nn.Module]:
    """All modules in the stages, each once."""
    found = (part for s in stages if isinstance(s, nn.Module) for part in s.modules())
    return list(dict.fromkeys(found))


def _outermost_sharded(modules: Iterable[nn.Module]) -> list[Any]:
    """Modules of fully_shard that no other one contains."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported: nobody has used it
    if fsdp is None or not hasattr(fsdp, "FSDPModule"):
        return []
    found = [part for part in _each(modules) if isinstance(part, fsdp.FSDPModule)]
    inner = {id(part) for outer in found for part in outer.modules() if part is not outer}
    return [part for part in found if id(part) not in inner]


def _set_sync(module: Any, is_on: bool) -> None:
    module.set_is_last_backward(is_on)
    module.set_reshard_after_backward(is_on)
    module.set_requires_gradient_sync(is_on)


class _Touch(torch.autograd.Function):
    """A backward that comes to each tensor and brings it nothing."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.count = len(tensors)
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        return tuple(None for _ in range(ctx.count))


def _reduce_copied(wrapper: DistributedDataParallel) -> None:
    """Has it do what it does in a backward, with the gradients that are there."""
    parameters = [p for p in wrapper.module.parameters() if p.requires_grad]
    if wrapper.find_unused_parameters:
        parameters = [p for p in parameters if p.grad is not None]
    touch: Callable[..., Tensor] = _Touch.apply
    with torch.enable_grad():
        touched = touch(*parameters)
    wrapper.reducer.prepare_for_backward([touched] if wrapper.find_unused_parameters else [])
    touched.backward()  # type: ignore[no-untyped-call]


def _reduce_sharded(module: Any) -> None:
    """As torch's own pipelines do, whose function reaches into fully_shard."""
    from torch.distributed.pipelining.stage import _PipelineStageBase

    holder: Any = SimpleNamespace(submod=module, scale_grads=lambda factor: None)
    _PipelineStageBase.perform_reduce_grad(holder, 1)
