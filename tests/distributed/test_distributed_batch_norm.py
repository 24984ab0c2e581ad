"""Deferred running statistics in processes, also of two copies of a stage."""

from __future__ import annotations

import copy

import pytest
import torch
from models import WIDTH, data, same_everywhere
from torch import Tensor, nn
from torch.nn import functional

import pipert

MICROBATCHES = 4


def _layers(count: int) -> nn.Sequential:
    torch.manual_seed(1)
    pairs = [m for _ in range(count) for m in (nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))]
    return nn.Sequential(*pairs)


def _whole_batch(model: nn.Sequential, x: Tensor, passes: int) -> dict[str, Tensor]:
    """The norms' buffers after forwards of what their microbatches bring, in one batch each."""
    pieces = x.tensor_split(MICROBATCHES)
    for layer in model:
        if isinstance(layer, nn.BatchNorm1d):
            for _ in range(passes):
                copy_of = copy.deepcopy(layer)
                layer(torch.cat(pieces))
            pieces = [copy_of(piece) for piece in pieces]
        else:
            pieces = [layer(piece) for piece in pieces]
    return dict(model.named_buffers())


def _check(schedule: str, num_stages: int, **options: object) -> None:
    model = _layers(4)
    reference = copy.deepcopy(model)
    x, y = data(13)
    with pipert.Pipeline(
        pipert.split(model, num_stages),
        schedule=schedule,
        num_microbatches=MICROBATCHES,
        num_ranks=2,
        group=pipert.init(),
        loss_fn=functional.mse_loss,
        deferred_batch_norm=True,
        timeout_s=20,
        **options,
    ) as pipe:
        for _ in range(2):
            pipe.step(x, target=y)
        state = pipe.state_dict()
        parameters = list(pipe.parameters())
        assert all(p.grad is not None for p in parameters)
    expected = _whole_batch(reference, x, passes=2)
    found = [name for name in state if name in expected]
    assert found
    for name in found:
        torch.testing.assert_close(state[name], expected[name], msg=name)
    if pipe.schedule.placement.num_copies == 2:
        same_everywhere({name: state[name].tolist() for name in sorted(found)})


@pytest.mark.processes(2)
@pytest.mark.parametrize(
    ("schedule", "num_stages"), [("1f1b", 2), ("zb_h1", 2), ("interleaved_1f1b", 4), ("zb_v", 4)]
)
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_statistics_in_processes_are_those_of_the_whole_batch(
    schedule: str, num_stages: int, recompute: str
) -> None:
    _check(schedule, num_stages, recompute=recompute)


@pytest.mark.processes(2)
@pytest.mark.parametrize("schedule", ["dualpipe", "chimera"])
def test_two_copies_in_two_processes_know_each_others_microbatches(schedule: str) -> None:
    _check(schedule, 2)
