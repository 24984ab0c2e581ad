"""What does an instruction cost where stages do nothing?

    python benchmarks/executor.py

Programs of 1f1b and of interleaved_1f1b run through real Executors in C++, their ranks as threads
with the channels of one process, their stages blank: what is left is the loop itself, the channel
and, where there are several ranks, the waits of one for the other. Of many passes in one run the
median counts, divided by the instructions of the rank that has the most. One size grows at a time;
an exponent is fitted through the logarithms: 1 is linear growth, less is a fixed cost shared by
more work. More ranks than cores take turns on them, so those rows are divided by the cores' share.
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib
import statistics
from typing import Any

from environment import RESULTS, write_json
from pairs import Summary, table

import pipert
from pipert._C import rehearse

QUESTION = "What does an instruction cost where stages do nothing?"
SWEEPS: dict[str, list[tuple[int, int, int]]] = {  # (ranks, stages a rank, microbatches)
    "microbatches, one rank": [(1, 1, m) for m in (16, 64, 256, 1024)],
    "stages, one rank": [(1, s, 64) for s in (1, 2, 4, 8, 16)],
    "microbatches, two ranks": [(2, 1, m) for m in (16, 64, 256, 1024)],
    "stages, two ranks": [(2, s, 64) for s in (1, 2, 4, 8)],
    "ranks": [(p, 1, 64) for p in (2, 4, 8)],
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
    ranks, stages, microbatches = size
    programs, placement = programs_of(*size)
    rehearsal = rehearse(
        programs, placement, num_passes=passes, spin_us=200 if ranks <= os.cpu_count() else 0
    )
    if rehearsal.ending != "completed":
        raise RuntimeError(f"the rehearsal {rehearsal.ending}: {rehearsal.message}")
    most = max(len(program.instructions) for program in programs)
    share = min(1.0, (os.cpu_count() or 1) / ranks)
    each = [1e-3 * ns * share / most for ns in rehearsal.pass_ns[passes // 10 :]]
    return {
        "num_ranks": ranks,
        "stages_per_rank": stages,
        "num_microbatches": microbatches,
        "instructions": most,
        "microseconds_an_instruction": vars(Summary.of(each)),
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
    sweeps: dict[str, Any] = {}
    lines = []
    for name, sizes in SWEEPS.items():
        points = [measure(size, args.passes) for size in sizes]
        sweeps[name] = {"points": points, "exponent": exponent(points)}
        for point in points:
            cost = point["microseconds_an_instruction"]
            lines.append(
                [
                    name,
                    point["num_ranks"],
                    point["stages_per_rank"],
                    point["num_microbatches"],
                    point["instructions"],
                    *(cost[part] for part in ("median", "p10", "p90")),
                    sweeps[name]["exponent"],
                ]
            )
    head = ["sweep", "ranks", "stages", "microbatches", "instructions"]
    print(table([*head, "us each", "p10", "p90", "exponent"], lines))
    write_json(QUESTION, {"unit": "microseconds", "sweeps": sweeps}, args.out)


if __name__ == "__main__":
    main()
