"""Twins: parameters that stand for others where those can't be used themselves."""

from collections.abc import Container, Iterable, Iterator

import torch
from torch import Tensor, nn


class Twins:
    """Parameters with gradients of their own, one for each first one and device.

    On the first one's device a twin is the same memory, on another one a copy of it.
    """

    def __init__(self) -> None:
        # By id of the first, and device.
        self._twins: dict[tuple[int, torch.device], tuple[nn.Parameter, nn.Parameter]] = {}

    def __iter__(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(first, twin), in the order in which they were made."""
        return iter(self._twins.values())

    def twin(self, first: nn.Parameter, device: torch.device) -> nn.Parameter:
        """The twin there, as the first one is now. Hooks are shared."""
        known, second = self._twins.get((id(first), device), (None, None))
        if known is not first or second is None or not _fits(first, second, device):
            second = nn.Parameter(first.detach().to(device), requires_grad=first.requires_grad)
            vars(second).update(vars(first))
            if not second.is_set_to(first):
                vars(second).pop("main_grad", None)  # of the first one's device
            self._twins[id(first), device] = (first, second)
        elif not second.is_set_to(first):
            with torch.no_grad():
                second.copy_(first)
        if second.requires_grad != first.requires_grad:
            second.requires_grad_(first.requires_grad)
        if second._backward_hooks is not first._backward_hooks:
            second._backward_hooks = first._backward_hooks
        if second._post_accumulate_grad_hooks is not first._post_accumulate_grad_hooks:
            second._post_accumulate_grad_hooks = first._post_accumulate_grad_hooks
        return second

    def keep(self, firsts: Container[int]) -> None:
        """Forgets the twins of all others. `firsts`: by id."""
        self._twins = {key: pair for key, pair in self._twins.items() if key[0] in firsts}

    def add_gradients(self) -> None:
        """first.grad += twin.grad; in place, as backward does. The last twin's comes first."""
        pairs = [
            (first, second) for first, second in self._twins.values() if second.grad is not None
        ]
        while pairs:
            together: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # each first once
            for pair in reversed(pairs):
                together.setdefault(id(pair[0]), pair)
            _add(together.values())
            pairs = [pair for pair in pairs if together[id(pair[0])] is not pair]

    def drop_gradients(self) -> None:
        """Leaves the twins without gradients."""
        for _, second in self._twins.values():
            second.grad = None


@torch.no_grad()
def _add(pairs: Iterable[tuple[nn.Parameter, nn.Parameter]]) -> None:
    mine: list[Tensor] = []
    theirs: list[Tensor] = []
    for first, second in pairs:
        assert second.grad is not None
        gradient = second.grad.to(first.device)
        if first.grad is None:
            first.grad = gradient
        elif first.grad.layout != torch.strided or gradient.layout != torch.strided:
            first.grad = first.grad + gradient
        else:
            mine.append(first.grad)
            theirs.append(gradient)
    if mine:
        torch._foreach_add_(mine, theirs)


def _fits(first: nn.Parameter, second: nn.Parameter, device: torch.device) -> bool:
    """Whether it can go on as the twin there."""
    if second.dtype != first.dtype or second.shape != first.shape:
        return False
    if first.device == device:
        return second.is_set_to(first)
    own = second.device
    return own.type == device.type and (own.index == device.index or own.index is None)
