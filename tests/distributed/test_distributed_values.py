"""What stages may hand to each other across processes: any tree of tensors and plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from models import WIDTH, data, is_last, layers, same
from torch import Tensor, nn
from torch.nn import functional

import pipert


def _mean(output: Any, target: Tensor | None = None) -> Tensor:
    return (output - target).abs().mean() if target is not None else output.abs().mean()


def _run(
    make_stages: Callable[[], Sequence[Any]],
    x: Any,
    target: Tensor | None,
    loss_fn: Callable[..., Tensor] = _mean,
    **kwargs: Any,
) -> None:
    """Processes give the losses, outputs and gradients that threads give, twice in a row."""
    group = pipert.init()
    results = []
    for where in (group, None):
        stages = make_stages()
        with pipert.Pipeline(
            stages,
            schedule="1f1b",
            num_microbatches=2,
            num_ranks=group.size(),
            loss_fn=loss_fn,
            group=where,
            timeout_s=20,
        ) as pipe:
            for _ in range(2):
                result = pipe.step(x, target=target, return_outputs=True, **kwargs)
            last = is_last(pipe)
            gradients = {name: p.grad for name, p in pipe.named_parameters()}
        results.append((result, gradients))
    (processes, own), (threads, everybodys) = results
    if last and group.rank() == group.size() - 1:
        same(processes.losses, threads.losses, "losses")
        same(processes.outputs, threads.outputs, "outputs")
    for name, gradient in own.items():
        same(gradient, everybodys[name], name)


class Probe(nn.Module):
    """A stage that runs any function, with a weight that takes part."""

    def __init__(self, function: Callable[..., Any], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.weight = nn.Parameter(torch.randn(WIDTH, dtype=dtype))
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.weight, *args, **kwargs)


@pytest.mark.processes(2)
def test_nested_structures_with_plain_values_cross() -> None:
    def first(weight: Tensor, x: Tensor) -> Any:
        return (
            {"a": [x * weight, None, True], "é\0": (3, -4.5, "text", float("inf"))},
            (x.long(), x > 0, [], {}, ()),
            2**62,
        )

    def second(weight: Tensor, tree: dict[str, Any], others: tuple[Any, ...], big: int) -> Tensor:
        (tensor, none, yes), (three, real, text, infinite) = tree["a"], tree["é\0"]
        whole, positive, empty_list, empty_dict, empty = others
        assert none is None
        assert yes is True
        assert (three, real, text, infinite) == (3, -4.5, "text", float("inf"))
        assert (empty_list, empty_dict, empty, big) == ([], {}, (), 2**62)
        assert whole.dtype == torch.int64
        assert positive.dtype == torch.bool
        assert not whole.requires_grad
        return tensor * weight + whole * positive

    x, y = data(5)
    _run(lambda: [Probe(first), Probe(second)], x, y)


@pytest.mark.processes(2)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "complex64", "complex128"])
def test_dtypes_cross_bit_for_bit(dtype: str) -> None:
    kind = getattr(torch, dtype)

    def stage(weight: Tensor, x: Tensor) -> Tensor:
        assert x.dtype == kind
        return x * weight

    x, y = data(5, dtype=kind)
    _run(lambda: [Probe(stage, kind), Probe(stage, kind)], x, y)


@pytest.mark.processes(2)
def test_every_other_dtype_crosses() -> None:
    kinds = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]
    kinds += [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]

    def first(weight: Tensor, x: Tensor) -> Any:
        return x * weight, [x.abs().mul(9).to(torch.float32).to(kind) for kind in kinds]

    def second(weight: Tensor, product: Tensor, others: list[Tensor]) -> Tensor:
        assert [tensor.dtype for tensor in others] == kinds
        return product * weight + sum(tensor.to(torch.float32) for tensor in others)

    x, y = data(5)
    _run(lambda: [Probe(first), Probe(second)], x, y)


@pytest.mark.processes(2)
def test_strides_arrive_as_they_are_in_threads() -> None:
    """A kernel may add in another order over another layout, so gradients depend on them."""

    def first(weight: Tensor, x: Tensor) -> Any:
        product = x[:, :, None] * weight
        return (
            product.transpose(1, 2),
            product.permute(2, 0, 1),
            (x * weight)[:, None].expand(-1, 5, -1),
            product[:, ::2, 1:],
            product[0],
            torch._neg_view(product),
        )

    seen = []

    def second(weight: Tensor, *tensors: Tensor) -> Tensor:
        seen.append([(tensor.shape, tensor.stride()) for tensor in tensors])
        return sum((tensor * weight[0]).sum() for tensor in tensors) + weight.sum()

    x, _ = data(6)
    _run(lambda: [Probe(first), Probe(second)], x, None)
    if pipert.init().rank() == 1:
        for processes, threads in zip(seen[:4], seen[4:], strict=True):
            assert processes[:3] == threads[:3]  # dense or repeated elements keep their strides
            shapes = [[shape for shape, _ in side] for side in (processes, threads)]
            assert shapes[0] == shapes[1]


@pytest.mark.processes(2)
def test_complex_views_that_are_conjugated_or_negated_cross() -> None:
    def first(weight: Tensor, x: Tensor) -> Any:
        return (x * weight).conj(), (x * weight).conj().imag, (x * weight).real

    def second(weight: Tensor, conjugated: Tensor, imaginary: Tensor, real: Tensor) -> Tensor:
        return conjugated * weight + imaginary + real

    x, y = data(4, dtype=torch.complex64)
    _run(lambda: [Probe(first, torch.complex64), Probe(second, torch.complex64)], x, y)


@pytest.mark.processes(2)
def test_empty_and_zero_dimensional_tensors_cross() -> None:
    def first(weight: Tensor, x: Tensor) -> Any:
        product = x * weight
        return (
            product,
            product[:0],
            product[:, :0],
            product.sum(),
            torch.empty(0, 3, 0),
            x[:0].long(),
        )

    def second(weight: Tensor, product: Tensor, *others: Tensor) -> Tensor:
        shapes = [tuple(tensor.shape) for tensor in others]
        assert shapes == [(0, WIDTH), (len(product), 0), (), (0, 3, 0), (0, WIDTH)], shapes
        return product * weight + sum(tensor.sum() for tensor in others)

    x, y = data(5)
    _run(lambda: [Probe(first), Probe(second)], x, y)


@pytest.mark.processes(2)
def test_zeros_that_torch_keeps_no_elements_of_cross() -> None:
    def first(weight: Tensor, x: Tensor) -> Any:
        return x * weight, torch._efficientzerotensor(x.shape)

    def second(weight: Tensor, product: Tensor, zeros: Tensor) -> Tensor:
        assert zeros.shape == product.shape
        return product * weight + zeros

    x, y = data(5)
    _run(lambda: [Probe(first), Probe(second)], x, y)


@pytest.mark.processes(2)
def test_value_without_a_tensor_crosses() -> None:
    def first(weight: Tensor, x: Tensor) -> Any:
        return {"rows": len(x)}

    def second(weight: Tensor, value: dict[str, int]) -> Tensor:
        return weight * value["rows"]

    x, _ = data(5)
    _run(lambda: [Probe(first), Probe(second)], x, None)


@pytest.mark.processes(2)
def test_the_same_tensor_twice_and_unused_outputs() -> None:
    def first(weight: Tensor, x: Tensor) -> Any:
        product = x * weight
        return product, product, product.exp()

    def second(weight: Tensor, one: Tensor, two: Tensor, unused: Tensor) -> Tensor:
        return one * two.detach() * weight

    x, y = data(5)
    _run(lambda: [Probe(first), Probe(second)], x, y)


@pytest.mark.processes(3)
def test_keyword_arguments_reach_the_stages_that_take_them() -> None:
    def first(weight: Tensor, x: Tensor) -> Tensor:
        return x * weight

    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(WIDTH))

        def forward(self, x: Tensor, *, mask: Tensor, scale: float = 1.0) -> Tensor:
            assert len(mask) == len(x)
            return x * self.weight * mask * scale

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    def stages() -> list[nn.Module]:
        torch.manual_seed(3)
        return [Plain(), Middle(), Plain()]

    x, y = data(5)
    _run(stages, x, y, mask=(x > 0).float(), scale=0.5)


@pytest.mark.processes(3)
def test_frozen_stages_and_parameters_without_gradient() -> None:
    x, y = data(6)
    for frozen in ([0], [1], [2], [0, 1], [0, 2], [1, 2]):

        def stages(frozen: list[int] = frozen) -> list[nn.Module]:
            made = [layers(1, seed=index) for index in range(3)]
            for index in frozen:
                made[index].requires_grad_(False)
            return made

        _run(stages, x, y, functional.mse_loss)


@pytest.mark.processes(3)
def test_functions_without_parameters_are_stages() -> None:
    def stages() -> list[Any]:
        return [layers(1, seed=4), torch.sin, layers(1, seed=5)]

    _run(stages, *data(6), functional.mse_loss)


@pytest.mark.processes(2)
def test_frames_that_outgrow_their_slots_may_be_read_in_another_order_than_sent() -> None:
    schedule = pipert.Schedule.parse_csv("0F0,0F1,0B1,0B0\n1F1,1B1,1F0,1B0\n")
    group = pipert.init()
    for rows in (128, 129):  # 4 KB and more: the first pass sends what the slots don't hold
        losses = {}
        for where in (group, None):
            torch.manual_seed(3)
            stages = [nn.Linear(8, 64), nn.Linear(64, 4)]
            x, y = torch.randn(rows, 8), torch.randn(rows, 4)
            with pipert.Pipeline(
                stages,
                schedule=schedule,
                num_microbatches=2,
                loss_fn=functional.mse_loss,
                group=where,
                broadcast_loss=True,
                timeout_s=20,
            ) as pipe:
                losses[where is None] = pipe.step(x, target=y).losses
        same(losses[False], losses[True], "losses")
