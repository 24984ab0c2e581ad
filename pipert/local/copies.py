"""The second copy of the model that a bidirectional schedule runs (docs/schedules.md)."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipert._C import Placement
from pipert.tied_weights.twins import Twins

# What nn.Module keeps hooks in.
_HOOKS = [name for name, value in vars(nn.Module()).items() if "_hooks" in name]


_SMALL_BYTES = 1 << 20  # buffers up to this size are copied in any case


class LocalCopies:
    """Second copies of modules whose first ones are in this process too.

    Their parameters are the same memory with gradients of their own, which are added to those of
    the first copy after each pass, so that the first copy is the model. Their buffers are copies of
    the first one's, made anew before each pass where they differ. Hooks are shared.
    """

    def __init__(self) -> None:
        self._modules: list[tuple[nn.Module, nn.Module, torch.device]] = []  # with all children
        self._twins = Twins()
        self._seen: dict[tuple[int, str], tuple[Any, ...]] = {}  # of buffers: as last made equal

    def add(self, first: nn.Module, index: int, device: torch.device) -> nn.Module:
        """A second copy of stage `index`, on `device`.

        Raises:
            TypeError: the module can't be copied.
            ValueError: it has parameters that are not made yet.
        """
        # What is in the memo is taken as it is; weights that stages share stay shared.
        memo: dict[int, Any] = {}
        for module in first.modules():
            hooks = [vars(module)[name] for name in _HOOKS if name in vars(module)]
            memo.update((id(hook), hook) for hook in hooks)
        for name, parameter in first.named_parameters():
            if is_lazy(parameter):
                raise ValueError(
                    f"stages[{index}] has a parameter that its first call makes, {name}, and the "
                    "schedule runs two copies of the model: expected parameters that are there"
                )
            memo[id(parameter)] = self._twins.twin(parameter, device)
        try:
            second = copy.deepcopy(first, memo).to(device)
        except Exception as error:
            raise TypeError(
                f"stages[{index}] can't be copied, and the schedule runs two copies of the model: "
                f"{type(error).__name__}: {error}"
            ) from error
        self._modules += [
            (*pair, device) for pair in zip(first.modules(), second.modules(), strict=True)
        ]
        return second

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Makes the copies equal, and adds up their gradients after a pass that ends well."""
        if not self._modules:
            yield
            return
        with torch.no_grad():
            self._make_equal()
        try:
            yield
            self._twins.add_gradients()
        finally:
            self._twins.drop_gradients()

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(first, second), of all modules that have copies here."""
        return [(first, second) for first, second, _ in self._modules]

    def _make_equal(self) -> None:
        there = set()
        for first, second, device in self._modules:
            second.training = first.training
            for name, parameter in first._parameters.items():
                if parameter is None:
                    second._parameters[name] = None
                    continue
                there.add(id(parameter))
                twin = self._twins.twin(parameter, device)
                if second._parameters.get(name) is not twin:
                    setattr(second, name, twin)  # some modules keep more of it (nn.LSTM)
            for name, buffer in first._buffers.items():
                self._copy_buffer(second, name, buffer, device)
        self._twins.keep(there)

    def _copy_buffer(
        self, second: nn.Module, name: str, buffer: Tensor | None, device: torch.device
    ) -> None:
        mine = second._buffers.get(name)
        if buffer is None:
            second._buffers[name] = None
            return
        key = (id(second), name)
        if self._seen.get(key) == (id(buffer), _version(buffer), id(mine), _version(mine)):
            return
        if mine is not None and mine.shape == buffer.shape and mine.dtype == buffer.dtype:
            mine.copy_(buffer)
        else:
            mine = second._buffers[name] = buffer.detach().clone().to(device)
        self._seen[key] = (id(buffer), _version(buffer), id(mine), _version(mine))


def _version(buffer: Tensor | None) -> object:
    """Equal as long as nobody writes to it, as far as that can be told."""
    if buffer is None:
        return None
    # Batch norm's kernels write to its statistics without a word; large constants stand for others.
    is_told = not buffer.is_inference() and buffer.nbytes > _SMALL_BYTES
    return buffer._version if is_told else object()


class RemoteCopy:
    """A stage of this process whose other copy is in another one.

    Attributes:
        piece: the stage, counted in its copy.
        peer: the rank that has the other copy.
        module: None: a function.
    """

    def __init__(self, placement: Placement, index: int, module: nn.Module | None) -> None:
        size = placement.stages_per_copy
        self.piece = index % size
        self.peer = placement.rank_of((index + size) % placement.num_stages)
        self._is_first = index < size
        self._last_index = index if placement.is_last(index) else None
        self.module = module

    def state(self) -> tuple[list[nn.Parameter], list[Tensor]]:
        """Its parameters and buffers now, in the order that both copies have."""
        if self.module is None:
            return [], []
        return list(self.module.parameters()), list(self.module.buffers())

    def describe(self) -> list[str]:
        """What must be the same in both copies."""
        if self.module is None:
            return []
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        return [f"{name}: {str(v.dtype)[6:]}{list(v.shape)}" for name, v in named]

    def for_runtime(self, known: set[nn.Parameter], more: Sequence[nn.Parameter]) -> Any:
        """As _C.Runtime takes it.

        Args:
            known: parameters to leave out, to which its own are added.
            more: what counts as its parameters too: gradients of two copies are added up.
        """
        parameters, buffers = self.state()
        parameters += more
        own = [p for p in parameters if p not in known]
        known.update(own)
        return (self.piece, self.peer, self._is_first, self._last_index, own, buffers)


def check_remote_copies(described: Sequence[Mapping[str, Sequence[str]]]) -> None:
    """Checks that the two copies of each stage are alike.

    Args:
        described: by rank, what its RemoteCopies say, by piece.

    Raises:
        ValueError: names the stage, and the first thing that differs.
    """
    seen: dict[str, tuple[int, Sequence[str]]] = {}
    for rank, own in enumerate(described):
        for piece, told in own.items():
            other, expected = seen.setdefault(piece, (rank, told))
            if told == expected:
                continue
            pairs = zip([*expected, None], [*told, None], strict=False)
            ours, theirs = next(pair for pair in pairs if pair[0] != pair[1])
            raise ValueError(
                f"ranks were given different stages: the copy of stage {piece} on rank {other} has "
                f"{ours}, the one on rank {rank} has {theirs}"
            )
