"""What do a thousand ranks cost: time and memory of making, checking and lowering a schedule?

    python benchmarks/schedule_scale.py

Each size is measured in a process of its own on one core, which builds the schedule, verifies it,
simulates it and lowers it: first one rank at a time, as the processes of a real pipeline do, then
all ranks, with all Programs held at once; the total counts the second alone. simulate and lower
verify once more by themselves. Each phase has its seconds on the clock and of the core (on a busy
machine the clock counts what others do), the most memory that the process had meanwhile, and what
it holds afterwards. The exponent is the slope of a line through the logarithms of actions and core
seconds: 1 is linear.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

SIZES = ((64, 256), (128, 512), (256, 1024), (512, 2048), (1024, 4096))
SCHEDULES = ("interleaved_1f1b", "zb_interleaved")
NUM_CHUNKS = 2
PHASES = ("generate", "verify", "simulate", "lower each rank", "lower all ranks")
ONCE = ("generate", "verify", "simulate", "lower all ranks")  # what makes a pipeline's programs
QUESTION = "What time and memory do generate, verify, simulate and lower take, up to 1024 ranks?"


def measure(name: str, num_ranks: int, num_microbatches: int) -> dict[str, Any]:
    """Runs all phases once, in this process.

    Returns:
        Plain JSON values: `actions`, `instructions`, `phases` by name; over all of them `peak_gb`,
        and over generate, verify, simulate and lower all ranks `seconds` and `core_seconds`.
    """
    import pipert

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    phases: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def phase(label: str) -> Iterator[None]:
        _forget_peak()
        clock, core = time.perf_counter(), time.process_time()
        yield
        phases[label] = {
            "seconds": round(time.perf_counter() - clock, 4),
            "core_seconds": round(time.process_time() - core, 4),
            "peak_gb": _memory_gb("VmHWM"),
            "held_gb": _memory_gb("VmRSS"),
        }

    with phase("import"):
        pass
    with phase("generate"):
        schedule = pipert.Schedule.build(
            name,
            num_ranks=num_ranks,
            num_stages=NUM_CHUNKS * num_ranks,
            num_microbatches=num_microbatches,
        )
    with phase("verify"):
        verdict = schedule.verify()
    if not verdict:
        raise SystemExit(verdict.message)
    with phase("simulate"):
        timeline = schedule.simulate()
    makespan = timeline.makespan
    del timeline
    with phase("lower each rank"):
        lowering = pipert.Lowering(schedule)
        num_instructions = sum(len(lowering[rank]) for rank in range(num_ranks))
    del lowering
    with phase("lower all ranks"):
        programs = pipert.lower(schedule)
    if num_instructions != sum(map(len, programs)):
        raise SystemExit("the two ways to lower made different programs")
    whole = [phases[label] for label in ONCE]
    kinds = 3 if name.startswith("zb_") else 2
    return {
        "schedule": name,
        "num_ranks": num_ranks,
        "num_microbatches": num_microbatches,
        "num_chunks": NUM_CHUNKS,
        "actions": kinds * NUM_CHUNKS * num_ranks * num_microbatches,
        "instructions": num_instructions,
        "makespan": makespan,
        "phases": phases,
        "seconds": round(sum(each["seconds"] for each in whole), 2),
        "core_seconds": round(sum(each["core_seconds"] for each in whole), 2),
        "peak_gb": max(each["peak_gb"] for each in phases.values()),
    }


def _forget_peak() -> None:
    """Sets VmHWM to what the process has now; where that can't be, peaks are of all so far."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def _memory_gb(field: str) -> float:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return round(int(line.split()[1]) * 1024 / 1e9, 3)
    raise SystemExit(f"/proc/self/status has no {field}")


def measure_apart(name: str, num_ranks: int, num_microbatches: int) -> dict[str, Any]:
    """The same in a new process, so that no size sees what another left."""
    size = f"{name},{num_ranks},{num_microbatches}"
    command = [sys.executable, __file__, "--measure", size]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    point: dict[str, Any] = json.loads(done.stdout)
    return point


def exponent(points: list[dict[str, Any]], phase: str) -> float:
    """The slope of log(core seconds) over log(actions), by least squares."""
    x = [math.log(point["actions"]) for point in points]
    y = [math.log(max(point["phases"][phase]["core_seconds"], 1e-4)) for point in points]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return round(above / sum((a - mean_x) ** 2 for a in x), 3)


def report(name: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    """Prints a schedule's table.

    Returns:
        Its part of the JSON.
    """
    from pairs import table

    print(f"\n{name}, {NUM_CHUNKS} chunks: core seconds of each phase")
    lines = [
        [f"{p['num_ranks']}x{p['num_microbatches']}", f"{p['actions']:,}"]
        + [f"{p['phases'][phase]['core_seconds']:.2f}" for phase in PHASES]
        + [f"{p['core_seconds']:.1f}", f"{p['seconds']:.1f}", f"{p['peak_gb']:.2f}"]
        for p in points
    ]
    print(table(["size", "actions", *PHASES, "total", "on the clock", "peak GB"], lines))
    exponents = {phase: exponent(points, phase) for phase in PHASES}
    print("exponents: " + ", ".join(f"{phase} {e:.2f}" for phase, e in exponents.items()))
    return {"points": points, "exponents": exponents}


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES))
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="the N smallest alone")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        name, num_ranks, num_microbatches = args.measure.split(",")
        print(json.dumps(measure(name, int(num_ranks), int(num_microbatches))))
        return
    from environment import RESULTS, write_json

    schedules = {
        name: report(name, [measure_apart(name, *size) for size in SIZES[: args.sizes]])
        for name in args.schedules
    }
    out = args.out or RESULTS / "schedule_scale.json"
    write_json(QUESTION, {"unit": "seconds, GB", "schedules": schedules}, out)


if __name__ == "__main__":
    main()
