"""What does it cost to prove a pipeline's programs, beside lowering its schedule?

    python benchmarks/prove.py

`lower` verifies the schedule and makes all ranks' programs. `prove` proves them together; `alone`
is one rank in the middle by itself. Medians and spreads of alternating rounds on one core.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pipert

QUESTION = "What does proving all programs of a pipeline take, beside lowering its schedule?"
SIZES = ((4, 16), (8, 32), (16, 64), (32, 128), (64, 256))
SCHEDULES = ("1f1b", "interleaved_1f1b", "zb_h1")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return 1e3 * (time.perf_counter() - begin), result


def measure(name: str, num_ranks: int, num_microbatches: int, rounds: int) -> dict[str, Any]:
    """Times of one size, in milliseconds: [median, least, most] for each phase."""
    schedule = pipert.Schedule.build(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
    times: dict[str, list[float]] = {"lower": [], "prove": [], "alone": []}
    programs: list[pipert.Program] = []
    for _ in range(rounds):
        spent, programs = timed(lambda: pipert.lower(schedule))
        times["lower"].append(spent)
        spent, proof = timed(partial(pipert.prove, programs))
        if not proof:
            raise SystemExit(proof.message)
        times["prove"].append(spent)
        times["alone"].append(timed(partial(pipert.prove, [programs[num_ranks // 2]]))[0])
    point: dict[str, Any] = {
        phase: [round(pick(each), 4) for pick in (statistics.median, min, max)]
        for phase, each in times.items()
    }
    instructions = sum(map(len, programs))
    return {
        "schedule": name,
        "num_ranks": num_ranks,
        "num_microbatches": num_microbatches,
        "instructions": instructions,
        "prove_ns_per_instruction": round(1e6 * point["prove"][0] / instructions, 1),
        **point,
    }


def main() -> None:
    from environment import RESULTS, write_json
    from pairs import table

    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="the N smallest alone")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "prove.json")
    args = parser.parse_args()
    points = [
        measure(name, *size, args.rounds) for name in SCHEDULES for size in SIZES[: args.sizes]
    ]
    lines = [
        [p["schedule"], f"{p['num_ranks']}x{p['num_microbatches']}", f"{p['instructions']:,}"]
        + [f"{p[phase][0]:.2f}" for phase in ("lower", "prove", "alone")]
        + [f"{p['prove_ns_per_instruction']:.0f}"]
        for p in points
    ]
    columns = ["schedule", "size", "instructions", "lower ms", "prove ms", "alone ms", "ns each"]
    print(table(columns, lines))
    write_json(QUESTION, {"unit": "ms", "points": points}, args.out)


if __name__ == "__main__":
    main()
