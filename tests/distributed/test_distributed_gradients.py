"""A step in processes: bit for bit what a plain loop, and ranks in threads, compute."""

from __future__ import annotations

import copy

import pytest
import torch
from models import (
    data,
    is_last,
    layers,
    plain_loop,
    same,
    same_everywhere,
    same_gradients,
)
from torch import nn
from torch.nn import functional

import pipert

SCHEDULES = [
    ("gpipe", 1),
    ("1f1b", 1),
    ("eager_1f1b", 1),
    ("interleaved_1f1b", 2),
    ("hanayo", 2),
]


def _make(model: nn.Module, schedule: str, per_rank: int, microbatches: int, **options: object):
    group = pipert.init()
    return pipert.Pipeline(
        pipert.split(model, group.size() * per_rank),
        schedule=schedule,
        num_microbatches=microbatches,
        loss_fn=functional.mse_loss,
        group=group,
        **options,
    )


def _step_equals_plain_loop(schedule: str, per_rank: int) -> None:
    size = pipert.init().size()
    for microbatches in (size, 2 * size, 4 * size):
        for rows in (microbatches, 3 * microbatches + 1):  # even, and uneven
            model, x_y = layers(2 * size), data(rows)
            reference = copy.deepcopy(model)
            with _make(model, schedule, per_rank, microbatches) as pipe:
                result = pipe.step(x_y[0], target=x_y[1])
                losses = plain_loop(reference, *x_y, microbatches)
                same_gradients(pipe, reference)
                same(result.losses, losses if is_last(pipe) else None)


@pytest.mark.processes(2)
@pytest.mark.parametrize(("schedule", "per_rank"), SCHEDULES)
def test_two_processes_equal_plain_loop_bit_for_bit(schedule: str, per_rank: int) -> None:
    _step_equals_plain_loop(schedule, per_rank)


@pytest.mark.processes(3)
@pytest.mark.parametrize(("schedule", "per_rank"), SCHEDULES)
def test_three_processes_equal_plain_loop_bit_for_bit(schedule: str, per_rank: int) -> None:
    _step_equals_plain_loop(schedule, per_rank)


@pytest.mark.processes(4)
@pytest.mark.parametrize(("schedule", "per_rank"), SCHEDULES)
def test_four_processes_equal_plain_loop_bit_for_bit(schedule: str, per_rank: int) -> None:
    _step_equals_plain_loop(schedule, per_rank)


@pytest.mark.processes(1)
def test_group_of_one_process_equals_plain_loop_bit_for_bit() -> None:
    model, (x, y) = layers(4), data(9)
    reference = copy.deepcopy(model)
    with _make(model, "1f1b", 1, 4, broadcast_loss=True) as pipe:
        for _ in range(3):
            same(pipe.step(x, target=y).losses, plain_loop(reference, x, y, 4))
        same_gradients(pipe, reference)
        assert len(pipe.report().ranks) == 1


@pytest.mark.processes(2)
@pytest.mark.parametrize(("schedule", "per_rank"), SCHEDULES)
def test_batch_may_grow_and_shrink_from_step_to_step(schedule: str, per_rank: int) -> None:
    """Frames grow past the buffers that their receivers have posted, in both directions."""
    model = layers(4)
    reference = copy.deepcopy(model)
    with _make(model, schedule, per_rank, 4, broadcast_loss=True) as pipe:
        for rows in (4, 4000, 4, 5, 9001, 9000, 40, 8000, 4):
            x, y = data(rows, seed=rows)
            same(pipe.step(x, target=y).losses, plain_loop(reference, x, y, 4))
            x, y = data(3 * rows, seed=rows + 1)
            with torch.no_grad():
                outputs = torch.cat([reference(piece) for piece in x.tensor_split(4)])
            same(pipe(x), outputs if is_last(pipe) else None)
            same_gradients(pipe, reference)


@pytest.mark.processes(2)
@pytest.mark.parametrize(("schedule", "per_rank"), SCHEDULES)
def test_ten_optimizer_steps_equal_threads_bit_for_bit(schedule: str, per_rank: int) -> None:
    """Losses, the clipped norm, validation and weights, with passes of other kinds in between."""

    def train(model: nn.Module, group: object) -> tuple[list[object], pipert.Pipeline]:
        pipe = pipert.Pipeline(
            pipert.split(model, 2 * per_rank),
            schedule=schedule,
            num_microbatches=4,
            num_ranks=2,
            group=group,
            loss_fn=functional.mse_loss,
            broadcast_loss=True,
        )
        optimizer = torch.optim.AdamW(pipe.parameters(), lr=0.05)
        seen = []
        for step in range(10):
            x, y = data(13 + step, seed=step)
            seen.append(pipe.step(x, target=y).loss.item())
            seen.append(pipe.clip_grad_norm_(0.01).item())
            optimizer.step()
            optimizer.zero_grad()
            if step % 3 == 0:
                seen.append(pipe.evaluate(x, target=y).loss.item())
                pipe(x)
        return seen, pipe

    processes, pipe = train(layers(4), pipert.init())
    expected, threads = train(layers(4), None)
    assert processes == expected
    same_everywhere(processes)
    weights = threads.state_dict()
    assert set(pipe.state_dict()) < set(weights)
    for name, weight in pipe.state_dict().items():
        same(weight, weights[name], name)


@pytest.mark.processes(3)
def test_broadcast_loss_gives_every_rank_the_same_bits() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model, (x, y) = layers(3, dtype=dtype), data(7, dtype=dtype)
        reference = copy.deepcopy(model)
        with _make(model, "1f1b", 1, 3, broadcast_loss=True) as pipe:
            result = pipe.step(x, target=y)
            same(result.losses, plain_loop(reference, x, y, 3))
            same_everywhere((result.loss.item(), result.losses.tolist(), str(result.loss.dtype)))
            result = pipe.evaluate(x, target=y)
            same_everywhere((result.loss.item(), result.losses.tolist()))
    model = layers(3)
    with _make(model, "1f1b", 1, 3, broadcast_loss=True) as pipe:
        losses = pipe.step(data(6)[0] * torch.nan, target=data(6)[1]).losses
        assert losses.isnan().all()


@pytest.mark.processes(3)
def test_arguments_are_needed_on_the_first_and_last_rank_alone() -> None:
    model, (x, y) = layers(3), data(7)
    reference = copy.deepcopy(model)
    rank = pipert.init().rank()
    arguments = ((x,), (), ())[rank]
    target = (None, None, y)[rank]
    with _make(model, "1f1b", 1, 3, broadcast_loss=True) as pipe:
        same(pipe.step(*arguments, target=target).losses, plain_loop(reference, x, y, 3))
        same_gradients(pipe, reference)
        outputs = pipe(*arguments)
        assert (outputs is not None) == (rank == 2)
        same(pipe.evaluate(*arguments, target=target).losses, plain_loop(reference, x, y, 3))


@pytest.mark.processes(2)
def test_microbatches_that_are_cut_already() -> None:
    model, (x, y) = layers(2), data(8)
    reference = copy.deepcopy(model)
    with _make(model, "1f1b", 1, 4, broadcast_loss=True) as pipe:
        result = pipe.step(microbatches=list(x.split(2)), target=list(y.split(2)))
        same(result.losses, plain_loop(reference, x, y, 4))
        same_gradients(pipe, reference)


@pytest.mark.processes(3)
def test_clipping_and_norm_equal_threads_and_torch_bit_for_bit() -> None:
    x, y = data(6)
    norms, scaled = [], []
    for group in (pipert.init(), None):
        with pipert.Pipeline(
            pipert.split(layers(3), 3),
            num_microbatches=3,
            loss_fn=functional.mse_loss,
            num_ranks=3,
            group=group,
        ) as pipe:
            pipe.step(x, target=y)
            norms.append(pipe.clip_grad_norm_(0.001))
            scaled.append({name: p.grad for name, p in pipe.named_parameters()})
    same(*norms)
    whole = layers(3)
    plain_loop(whole, x, y, 3)
    same(norms[0], torch.nn.utils.clip_grad_norm_(whole.parameters(), 0.001))
    for name, gradient in scaled[0].items():
        same(gradient, scaled[1][name], name)
    same_everywhere(norms[0].item())


@pytest.mark.processes(3)
def test_rank_builds_and_keeps_its_own_stages_alone() -> None:
    rank, built = pipert.init().rank(), []

    def builder(index: int):
        def build() -> nn.Module:
            built.append(index)
            return layers(1, seed=index)

        return build

    with pipert.Pipeline(
        [builder(index) for index in range(6)],
        schedule="interleaved_1f1b",
        num_microbatches=3,
        loss_fn=functional.mse_loss,
        group=pipert.init(),
    ) as pipe:
        assert built == [rank, rank + 3]
        assert list(pipe.stages) == [rank, rank + 3]
        prefixes = {name.split(".")[0] for name in pipe.state_dict()}
        assert prefixes == {str(rank), str(rank + 3)}
        reference = nn.Sequential(*[layers(1, seed=index) for index in range(6)])
        x, y = data(6)
        pipe.step(x, target=y)
        plain_loop(reference, x, y, 3)
        same_gradients(pipe, reference)
        whole = {name: value + 1 for name, value in reference.state_dict().items()}
        pipe.load_state_dict(whole)
        for name, value in pipe.state_dict().items():
            same(value, whole[name], name)


@pytest.mark.processes(3)
def test_report_is_the_same_on_every_rank() -> None:
    with _make(layers(6), "interleaved_1f1b", 2, 3) as pipe:
        x, y = data(6)
        for _ in range(2):
            pipe.step(x, target=y)
            report = pipe.report()
            same_everywhere((str(report), report.step_s, report.bubble_measured))
            assert [part.rank for part in report.ranks] == [0, 1, 2]
            assert all(part.compute_s > 0 for part in report.ranks)
        pipe.evaluate(x, target=y)
        same_everywhere(str(pipe.report()))
