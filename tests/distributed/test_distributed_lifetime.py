"""Many steps and many pipelines leave nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from models import data, layers
from torch.nn import functional

import pipert


def _resources() -> tuple[int, int]:
    """Threads and open files of this process."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def _no_more_than(before: tuple[int, int]) -> None:
    """A connection that is being closed may count in one of the two measurements."""
    after = _resources()
    assert all(new <= old + 1 for new, old in zip(after, before, strict=True)), (after, before)


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _pipeline() -> pipert.Pipeline:
    return pipert.Pipeline(
        pipert.split(layers(4), 4),
        schedule="interleaved_1f1b",
        num_microbatches=4,
        loss_fn=functional.mse_loss,
        group=pipert.init(),
        broadcast_loss=True,
    )


@pytest.mark.processes(2)
def test_three_hundred_steps_grow_nothing() -> None:
    x, y = data(4000)  # 32 KB a message
    with _pipeline() as pipe:

        def steps(count: int) -> None:
            for step in range(count):
                pipe.step(x, target=y)
                if step % 10 == 0:
                    pipe.evaluate(x[:400], target=y[:400])
                    pipe.report()
            gc.collect()

        steps(50)
        resources, resident = _resources(), _resident_bytes()
        steps(300)
        _no_more_than(resources)
        grown = _resident_bytes() - resident
        assert grown < 4 * 2**20, f"{grown} bytes more after 300 steps"


@pytest.mark.processes(2)
def test_ten_pipelines_leave_no_threads_and_no_files() -> None:
    x, y = data(8)

    def make_and_close(count: int) -> None:
        for _ in range(count):
            with _pipeline() as pipe:
                pipe.step(x, target=y)
        gc.collect()

    make_and_close(2)
    before = _resources()
    make_and_close(10)
    _no_more_than(before)


@pytest.mark.processes(3)
@pytest.mark.timeout(60)
def test_a_frozen_store_does_not_stop_the_time_limit() -> None:
    """Rank 0 serves the store. Frozen, it answers nobody: a question to it would never end."""
    frozen = torch.tensor([os.getpid()])
    world = pipert.init()
    assert world is not None
    group = dist.new_group([1, 2])
    dist.broadcast(frozen, 0)
    if world.rank() > 0:
        pipe = pipert.Pipeline(
            pipert.split(layers(2), 2),
            num_microbatches=2,
            loss_fn=functional.mse_loss,
            group=group,
            timeout_s=2,
        )
        x, y = data(8)
        pipe.step(x, target=y)
    dist.barrier()
    if world.rank() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif world.rank() == 1:
        begin = time.monotonic()
        while _state(int(frozen)) != "T":
            assert time.monotonic() - begin < 10
        try:
            with pytest.raises(pipert.PipelineError, match="no progress for 2 s"):
                pipe.step(x, target=y)  # rank 2 doesn't come
            with pytest.raises(pipert.PipelineError, match="store, which doesn't answer"):
                pipe.step(x, target=y)  # connects again, and asks the store for it
            took = time.monotonic() - begin
        finally:
            os.kill(int(frozen), signal.SIGCONT)
        assert took < 20
    dist.barrier()
    if world.rank() > 0:
        pipe.close()


def _state(process: int) -> str:
    """One letter; T is stopped."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
