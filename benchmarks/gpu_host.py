"""Where does the host's time of a captured step go, and what does it depend on?

Each row is one pipeline that nothing else runs beside. Its whole step is timed with a device that
is idle, with one that still runs the step before, and after the host has waited 20 ms for the
device (its core may have slept, its caches gone cold). The parts are timed alone, with an idle
device: comparing what the recording was made under, copying the batch in, the launch of the graph,
copying results out. A graph of the same pipeline with other sizes tells what a launch depends on.

python benchmarks/gpu_host.py --out host.json

Without a GPU, with a graph that does nothing in the place of the device's, on the CPU: the host's
own part of a step.

python benchmarks/gpu_host.py --no-device --out benchmarks/results/captured_host.json
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

REPEATS = 30
REPEATS_WITHOUT = 2000  # a device: they cost nothing
WARMUPS = 8  # more than the passes that run before one is recorded
COLD_CYCLES = 36_000_000  # 20 ms at 1.8 GHz


class Nothing:
    """A recording that does nothing."""

    def capture(self, run: Callable[[], Any]) -> Any:
        return run()

    def prepare(self) -> None:
        pass

    def replay(self) -> None:
        pass


def _times(
    run: Callable[[], object], before: Callable[[], object], repeats: int = REPEATS
) -> list[float]:
    """Microseconds of the host for each `run`, after `before`."""
    times = []
    for _ in range(repeats):
        before()
        begun = time.perf_counter()
        run()
        times.append((time.perf_counter() - begun) * 1e6)
        _synchronize()
    return times


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_row(name: str, pipe: Any, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    """One captured pipeline; gradients are set to None before each step, outside of the times."""
    parameters = list(pipe.parameters())

    def clear() -> None:
        for parameter in parameters:
            parameter.grad = None

    def step() -> None:
        pipe.step(x, target=y)

    def busy() -> None:
        clear()
        step()
        clear()

    def cold() -> None:
        clear()
        torch.cuda._sleep(COLD_CYCLES)
        torch.cuda.synchronize()

    for _ in range(WARMUPS):
        clear()
        step()
    _synchronize()
    captured = pipe._captured
    if captured.reason is not None:
        return {"row": name, "not captured": captured.reason}
    found = next(reversed(captured._recorded.values()))
    parts: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "step": (step, clear),
        "step, device busy": (step, busy),
        "step, after 20 ms": (step, cold),
        "compare": (captured._conditions.state, clear),
        "batch in": (lambda: found.inputs.fill([x, y]), clear),
        "launch": (found.recording.replay, clear),
        "launch, device busy": (found.recording.replay, found.recording.replay),
        "results out": (found.result.slot.copies, clear),
    }
    row: dict[str, Any] = {"row": name}
    has_device = x.is_cuda
    for part, (run, before) in parts.items():
        if not has_device and ("busy" in part or "after" in part):
            continue
        times = _times(run, before, REPEATS if has_device else REPEATS_WITHOUT)
        row[part] = round(statistics.median(times), 1)
        if part == "step":
            row["step p10"] = round(sorted(times)[len(times) // 10], 1)
    return row


def measure() -> list[dict[str, Any]]:
    """The rows of gpu.py, all stages on one rank."""
    import gpu

    import pipert

    rows = []
    for row in gpu.ROWS:
        with pipert.Pipeline(
            row.modules(),
            schedule="interleaved_1f1b",
            num_ranks=1,
            devices=["cuda:0"],
            num_microbatches=row.microbatches,
            loss_fn=gpu.loss_fn,
            stage_kind="captured",
        ) as pipe:
            rows.append(measure_row(str(row), pipe, *row.batch()))
    return rows


def measure_without_device() -> list[dict[str, Any]]:
    """Four stages of 4 x Linear(64) on one rank: with a recording, the numbers don't matter."""
    from torch import nn

    import pipert
    from pipert.captured import CapturedSteps
    from pipert.captured.conditions import Conditions

    cpu = torch.device("cpu")
    rows = []
    for microbatches in (8, 32):
        stages = [nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))) for _ in range(4)]
        with pipert.Pipeline(
            stages,
            schedule="interleaved_1f1b",
            num_ranks=1,
            num_microbatches=microbatches,
            loss_fn=nn.functional.mse_loss,
            stage_kind="captured",
        ) as pipe:
            conditions = Conditions(pipe.stages.values(), cpu, list)
            watch = pipe._ranks.watch_leaves
            pipe._captured = CapturedSteps(conditions, cpu, Nothing, None, watch)
            x, y = (torch.randn(4 * microbatches, 64) for _ in range(2))
            name = f"4 x 4xLinear(64), M={microbatches}, no device"
            rows.append(measure_row(name, pipe, x, y))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-device", action="store_true", help="the host's own part, on the CPU")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    if not options.no_device and not torch.cuda.is_available():
        sys.exit("a CUDA device is needed: torch finds none (or --no-device)")
    rows = measure_without_device() if options.no_device else measure()
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    from environment import write_json

    write_json("Where does the host's time of a captured step go?", {"rows": rows}, options.out)


if __name__ == "__main__":
    main()
