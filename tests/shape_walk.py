"""Walks: passes through one pipeline whose shapes, dtypes and structures change as they like.

Each pass is compared, bit for bit, with a plain loop over its microbatches. Used in threads and in
processes alike.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from plain_loop import accumulation_order
from torch import Tensor, nn

WIDTH = 8


@dataclass(frozen=True)
class Walk:
    """One pass.

    kind: "step" or "evaluate".
    shapes: (rows, length) of each microbatch, which are given as they are; or, if there is one
        alone, of the whole batch, which the pipeline cuts.
    dtype: of the input, by its name in torch.
    """

    kind: str
    shapes: tuple[tuple[int, int], ...]
    dtype: str = "float32"

    def pieces(self, num_microbatches: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Input and target of each microbatch."""
        generator = torch.Generator().manual_seed(seed)
        made = [
            [
                torch.randn(rows, length, WIDTH, generator=generator).to(self.torch_dtype) * 0.5,
                torch.randn(rows, length, WIDTH, generator=generator),
            ]
            for rows, length in self.shapes
        ]
        if self.is_cut:
            return [(x, y) for x, y in made]
        ((x, y),) = made
        return list(
            zip(x.tensor_split(num_microbatches), y.tensor_split(num_microbatches), strict=True)
        )

    @property
    def is_cut(self) -> bool:
        return len(self.shapes) > 1

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


class Mixer(nn.Module):
    """Takes any number of rows and any length, and mixes along the length; keeps the dtype."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = nn.LayerNorm(WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.outer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(self.norm(x.to(self.inner.weight.dtype)))
        scores = torch.softmax(h @ h.transpose(-1, -2), -1)
        return x + torch.tanh(self.outer(scores @ h)).to(x.dtype)


class Shifter(Mixer):
    """A mixer that takes and returns values of a structure that the microbatch's rows decide."""

    def forward(self, *values: Any) -> Any:
        y = super().forward(gathered(values))
        rows = len(y)
        half = (rows + 1) // 2
        forms: list[Callable[[], Any]] = [
            lambda: y,
            lambda: (y[:half], y[half:]),
            lambda: {"top": y[:half], "rest": [None, y[half:], 2.5], "rows": rows},
            lambda: [y, rows, "three", True],
            lambda: (y, torch.arange(rows), {"mask": y.detach() > 0}),
        ]
        return forms[rows % len(forms)]()


def gathered(value: Any) -> Tensor:
    """The rows of all the value's floating tensors, one after the other."""
    found: list[Tensor] = []

    def visit(part: Any) -> None:
        if isinstance(part, Tensor) and part.is_floating_point():
            found.append(part)
        for inner in part.values() if isinstance(part, dict) else ():
            visit(inner)
        for inner in part if isinstance(part, tuple | list) else ():
            visit(inner)

    visit(value)
    return found[0] if len(found) == 1 else torch.cat(found)


def loss_fn(output: Any, target: Tensor) -> Tensor:
    return (gathered(output).float() - target).square().mean()


class Loop:
    """The plain loop beside a pipeline: copies of its stages, run one after the other."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        self.stages = copy.deepcopy(list(stages))

    def forward(self, value: Any) -> Any:
        for stage in self.stages:
            value = stage(*value) if isinstance(value, tuple) else stage(value)
        return value

    def zero_grad(self) -> None:
        for stage in self.stages:
            stage.zero_grad()

    def step(
        self, pieces: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float], schedule: Any
    ) -> list[Tensor]:
        """Fills `.grad`, each stage's added up in the schedule's order; returns the losses."""
        parameters = [p for stage in self.stages for p in stage.parameters()]
        losses, single = [], []
        for (x, y), weight in zip(pieces, weights, strict=True):
            loss = loss_fn(self.forward(x), y)
            gradients = torch.autograd.grad(
                loss, parameters, torch.full_like(loss, weight), allow_unused=True
            )
            losses.append(loss.detach())
            single.append(dict(zip(parameters, gradients, strict=True)))
        order = accumulation_order(schedule)
        for stage, module in enumerate(self.stages):
            for parameter in module.parameters():
                sums: list[Tensor | None] = [parameter.grad]
                sums += [None] * (schedule.placement.num_copies - 1)
                for index in range(len(sums)):
                    for microbatch in order.get(stage + index * len(self.stages), []):
                        sums[index] = _sum(sums[index], single[microbatch][parameter])
                for other in sums[1:]:
                    sums[0] = _sum(sums[0], other)
                parameter.grad = sums[0]
        return losses

    @torch.no_grad()
    def outputs(self, pieces: Sequence[tuple[Tensor, Tensor]]) -> list[Any]:
        return [self.forward(x) for x, _ in pieces]


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def check_walk(pipe: Any, loop: Loop, walks: Sequence[Walk], accumulate: bool = False) -> None:
    """Takes the passes, and compares what this process has of each with the plain loop.

    accumulate: whether gradients add up over the steps.
    """
    count = pipe.schedule.num_microbatches
    for seed, walk in enumerate(walks):
        what = f"pass {seed}, {walk}"
        pieces = walk.pieces(count, seed)
        if not accumulate:
            loop.zero_grad()
            for parameter in pipe.parameters():
                parameter.grad = None
        rows = [len(x) for x, _ in pieces]
        weights = [1 / count if walk.is_cut else n / sum(rows) for n in rows]
        if walk.kind == "step":
            result = _run(pipe.step, walk, pieces, return_outputs=True)
            losses = loop.step(pieces, weights, pipe.schedule)
        else:
            result = _run(pipe.evaluate, walk, pieces, return_outputs=True)
            losses = [loss_fn(o, y) for o, (_, y) in zip(loop.outputs(pieces), pieces, strict=True)]
        if result.losses is not None:
            _same(result.losses, torch.stack(losses), f"{what}: losses")
        _check_outputs(result.outputs, loop.outputs(pieces), walk, what)
        _check_gradients(pipe, loop, what)


def _run(call: Callable[..., Any], walk: Walk, pieces: list[Any], **options: Any) -> Any:
    xs, ys = [x for x, _ in pieces], [y for _, y in pieces]
    if walk.is_cut:
        return call(microbatches=xs, target=ys, **options)
    return call(torch.cat(xs), target=torch.cat(ys), **options)


def _check_outputs(found: Any, expected: list[Any], walk: Walk, what: str) -> None:
    """Of the microbatches that end in this process."""
    if found is None:
        return
    if walk.is_cut:
        for got, output in zip(found, expected, strict=True):
            if got is not None:
                _same(gathered(got), gathered(output), f"{what}: output")
    elif isinstance(found, Tensor) and len(found) == sum(map(len, expected)):
        _same(found, torch.cat(expected), f"{what}: output")


def _check_gradients(pipe: Any, loop: Loop, what: str) -> None:
    for stage, module in pipe.stages.items():
        if stage >= len(loop.stages):
            continue  # of the second copy, whose sums are the first's too
        expected = dict(loop.stages[stage].named_parameters())
        for name, parameter in module.named_parameters():
            _same(parameter.grad, expected[name].grad, f"{what}: gradient of {stage}.{name}")


def _same(got: Tensor | None, expected: Tensor | None, what: str) -> None:
    if got is None or expected is None:
        assert got is expected, f"{what}: got {got}, expected {expected}"
        return
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), what
    assert torch.equal(got, expected), f"{what}: got {got}, expected {expected}"


def random_walk(seed: int, num_microbatches: int, passes: int) -> list[Walk]:
    """The same for the same seed, on every rank."""
    draw = random.Random(seed)
    walks = []
    for _ in range(passes):
        is_cut = draw.random() < 0.6
        shapes = [
            (draw.choice([1, 2, 3, 7, 16]), draw.choice([1, 3, 8, 65]))
            for _ in range(num_microbatches)
        ]
        if not is_cut:
            shapes = [(num_microbatches + draw.randrange(9), draw.choice([1, 5, 40]))]
        dtype = draw.choice(["float32", "float32", "float64", "bfloat16", "float16"])
        walks.append(Walk(draw.choice(["step", "step", "evaluate"]), tuple(shapes), dtype))
    return walks
