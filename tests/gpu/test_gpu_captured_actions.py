"""Two processes on one GPU: each action is a CUDA graph, with the bits of module stages."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pipert
from pipert.captured import NUM_WARMUPS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "distributed"))

from processes import Processes

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]
mse = nn.functional.mse_loss
WIDTH = 64


@pytest.fixture(scope="module")
def two():
    """Two processes, each with the group."""
    kept: list[Processes] = []

    def run(function: str, **arguments) -> None:
        if not kept or not kept[0].is_alive():
            kept[:] = [Processes(2)]
        kept[0].run("test_gpu_captured_actions", function, arguments, set(), 60.0)

    yield run
    for processes in kept:
        processes.kill()


class Syncs(nn.Module):
    """Its forward waits for the device."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 if x.sum().item() < 1e9 else 2)


class SyncsBackward(torch.autograd.Function):
    """Its backward does."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * (1 if gradient.sum().item() < 1e9 else 2)


class InBackward(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return SyncsBackward.apply(x)


def _model(extra: list[nn.Module], num_stages: int) -> nn.Sequential:
    torch.manual_seed(1)
    stages = []
    for _ in range(num_stages):
        layers = (nn.Linear(WIDTH, WIDTH), nn.Tanh(), *extra, nn.Linear(WIDTH, WIDTH))
        stages.append(nn.Sequential(*layers))
    return nn.Sequential(*stages).to("cuda:0")


def _data(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, WIDTH, generator=generator)
    return x.to("cuda:0"), torch.randn(rows, WIDTH, generator=generator).to("cuda:0")


def _pipeline(model: nn.Sequential, kind: str, **options) -> pipert.Pipeline:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    return pipert.Pipeline(
        list(model),
        group=pipert.init(),
        devices=["cuda:0"],
        num_microbatches=4,
        loss_fn=mse,
        timeout_s=20.0,
        stage_kind=kind,
        **options,
    )


# --- what the processes run ----------------------------------------------------------------------


def compare(schedule: str, num_stages: int, extra: str) -> None:
    """Captured against module; both draw the same dropout from the same seed."""
    modules = {"none": [], "dropout": [nn.Dropout(0.3)], "syncs": [Syncs()]}
    modules["backward"] = [InBackward()]
    found: dict[str, list[torch.Tensor | None]] = {}
    for kind in ("module", "captured"):
        model = _model(modules[extra], num_stages)
        with _pipeline(model, kind, schedule=schedule) as pipe:
            optimizer = torch.optim.SGD(pipe.parameters(), lr=0.1)
            torch.cuda.manual_seed(7)
            found[kind] = []
            for step in range(NUM_WARMUPS + 4):
                x, y = _data(18, seed=step)
                result = pipe.step(x, target=y, return_outputs=True)
                found[kind] += [result.losses, result.outputs]
                found[kind] += [p.grad.clone() for p in pipe.parameters()]
                optimizer.step()
                optimizer.zero_grad()
            kinds = set(pipe.stage_kinds.values())
    print(pipert.init().rank(), schedule, extra, kinds)
    if extra in ("none", "dropout"):
        assert kinds == {"captured"}, kinds
    else:
        assert all(kind.startswith("module: it can't be recorded") for kind in kinds), kinds
    for number, (one, other) in enumerate(zip(found["captured"], found["module"], strict=True)):
        assert (one is None) == (other is None), number
        assert one is None or torch.equal(one, other), (number, (one - other).abs().max().item())


def draw() -> None:
    """The same batch, other masks in each replay; and memory doesn't grow."""
    x, y = _data(16, seed=0)
    with _pipeline(_model([nn.Dropout(0.5)], 2), "captured") as pipe:
        losses = []
        for step in range(NUM_WARMUPS + 8):
            for parameter in pipe.parameters():
                parameter.grad = None
            result = pipe.step(x, target=y)
            if result.loss is not None:
                losses.append(result.loss.item())
            if step == NUM_WARMUPS + 2:
                torch.cuda.synchronize()
                before = torch.cuda.memory_allocated()
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() <= before + 4096
        assert set(pipe.stage_kinds.values()) == {"captured"}, pipe.stage_kinds
        assert len(set(losses)) == len(losses), losses


# --- the tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", ["none", "dropout"])
@pytest.mark.parametrize(
    ("schedule", "num_stages"), [("1f1b", 2), ("zb_h1", 2), ("interleaved_1f1b", 4)]
)
def test_replayed_actions_have_the_bits_of_modules(two, schedule, num_stages, extra):
    two("compare", schedule=schedule, num_stages=num_stages, extra=extra)


@pytest.mark.parametrize("extra", ["syncs", "backward"])
def test_a_stage_that_waits_for_the_device_runs_as_it_is_and_says_why(two, extra):
    two("compare", schedule="1f1b", num_stages=2, extra=extra)
    two("compare", schedule="1f1b", num_stages=2, extra="none")  # and leaves nothing behind


def test_each_replay_draws_other_dropout_masks(two):
    two("draw")
