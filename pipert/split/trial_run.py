"""Trial runs: whether something computes what a model does, outputs and gradients bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

Call = Callable[..., Any]


class Difference(NamedTuple):
    """The first one.

    Attributes:
        text: such as "output[0] differs by up to 0.5".
        is_of_gradients: while outputs are the same.
    """

    text: str
    is_of_gradients: bool = False


def difference(
    model: nn.Module,
    plain: Call,
    other: Call,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    always_backward: bool = False,
) -> Difference | None:
    """Runs both with the same random numbers; leaves state, gradients and generators as they are.

    Where gradients are on, those of the sum of all outputs count too. A backward is only run if
    autograd recorded something else for the one than for the other: what it records needs no
    memory, but gradients need as much as the parameters, twice.

    Args:
        model: whose parameters and buffers both use.
        plain: a call of it.
        other: what is to be the same.
        args: of both; copies are given.
        kwargs: likewise.
        always_backward: whether to compare gradients in any case.
    """
    expected, record = _outputs_and_record(model, plain, args, kwargs)
    got, other_record = _outputs_and_record(model, other, args, kwargs)
    if expected.keys() != got.keys():
        return Difference(f"expected {', '.join(expected)}, got {', '.join(got)}")
    for path, value in expected.items():
        if not _equal(value, got[path]):
            return Difference(f"output{path} differs{_by_how_much(value, got[path])}")
    if record == other_record and not always_backward:
        return None
    gradients = _gradients(model, plain, args, kwargs)
    other_gradients = _gradients(model, other, args, kwargs)
    for name in gradients | other_gradients:
        gradient, other_gradient = gradients.get(name), other_gradients.get(name)
        if not _equal(gradient, other_gradient):
            amount = _by_how_much(gradient, other_gradient)
            return Difference(f"the gradient of {name} differs{amount}", is_of_gradients=True)
    return None


def _outputs_and_record(
    model: nn.Module, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Any]]:
    nothing = torch.empty(0)
    keep_nothing = torch.autograd.graph.saved_tensors_hooks(lambda _: nothing, lambda _: nothing)
    with undisturbed(model), keep_nothing:
        outputs = _outputs(call, args, kwargs)
    return outputs, _record(_roots(outputs))


def _gradients(
    model: nn.Module, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Tensor | None]:
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with undisturbed(model), torch.enable_grad():
        roots = _roots(_outputs(call, args, kwargs))
        if not roots:
            return {}
        ones = [torch.ones_like(root) for root in roots]
        gradients = torch.autograd.grad(roots, list(wanted.values()), ones, allow_unused=True)
        return dict(zip(wanted, gradients, strict=True))


def _outputs(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """By path."""
    args, kwargs = pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), (args, dict(kwargs)))
    result = call(*args, **kwargs)
    try:
        leaves = pytree.tree_flatten_with_path(result)[0]
        return {pytree.keystr(path): leaf for path, leaf in leaves}
    except ValueError:  # a type whose entries have no keys
        return {f"[{i}]": leaf for i, leaf in enumerate(pytree.tree_leaves(result))}


def _roots(outputs: Mapping[str, Any]) -> list[Tensor]:
    return [x for x in outputs.values() if isinstance(x, Tensor) and x.requires_grad]


def _record(roots: Sequence[Tensor]) -> list[Any]:
    """By node of the graph: its name, the parameter of a leaf, and the nodes that it goes to."""
    numbers: dict[Any, int] = {}
    todo: list[Any] = [root.grad_fn for root in roots]
    while todo:
        node = todo.pop()
        if node is not None and node not in numbers:
            numbers[node] = len(numbers)
            todo.extend(following for following, _ in node.next_functions)
    return [[(numbers.get(root.grad_fn), root.output_nr) for root in roots]] + [
        [
            node.name(),
            id(getattr(node, "variable", None)),
            [(numbers.get(following), output) for following, output in node.next_functions],
        ]
        for node in numbers
    ]


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """With seeded random numbers; generators and buffers are put back."""
    devices = {p.device for p in model.parameters() if p.device.type != "cpu"}
    with _state_kept(model), torch.random.fork_rng([device.index for device in devices]):
        torch.manual_seed(0)
        yield


@contextlib.contextmanager
def _state_kept(model: nn.Module) -> Iterator[None]:
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
