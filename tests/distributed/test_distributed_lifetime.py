"""Many steps and many pipelines leave nothing behind."""

from __future__ import annotations

import gc
import os

import pytest
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
