"""Checks that the stages of a model compute what it computes, bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from pipert.split.in_turn import run_in_turn
from pipert.split.outputs import Outputs, only
from pipert.stages import Stages

Check = bool | Literal["gradients"]


def check_same(
    model: nn.Module,
    stages: Stages,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    own_kwargs: Mapping[str, Any],
    with_gradients: bool,
    advice: str,
    outputs: Outputs = None,
) -> None:
    """Runs the model and its stages on the example, in the mode that they are in.

    State, gradients and random number generators are left as they are.

    Args:
        model: the unpartitioned one.
        stages: with specs.
        args: positional arguments of one forward.
        kwargs: its keyword arguments.
        own_kwargs: more of them, which the stages have inside.
        with_gradients: whether to compare the parameters' gradients too, of the sum of all outputs.
        advice: the end of the message, if outputs differ.
        outputs: those of the model that the stages return; None: all.

    Raises:
        ValueError: an output or a gradient differs; the message says which.
    """

    def plain(*args: Any, **kwargs: Any) -> Any:
        return only(outputs, model(*args, **kwargs, **own_kwargs), type(model).__name__)

    expected, expected_gradients = _run(model, plain, args, kwargs, with_gradients)
    got, got_gradients = _run(
        model, lambda *a, **k: run_in_turn(stages, a, k), args, kwargs, with_gradients
    )
    name = type(model).__name__
    if expected.keys() != got.keys():
        raise ValueError(
            f"the stages of {name} don't compute what it does: expected {', '.join(expected)}, got "
            f"{', '.join(got)}{advice}"
        )
    for path, value in expected.items():
        if not _equal(value, got[path]):
            raise ValueError(
                f"the stages of {name} don't compute what it does: output{path} differs"
                f"{_by_how_much(value, got[path])}{advice}"
            )
    for path, value in expected_gradients.items():
        if not _equal(value, got_gradients[path]):
            raise ValueError(
                f"the stages of {name} don't compute its gradients: that of {path} differs"
                f"{_by_how_much(value, got_gradients[path])}"
            )


def _run(
    model: nn.Module,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    with_gradients: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs by path and gradients by name, with everything else as before."""
    args, kwargs = pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), (args, dict(kwargs)))
    parameters = dict(model.named_parameters())
    devices = {p.device for p in parameters.values() if p.device.type != "cpu"}
    with (
        _state_kept(model),
        torch.random.fork_rng([device.index for device in devices]),
        torch.set_grad_enabled(with_gradients),
    ):
        torch.manual_seed(0)
        outputs = _flat(call(*args, **kwargs))
        roots = [x for x in outputs.values() if isinstance(x, Tensor) and x.requires_grad]
        if not with_gradients or not roots:
            return outputs, {}
        wanted = {name: p for name, p in parameters.items() if p.requires_grad}
        gradients = torch.autograd.grad(
            roots, list(wanted.values()), [torch.ones_like(x) for x in roots], allow_unused=True
        )
        return outputs, dict(zip(wanted, gradients, strict=True))


@contextlib.contextmanager
def _state_kept(model: nn.Module) -> Iterator[None]:
    """Puts back what a forward does to buffers."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    owners = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, buffers in owners:
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _flat(value: Any) -> dict[str, Any]:
    try:
        return {pytree.keystr(path): leaf for path, leaf in pytree.tree_flatten_with_path(value)[0]}
    except ValueError:  # a type whose entries have no keys
        return {f"[{i}]": leaf for i, leaf in enumerate(pytree.tree_leaves(value))}


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        same = a == b
        if a.is_floating_point() or a.is_complex():
            same |= a.isnan() & b.isnan()
        return bool(same.all())
    return type(a) is type(b) and bool(a == b)


def _by_how_much(a: Any, b: Any) -> str:
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
        return f" by up to {(a.double() - b.double()).abs().max().item():.3g}"
    return ""
