"""Two processes that share one GPU exchange messages through cuda_ipc, bit for bit."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import pipert

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "distributed"))

from processes import Processes

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]
mse = nn.functional.mse_loss
WIDTH = 64


@pytest.fixture(scope="module")
def two():
    """Two processes, each with the group; started anew when a test has ended one."""
    kept: list[Processes] = []

    def run(function: str, dies: tuple[int, ...] = (), limit_s: float = 60.0, **arguments) -> None:
        if not kept or not kept[0].is_alive():
            kept[:] = [Processes(2)]
        kept[0].run("test_gpu_ipc", function, arguments, set(dies), limit_s)

    yield run
    for processes in kept:
        processes.kill()


def _model(num_stages: int) -> nn.Sequential:
    torch.manual_seed(1)
    pairs = [m for _ in range(num_stages) for m in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    return nn.Sequential(*pairs).to("cuda")


def _data(rows: int, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, WIDTH, generator=generator)
    return x.to("cuda"), torch.randn(rows, WIDTH, generator=generator).to("cuda")


def _pipeline(
    model: nn.Sequential | list[nn.Module], num_stages: int, **options
) -> pipert.Pipeline:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    settings = {"num_microbatches": 8, "loss_fn": mse, "timeout_s": 20.0, **options}
    stages = pipert.split(model, num_stages) if isinstance(model, nn.Sequential) else model
    pipe = pipert.Pipeline(stages, group=pipert.init(), devices=["cuda:0"], **settings)
    assert {edge.transport for edge in pipe.transports} == {"cuda_ipc"}, pipe.transports
    return pipe


def _same_gradients(pipe: pipert.Pipeline, reference: nn.Sequential) -> None:
    expected = dict(reference.named_parameters())
    for name, parameter in pipe.named_parameters():
        difference = (parameter.grad - expected[name].grad).abs().max().item()
        assert torch.equal(parameter.grad, expected[name].grad), f"{name} differs by {difference}"


def _plain(reference: nn.Sequential, x: torch.Tensor, y: torch.Tensor, count: int) -> list[float]:
    losses = []
    for piece, target in zip(x.tensor_split(count), y.tensor_split(count), strict=True):
        loss = mse(reference(piece), target)
        (loss * (len(piece) / len(x))).backward()
        losses.append(loss.item())
    return losses


# --- what the processes run ----------------------------------------------------------------------


def train(schedule: str, num_stages: int, transport: str) -> None:
    reference = _model(num_stages)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    with _pipeline(_model(num_stages), num_stages, schedule=schedule, transport=transport) as pipe:
        own = torch.optim.SGD(pipe.parameters(), lr=0.1)
        for step in range(4):
            x, y = _data(32, seed=step)
            losses = _plain(reference, x, y, 8)
            result = pipe.step(x, target=y)
            _same_gradients(pipe, reference)
            if result.losses is not None:
                assert result.losses.tolist() == losses, (result.losses.tolist(), losses)
            for one in (optimizer, own):
                one.step()
                one.zero_grad()


def change_shapes() -> None:
    """Sizes rise past every slot, fall, and rise again; the last rows are fewer."""
    reference = _model(2)
    with _pipeline(_model(2), 2, transport="cuda_ipc") as pipe:
        for rows in (8, 30, 4000, 17, 100_003, 64, 200_000, 9):
            x, y = _data(rows)
            _plain(reference, x, y, 8)
            pipe.step(x, target=y)
            _same_gradients(pipe, reference)
            for parameter in (*pipe.parameters(), *reference.parameters()):
                parameter.grad = None


class DiesAt(nn.Module):
    """Kills its process in the forward of that number; computes long enough to be waited for."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        big = torch.ones(4096, 4096, device=x.device)
        for _ in range(20):
            big = big @ big * 1e-4
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return x + 0 * big.flatten()[0]


def die(victim: int) -> None:
    rank = pipert.init().rank()
    stages = list(pipert.split(_model(2), 2))
    if rank == victim:
        stages[victim] = nn.Sequential(stages[victim], DiesAt(12))
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    with pipert.Pipeline(
        stages,
        num_microbatches=8,
        loss_fn=mse,
        group=pipert.init(),
        devices=["cuda:0"],
        transport="cuda_ipc",
        timeout_s=20.0,
    ) as pipe:
        x, y = _data(32)
        pipe.step(x, target=y)
        torch.cuda.synchronize()
        start = time.monotonic()
        with pytest.raises(pipert.PipelineError) as caught:
            pipe.step(x, target=y)
        torch.cuda.synchronize()  # nothing on the device waits any more
        took = time.monotonic() - start
    told = str(caught.value)
    assert "gone" in told or "closed" in told, told
    assert took < 8, f"{took:.1f} s: {told}"


class Keeps(nn.Module):
    """Keeps what it has returned last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = x * 2
        return self.kept


def keep() -> None:
    """What was sent outlives the channel, and its memory is used again then."""
    stages = [nn.Sequential(stage, Keeps()) for stage in pipert.split(_model(2), 2)]
    with _pipeline(stages, 2, transport="cuda_ipc") as pipe:
        for rows in (4000, 100_000):
            x, y = _data(rows)
            pipe.step(x, target=y)
    for stage in (stage for stage in stages if hasattr(stage[1], "kept")):  # this rank's
        kept = stage[1].kept.detach().clone()
        assert torch.equal(kept, stage[1].kept)
        size = stage[1].kept.shape
        del stage[1].kept
        for value in range(50):
            assert (torch.full(size, value, device="cuda") == value).all()
    torch.cuda.synchronize()


def warn() -> None:
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _pipeline(_model(2), 2, transport="cuda_ipc").close()
    finally:
        del os.environ["CUDA_DEVICE_MAX_CONNECTIONS"]
    told = [str(one.message) for one in caught]
    assert sum("CUDA_DEVICE_MAX_CONNECTIONS=1" in text for text in told) == 1, told


# --- the tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "num_stages"), [("1f1b", 2), ("zb_h1", 2), ("interleaved_1f1b", 4), ("gpipe", 2)]
)
def test_gradients_and_losses_equal_the_plain_loop_bit_for_bit(two, schedule, num_stages):
    two("train", schedule=schedule, num_stages=num_stages, transport="cuda_ipc")


def test_auto_takes_cuda_ipc_between_processes_on_one_gpu(two):
    two("train", schedule="1f1b", num_stages=2, transport="auto")


def test_sizes_may_change_with_every_step(two):
    two("change_shapes")


def test_sent_tensors_may_be_kept_longer_than_the_channel(two):
    two("keep")


def test_one_connection_to_the_device_is_warned_of_once(two):
    two("warn")


@pytest.mark.parametrize("victim", [0, 1])
def test_death_in_the_middle_of_a_step_is_told_within_seconds(two, victim):
    two("die", dies=(victim,), victim=victim)
