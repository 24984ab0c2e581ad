"""Keyed random numbers in processes: the same dropout as without a pipeline, recomputed or not."""

from __future__ import annotations

import copy

import pytest
import torch
from models import WIDTH, data, is_last, same, same_gradients
from torch import nn
from torch.nn import functional

import pipert

SEED = 11


def _layers(count: int) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.4), nn.Tanh()) for _ in range(count)]
    return nn.Sequential(*(layer for three in layers for layer in three))


def _loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(functional.dropout(output, 0.1), target)


def _plain_loop(keyed: pipert.KeyedRandom, model: nn.Module, step: int, num_microbatches: int):
    x, y = data(2 * num_microbatches)
    losses = []
    pieces = zip(x.chunk(num_microbatches), y.chunk(num_microbatches), strict=True)
    for i, (inputs, targets) in enumerate(pieces):
        with keyed.microbatch(step, i):
            loss = _loss(model(inputs), targets)
        loss.backward(torch.full_like(loss, 1 / num_microbatches))
        losses.append(loss.detach())
    return torch.stack(losses)


def _check(schedule: str, sizes: list[int], **options: object) -> None:
    group = pipert.init()
    microbatches = 2 * group.size()
    model = _layers(sum(sizes) // 3)
    reference = copy.deepcopy(model)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    # Functions: no rank knows how many layers the others have, until they tell each other.
    stages = [
        lambda start=start, size=size: model[start : start + size]
        for start, size in zip(starts, sizes, strict=True)
    ]
    x, y = data(2 * microbatches)
    with (
        pipert.KeyedRandom(reference, rng_seed=SEED) as keyed,
        pipert.Pipeline(
            stages,
            schedule=schedule,
            num_microbatches=microbatches,
            loss_fn=_loss,
            rng_seed=SEED,
            group=group,
            **options,
        ) as pipe,
    ):
        pipe.step_index = 3
        for step in (3, 4):
            losses = _plain_loop(keyed, reference, step, microbatches)
            result = pipe.step(x, target=y)
            same(result.losses, losses if is_last(pipe) else None)


def _check_gradients(schedule: str, sizes: list[int], recompute: str) -> None:
    group = pipert.init()
    microbatches = 2 * group.size()
    model = _layers(sum(sizes) // 3)
    reference = copy.deepcopy(model)
    x, y = data(2 * microbatches)
    with (
        pipert.KeyedRandom(reference, rng_seed=SEED) as keyed,
        pipert.Pipeline(
            pipert.split(model, num_stages=len(sizes), balance=sizes),
            schedule=schedule,
            num_microbatches=microbatches,
            loss_fn=_loss,
            rng_seed=SEED,
            recompute=recompute,
            group=group,
        ) as pipe,
    ):
        for step in (0, 1):
            _plain_loop(keyed, reference, step, microbatches)
            pipe.step(x, target=y)
            same_gradients(pipe, reference)


@pytest.mark.processes(2)
@pytest.mark.parametrize(
    ("schedule", "sizes"), [("1f1b", [5, 4]), ("zb_h1", [1, 8]), ("interleaved_1f1b", [2, 3, 3, 1])]
)
def test_two_processes_draw_as_a_plain_loop(schedule: str, sizes: list[int]) -> None:
    for recompute in ("none", "all"):
        _check(schedule, sizes, recompute=recompute)
        _check_gradients(schedule, sizes, recompute)


@pytest.mark.processes(3)
def test_three_processes_draw_as_a_plain_loop() -> None:
    _check("zb_h2", [2, 4, 3], recompute="except_last")
    _check_gradients("zb_h2", [2, 4, 3], "except_last")


@pytest.mark.processes(2)
def test_ranks_with_different_seeds_are_told() -> None:
    group = pipert.init()
    with pytest.raises(ValueError, match="rng_seed is 0 on rank 0 and 1 on rank 1"):
        pipert.Pipeline(
            pipert.split(_layers(2), num_stages=2),
            num_microbatches=2,
            rng_seed=group.rank(),
            group=group,
        )


@pytest.mark.processes(2)
def test_batch_norm_and_dropout_without_a_seed_are_recomputed_with_the_same_bits() -> None:
    group = pipert.init()
    x, y = data(8)
    found = []
    for recompute in ("none", "all"):
        torch.manual_seed(4)
        model = nn.Sequential(*(m for _ in range(2) for m in (*_layers(1), nn.BatchNorm1d(WIDTH))))
        with pipert.Pipeline(
            pipert.split(model, num_stages=2),
            num_microbatches=4,
            loss_fn=_loss,
            recompute=recompute,
            group=group,
        ) as pipe:
            losses = pipe.step(x, target=y).losses
            found.append(
                [
                    losses,
                    *(p.grad for p in pipe.parameters()),
                    *pipe.state_dict().values(),
                    torch.get_rng_state(),
                ]
            )
    for one, other in zip(*found, strict=True):
        same(one, other)


@pytest.mark.processes(3)
@pytest.mark.parametrize("odd", [0, 1, 2])
@pytest.mark.parametrize("call", ["step", "evaluate"])
def test_ranks_at_different_steps_are_an_error_everywhere(odd: int, call: str) -> None:
    group = pipert.init()
    x, y = data(6)
    with pipert.Pipeline(
        pipert.split(_layers(3), num_stages=3),
        num_microbatches=3,
        loss_fn=_loss,
        rng_seed=SEED,
        group=group,
        timeout_s=20,
    ) as pipe:
        pipe.step_index = 7 if group.rank() == odd else 3
        both = rf"got (7 on rank {odd} and 3 on rank \d|3 on rank \d and 7 on rank {odd})"
        message = f"step_index must be the same on all ranks, {both}"
        with pytest.raises(pipert.PipelineError, match=message):
            getattr(pipe, call)(x, target=y)
        pipe.step_index = 3
        pipe.step(x, target=y)
        assert pipe.step_index == 4


@pytest.mark.processes(2)
def test_without_a_seed_no_step_index_is_compared() -> None:
    group = pipert.init()
    x, y = data(4)
    with pipert.Pipeline(
        pipert.split(_layers(2), num_stages=2), num_microbatches=2, loss_fn=_loss, group=group
    ) as pipe:
        pipe.step_index = group.rank()
        pipe.step(x, target=y)
        assert pipe.step_index == group.rank() + 1
