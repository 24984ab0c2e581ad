"""First values of a stage's parameters: the same ones, however the model is cut."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Initialize = Callable[[nn.Module], Any]


def initialize(
    module: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    seed: int,
    init_weights: Initialize | None,
    device: torch.device,
) -> None:
    """Gives `tensors` their first values, and may overwrite others that belong with them.

    Modules draw in turn, inner ones first, each from a generator of its own, seeded with `seed` and
    its path: so what they draw doesn't depend on what else is in the stage. Each is asked by its
    `reset_parameters`, then by `init_weights`.

    Args:
        module: the stage.
        tensors: those to fill, by name.
        seed: of all draws.
        init_weights: of the model.
        device: where the tensors are.

    Raises:
        ValueError: a tensor gets no value. NaN counts as none, and so does the smallest integer.
    """
    wanted = dict(tensors)
    for tensor in wanted.values():
        _mark(tensor)
    for path, inner in _inner_first(module):
        if any(_is_inside(name, path) for name in wanted):
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(_seed_of(seed, path))
                _ask(inner, init_weights)
    if unset := [name for name, tensor in wanted.items() if _has_mark(tensor)]:
        raise ValueError(
            f"nothing says what {', '.join(unset[:5])} {'are' if len(unset) > 1 else 'is'} at "
            "first: expected it in the checkpoint, a reset_parameters() of its module, or "
            "init_weights=..."
        )


def _inner_first(module: nn.Module, prefix: str = "") -> Iterable[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        yield from _inner_first(child, f"{prefix}{name}.")
    yield prefix, module


def _is_inside(name: str, prefix: str) -> bool:
    return name.startswith(prefix)


def _ask(module: nn.Module, init_weights: Initialize | None) -> None:
    with torch.no_grad():
        for name in ("reset_parameters", "_reset_parameters"):
            if callable(reset := getattr(type(module), name, None)):
                reset(module)
        if init_weights is not None:
            init_weights(module)


def _seed_of(seed: int, path: str) -> int:
    digest = hashlib.sha256(f"{seed} {path}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _mark(tensor: Tensor) -> None:
    with torch.no_grad():
        storable = _storable(tensor)
        storable.fill_(_unset_value(storable))


def _has_mark(tensor: Tensor) -> bool:
    if tensor.is_floating_point() or tensor.is_complex():
        return bool(tensor.isnan().any())
    storable = _storable(tensor)
    return bool((storable == _unset_value(storable)).any())


def _storable(tensor: Tensor) -> Tensor:
    """Where a value can be put that is none: bytes, of bools."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


def _unset_value(tensor: Tensor) -> float:
    if tensor.is_floating_point() or tensor.is_complex():
        return float("nan")
    return (
        torch.iinfo(tensor.dtype).min if tensor.dtype.is_signed else torch.iinfo(tensor.dtype).max
    )
