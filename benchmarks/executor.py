"""What does an instruction cost where stages do nothing?

    torchrun --nproc-per-node 2 benchmarks/executor.py

Programs of 1f1b and of interleaved_1f1b run through real Executors in C++, their stages blank: what
is left is the loop itself, the channel and, where there are several ranks, the waits of one for the
other. Ranks are threads of the first process, with its channels; then they are the two processes,
over shared memory. (Without torchrun the latter is left out.) Of many passes in one run the median
counts, of the slower rank, divided by the instructions of the rank that has the most. One size
grows at a time; an exponent is fitted through the logarithms: 1 is linear growth, less is a fixed
cost shared by more work. More ranks than cores take turns on them, so those rows are divided by the
cores' share.
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib
import statistics
from typing import Any

import torch
import torch.distributed as dist
from environment import RESULTS, write_json
from pairs import Summary, table

import pipert
from pipert._C import Rehearsal, rehearse, rehearse_rank
from pipert.processes.connection import Connection
from pipert.processes.distributed import Peers

QUESTION = "What does an instruction cost where stages do nothing?"
SWEEPS: dict[str, list[tuple[int, int, int]]] = {  # (ranks, stages a rank, microbatches)
    "microbatches, one rank": [(1, 1, m) for m in (16, 64, 256, 1024)],
    "stages, one rank": [(1, s, 64) for s in (1, 2, 4, 8, 16)],
    "microbatches, two ranks": [(2, 1, m) for m in (16, 64, 256, 1024)],
    "stages, two ranks": [(2, s, 64) for s in (1, 2, 4, 8)],
    "ranks": [(p, 1, 64) for p in (2, 4, 8)],
}
PROCESS_SWEEPS: dict[str, list[tuple[int, int, int]]] = {
    "microbatches, two processes": [(2, 1, m) for m in (16, 64, 256, 1024)],
    "stages, two processes": [(2, s, 64) for s in (1, 2, 4, 8)],
}


def programs_of(ranks: int, stages: int, microbatches: int) -> tuple[Any, Any]:
    """The Programs, and the placement."""
    schedule = pipert.Schedule.build(
        "1f1b" if stages == 1 else "interleaved_1f1b",
        num_ranks=ranks,
        num_microbatches=microbatches,
        num_stages=ranks * stages,
    )
    return pipert.lower(schedule), schedule.placement


def measure(size: tuple[int, int, int], passes: int) -> dict[str, Any]:
    """Ranks as threads of this process."""
    ranks = size[0]
    programs, placement = programs_of(*size)
    rehearsal = rehearse(
        programs, placement, num_passes=passes, spin_us=200 if ranks <= os.cpu_count() else 0
    )
    return summary(size, programs, seconds_of(rehearsal, passes))


def measure_processes(
    size: tuple[int, int, int], passes: int, group: dist.ProcessGroup
) -> dict[str, Any]:
    """Ranks as processes of a group. A collective call."""
    programs, placement = programs_of(*size)
    program = programs[group.rank()]
    channels = Connection(Peers(group), program, torch.device("cpu"), {}, "shm").channels
    mine = seconds_of(rehearse_rank(program, placement, channels, num_passes=passes), passes)
    times = torch.tensor(mine, dtype=torch.float64)
    dist.all_reduce(times, dist.ReduceOp.MAX, group)
    return summary(size, programs, times.tolist())


def seconds_of(rehearsal: Rehearsal, passes: int) -> list[float]:
    """Of each pass but the first tenth."""
    if rehearsal.ending != "completed":
        raise RuntimeError(f"the rehearsal {rehearsal.ending}: {rehearsal.message}")
    return [1e-9 * ns for ns in rehearsal.pass_ns[passes // 10 :]]


def summary(size: tuple[int, int, int], programs: Any, seconds: list[float]) -> dict[str, Any]:
    ranks, stages, microbatches = size
    most = max(len(program.instructions) for program in programs)
    share = min(1.0, (os.cpu_count() or 1) / ranks)
    return {
        "num_ranks": ranks,
        "stages_per_rank": stages,
        "num_microbatches": microbatches,
        "instructions": most,
        "microseconds_an_instruction": vars(Summary.of([1e6 * s * share / most for s in seconds])),
    }


def exponent(points: list[dict[str, Any]]) -> float:
    """Of the pass's time in the number of instructions of all ranks."""
    xs, ys = [], []
    for point in points:
        total = point["instructions"] * point["num_ranks"]
        xs.append(math.log(total))
        ys.append(math.log(total * point["microseconds_an_instruction"]["median"]))
    return round(statistics.linear_regression(xs, ys).slope, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--passes", type=int, default=200)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "executor.json")
    args = parser.parse_args()
    group = pipert.init()
    leads = group is None or group.rank() == 0
    answers: dict[str, list[dict[str, Any]]] = {}
    if leads:
        answers = {name: [measure(s, args.passes) for s in sizes] for name, sizes in SWEEPS.items()}
    if group is not None:
        dist.barrier()
        for name, sizes in PROCESS_SWEEPS.items():
            answers[name] = [measure_processes(size, args.passes, group) for size in sizes]
        dist.destroy_process_group()
    if not leads:
        return
    sweeps = {
        name: {"points": points, "exponent": exponent(points)} for name, points in answers.items()
    }
    lines = [
        [
            name,
            point["num_ranks"],
            point["stages_per_rank"],
            point["num_microbatches"],
            point["instructions"],
            *(point["microseconds_an_instruction"][part] for part in ("median", "p10", "p90")),
            sweep["exponent"],
        ]
        for name, sweep in sweeps.items()
        for point in sweep["points"]
    ]
    head = ["sweep", "ranks", "stages", "microbatches", "instructions"]
    print(table([*head, "us each", "p10", "p90", "exponent"], lines))
    write_json(QUESTION, {"unit": "microseconds", "sweeps": sweeps}, args.out)


if __name__ == "__main__":
    main()
