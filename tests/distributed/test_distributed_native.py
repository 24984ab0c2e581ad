"""Native stages in processes: no Python in the loop, the bits of the modules."""

from __future__ import annotations

import copy

import pytest
import torch
from models import data, is_last, layers, plain_loop, same, same_gradients
from torch.nn import functional

import pipert


@pytest.mark.processes(2)
@pytest.mark.parametrize(("schedule", "per_rank"), [("1f1b", 1), ("interleaved_1f1b", 2)])
def test_native_stages_in_processes_equal_the_plain_loop(schedule: str, per_rank: int) -> None:
    group = pipert.init()
    model = layers(2 * group.size() * per_rank)
    reference = copy.deepcopy(model)
    with pipert.Pipeline(
        pipert.split(model, group.size() * per_rank),
        schedule=schedule,
        num_microbatches=4,
        loss_fn=functional.mse_loss,
        group=group,
        stage_kind="native",
    ) as pipe:
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (pipe, reference)]
        for rows in (8, 9, 21):  # even, uneven, and longer than the messages were
            x, y = data(rows, seed=rows)
            result = pipe.step(x, target=y)
            losses = plain_loop(reference, x, y, 4)
            same(result.losses, losses if is_last(pipe) else None)
            same_gradients(pipe, reference)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        assert set(pipe.stage_kinds.values()) == {"native"}
        assert pipe.loss_kind == ("native" if is_last(pipe) else None)


@pytest.mark.processes(2)
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_native_stages_in_processes_draw_what_their_modules_draw(recompute: str) -> None:
    group = pipert.init()
    model = torch.nn.Sequential(
        *(layer for linear in layers(4) for layer in (linear, torch.nn.Dropout(0.3)))
    )
    x, y = data(8)
    found = {}
    for kind in ("module", "native"):
        stages = pipert.split(copy.deepcopy(model), group.size())
        with pipert.Pipeline(
            stages,
            num_microbatches=4,
            loss_fn=functional.mse_loss,
            group=group,
            stage_kind=kind,
            rng_seed=5,
            recompute=recompute if kind == "native" else "none",
        ) as pipe:
            losses = [pipe.step(x, target=y).losses for _ in range(3)]
            assert set(pipe.stage_kinds.values()) == {kind}
            found[kind] = [*losses, *(p.grad for p in pipe.parameters())]
    for one, other in zip(found["native"], found["module"], strict=True):
        same(one, other)
