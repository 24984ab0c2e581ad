"""Memory in processes: sums in float32, activations on the host, and what a report says of both."""

from __future__ import annotations

import copy

import pytest
import torch
from models import WIDTH, data, is_last, layers, plain_loop, same, same_everywhere, same_gradients
from torch import nn
from torch.nn import functional

import pipert


def _make(model: nn.Module, schedule: pipert.Schedule, **options: object) -> pipert.Pipeline:
    return pipert.Pipeline(
        pipert.split(model, schedule.num_stages),
        schedule=schedule,
        num_microbatches=schedule.num_microbatches,
        loss_fn=functional.mse_loss,
        group=pipert.init(),
        **options,
    )


@pytest.mark.processes(2)
@pytest.mark.parametrize(
    ("name", "per_rank"), [("gpipe", 1), ("1f1b", 1), ("interleaved_1f1b", 2), ("zb_h1", 1)]
)
def test_gradients_with_offload_equal_plain_loop_bit_for_bit(name: str, per_rank: int) -> None:
    schedule = pipert.Schedule.build(
        name, num_ranks=2, num_stages=2 * per_rank, num_microbatches=6
    ).with_offload(ahead=0)
    model, (x, y) = layers(4), data(18)
    reference = copy.deepcopy(model)
    with _make(model, schedule) as pipe:
        for _ in range(2):
            result = pipe.step(x, target=y)
            losses = plain_loop(reference, x, y, 6)
            same(result.losses, losses if is_last(pipe) else None)
            same_gradients(pipe, reference)
        memory = pipe.report().memory
        for rank in memory:
            assert rank.peak_activations == rank.predicted_activations


@pytest.mark.processes(2)
def test_sums_in_float32_are_those_of_threads_bit_for_bit() -> None:
    schedule = pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=4)
    x, y = data(8, dtype=torch.bfloat16)
    threads = layers(4, dtype=torch.bfloat16)
    with pipert.Pipeline(
        pipert.split(threads, 2),
        schedule=schedule,
        num_microbatches=4,
        loss_fn=functional.mse_loss,
        main_grads=True,
    ) as pipe:
        pipe.step(x, target=y)
        norm = pipe.clip_grad_norm_(0.1)
    expected = {name: p.main_grad for name, p in threads.named_parameters()}
    with _make(layers(4, dtype=torch.bfloat16), schedule, main_grads=True) as pipe:
        pipe.step(x, target=y)
        same(pipe.clip_grad_norm_(0.1), norm)
        for name, p in pipe.named_parameters():
            same(p.main_grad, expected[name], name)
            assert p.grad is None


@pytest.mark.processes(2)
def test_what_a_rank_keeps_does_not_grow_with_the_number_of_microbatches() -> None:
    """Frames of outputs and of gradients go with their Release."""

    def kept(microbatches: int) -> list[int]:
        schedule = pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=microbatches)
        x, y = data(4096 * microbatches)
        with _make(layers(4), schedule, measure_memory=True) as pipe:
            for _ in range(3):
                pipe.step(x, target=y)
            memory = pipe.report().memory
        same_everywhere(memory)
        one = 4096 * WIDTH * 4
        for rank in memory:
            assert rank.peak_activations == rank.predicted_activations
            assert rank.predicted_bytes >= one
            assert rank.peak_bytes >= rank.kept_bytes
            # Beside activations, frames: two posted, and those that may not have arrived yet.
            assert rank.kept_bytes <= rank.predicted_bytes + 6 * one
        return [rank.kept_bytes - (rank.rank == 1) * 4 * microbatches for rank in memory]

    assert kept(6) == kept(18)
