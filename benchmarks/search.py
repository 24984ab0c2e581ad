"""How good are the schedules that the search finds, against named ones and against the bound?

python benchmarks/search.py
"""

from __future__ import annotations

import argparse
import csv
import pathlib
from typing import Any

from environment import RESULTS, write_json

from pipert import Costs, Schedule, SearchResult, search_partition

QUESTION = "How good are the schedules that the search finds, against named ones and the bound?"
TABLE = pathlib.Path(__file__).parents[1] / "tests" / "data" / "zero_bubble_table.csv"
CAPS = (1.0, 1.25, 1.5, 1.75, 2.0)
# F, I, W and the latency of one of two chunks on each of 8 ranks, in ms; 24 microbatches.
CHUNKS = {
    "1.5B chunks": (14.407, 14.380, 9.676, 1.610),
    "6.2B chunks": (9.458, 9.748, 7.288, 0.879),
}


def costs_of(times: tuple[Any, ...], weight_share: float = 1.0) -> Costs:
    """F, I, W and the latency as Costs, and what stays of an activation from I to W."""
    forward, input_half, weight_half, latency = times
    return Costs(
        forward=forward,
        input=input_half,
        weight=weight_half,
        latency=latency,
        weight_share=weight_share,
    )


def measured(result: SearchResult, work: float) -> dict[str, Any]:
    """The numbers of one search; bubbles are 1 - work / value."""
    name, best = result.seeds[0] if result.seeds else (None, None)
    return {
        "value": result.value,
        "bound": result.bound,
        "bubble": 1 - work / result.value,
        "bound_bubble": 1 - work / result.bound,
        "gap_points": 100 * (work / result.bound - work / result.value),
        "best_named": name,
        "best_named_bubble": None if best is None else 1 - work / best,
        "source": result.source,
        "iterations": result.iterations,
        "seconds": result.seconds,
    }


def profiles(time_limit: float) -> list[dict[str, Any]]:
    """The published profiles, one stage a rank, under each cap and objective."""
    with TABLE.open(newline="") as file:
        table = list(csv.DictReader(file))
    rows = []
    for line in table:
        ranks, microbatches = int(line["p"]), int(line["m"])
        times = tuple(float(line[column]) for column in ("F_ms", "I_ms", "W_ms", "c_ms"))
        # What stays of an activation from I to W: all, or the share that the paper computes.
        per_token = 34 + 5 * int(line["heads"]) * int(line["seq"]) / int(line["hidden"])
        for weight_share in (1.0, 32 / per_token):
            for objective in ("span", "makespan"):
                for cap in CAPS:
                    result = Schedule.search(
                        costs_of(times, weight_share),
                        ranks,
                        microbatches,
                        cap * ranks,
                        objective=objective,
                        time_limit=time_limit,
                    )
                    head = {
                        "profile": f"{line['model']} m={microbatches}",
                        "weight_share": round(weight_share, 3),
                    }
                    head |= {"objective": objective, "cap": cap}
                    rows.append(head | measured(result, microbatches * sum(times[:3])))
                    show(rows[-1])
    return rows


def chunks(time_limit: float) -> list[dict[str, Any]]:
    """Two chunks a rank in a V, at 1.25 times the memory of zb_v."""
    rows = []
    for name, times in CHUNKS.items():
        result = Schedule.search(costs_of(times), 8, 24, 20, placements="v", time_limit=time_limit)
        head = {"profile": name, "weight_share": 1.0, "objective": "makespan", "cap": 1.25}
        rows.append(head | measured(result, 2 * 24 * sum(times[:3])))
        show(rows[-1])
    return rows


def partitions(time_limit: float) -> list[dict[str, Any]]:
    """Eight even stages, the fourth 1.4 times as long: what moving layers recovers."""
    rows = []
    for placement, chunks_a_rank in (("loop", 1), ("v", 2)):
        for layers_a_rank in (10, 12, 16):
            row = {"placement": placement, "layers_a_rank": layers_a_rank}
            rows.append(row | slow_stage(placement, chunks_a_rank, layers_a_rank, time_limit))
            print(
                f"{placement:4} {layers_a_rank} layers a rank: even {rows[-1]['even']:.2f}, "
                f"found {rows[-1]['found']:.2f}, all ranks alike {rows[-1]['perfect']:.2f}, "
                f"recovered {100 * rows[-1]['recovered']:.0f} %",
                flush=True,
            )
    return rows


def slow_stage(
    placement: str, chunks_a_rank: int, layers_a_rank: int, time_limit: float
) -> dict[str, Any]:
    """Of 8 ranks, 24 microbatches, a quarter more memory than 1F1B's; times of F = I = W."""
    ranks, microbatches, memory = 8, 24, 10
    times = [1.0 / layers_a_rank] * (ranks * layers_a_rank)
    for layer in range(3 * layers_a_rank, 4 * layers_a_rank):
        times[layer] *= 1.4
    stages = chunks_a_rank * ranks
    found = search_partition(
        costs_of((times, times, times, 0.02)),
        ranks,
        microbatches,
        memory,
        activation_size=1 / layers_a_rank,
        placements=placement,
        num_stages=stages,
        time_limit=time_limit,
    )
    share = sum(times) / stages
    perfect = Schedule.search(
        costs_of((share, share, share, 0.02)),
        ranks,
        microbatches,
        memory,
        activation_size=1 / chunks_a_rank,
        placements=placement,
        num_stages=stages,
        time_limit=time_limit,
    ).value
    return {
        "even": found.even_value,
        "found": found.value,
        "perfect": perfect,
        "recovered": (found.even_value - found.value) / (found.even_value - perfect),
        "balance": found.balance,
    }


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    print(
        f"{row['profile']:13} share {row['weight_share']:5.3f} {row['objective']:8} "
        f"cap {row['cap']:4.2f}p  "
        f"value {row['value']:8.1f}  bubble {row['bubble']:.4f}  bound {row['bound_bubble']:.4f}  "
        f"best named {row['best_named_bubble']:.4f} {row['best_named']:8}  "
        f"{row['source']:15} {row['seconds']:5.1f} s",
        flush=True,
    )


def main() -> None:
    """Runs all, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time-limit", type=float, default=2.0, help="seconds of each search")
    parser.add_argument("--chunk-time-limit", type=float, default=30.0, help="of those on a V")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "search.json")
    args = parser.parse_args()
    content = {
        "unit": "ms",
        "time_limit_s": args.time_limit,
        "chunk_time_limit_s": args.chunk_time_limit,
        "chunks": chunks(args.chunk_time_limit),
        "partitions": partitions(args.chunk_time_limit),
        "profiles": profiles(args.time_limit),
    }
    write_json(QUESTION, content, args.out)


if __name__ == "__main__":
    main()
