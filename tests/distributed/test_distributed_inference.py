"""Passes without backward, in processes: nothing is kept, nothing runs twice."""

from __future__ import annotations

import weakref
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from models import data, is_last, layers, same
from torch import Tensor, nn
from torch.nn import functional

import pipert

MICROBATCHES = 8
SCHEDULES = [("1f1b", 2), ("zb_h1", 2), ("interleaved_1f1b", 4), ("zb_v", 4), ("dualpipe", 2)]


def _pipe(model: nn.Sequential, schedule: str, num_stages: int, **options: object):
    default = {"num_microbatches": MICROBATCHES, "group": pipert.init(), "timeout_s": 20}
    return pipert.Pipeline(
        pipert.split(model, num_stages, balance="uniform"),
        schedule=schedule,
        num_ranks=pipert.init().size(),
        loss_fn=functional.mse_loss,
        **{**default, **options},
    )


@pytest.mark.processes(2)
@pytest.mark.parametrize("transport", ["shm", "process_group"])
@pytest.mark.parametrize(("schedule", "num_stages"), SCHEDULES)
def test_each_pass_calls_each_stage_once_for_each_microbatch(
    schedule: str, num_stages: int, transport: str
) -> None:
    model = layers(4)
    x, y = data(2 * MICROBATCHES)
    calls: Counter[int] = Counter()
    seen: list[weakref.ref[Tensor]] = []

    def count(layer: nn.Module, _args: object, output: Tensor) -> None:
        calls[id(layer)] += 1
        seen.append(weakref.ref(output))

    for layer in model:
        layer.register_forward_hook(count)
    with _pipe(model, schedule, num_stages, transport=transport) as pipe:
        for _ in range(2):
            for run in (
                lambda: pipe.step(x, target=y),
                lambda: pipe.evaluate(x, target=y),
                lambda: pipe(x),
            ):
                calls.clear()
                seen.clear()
                run()
                total = torch.tensor(sum(calls.values()))
                dist.all_reduce(total)
                assert int(total) == len(model) * MICROBATCHES
                if pipe.schedule.placement.num_copies == 1:
                    assert set(calls.values()) == {MICROBATCHES}
            assert [tensor for tensor in seen if tensor() is not None] == []


@pytest.mark.processes(2)
@pytest.mark.parametrize("transport", ["shm", "process_group"])
@pytest.mark.parametrize(("schedule", "num_stages"), SCHEDULES)
def test_rounds_of_training_and_evaluation_leave_the_same_behind(
    schedule: str, num_stages: int, transport: str
) -> None:
    model = layers(4)
    x, y = data(2 * MICROBATCHES)
    options = {"transport": transport, "measure_memory": True}
    with _pipe(model, schedule, num_stages, **options) as pipe:
        rounds = []
        for _ in range(4):
            found = []
            for run in (
                lambda: pipe.step(x, target=y),
                lambda: pipe.evaluate(x, target=y),
                lambda: pipe(x),
            ):
                run()
                [(_, activations, _, held)] = pipe._ranks.last_passes().memory()
                found.append((activations, held[-1]))
            rounds.append(found)
        # In the first, gradients are made that stay; over process groups messages have two parts.
        assert rounds[1] == rounds[2] == rounds[3]
        assert [activations for activations, _ in rounds[1][1:]] == [0, 0]


@pytest.mark.processes(2)
def test_outputs_are_the_plain_models() -> None:
    model = layers(4)
    x, y = data(2 * MICROBATCHES + 3)
    expected = torch.cat([model(piece) for piece in x.tensor_split(MICROBATCHES)]).detach()
    with _pipe(model, "1f1b", 2) as pipe:
        for _ in range(2):
            same(pipe(x), expected if is_last(pipe) else None)
            pipe.step(x, target=y)
