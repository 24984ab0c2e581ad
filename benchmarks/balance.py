"""How even are the ranks after a balance, and how long does it take to find?

python benchmarks/balance.py
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import random
import statistics
import time
from typing import Any

import torch
from environment import RESULTS, write_json
from torch import Tensor, nn

import pipert
from pipert import _C

QUESTION = "How even are the ranks after a balance, and how long does it take to find?"
RANKS, MICROBATCHES = 4, 16
ROWS, WIDTH = 256, 256


class Layer(nn.Module):
    """As long as `times` multiplications of matrices."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5) for _ in range(times)
        )

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = x @ weight
        return x


def model_of(num_layers: int) -> nn.Sequential:
    """Layers that are alike, and a last one that is as long as four."""
    return nn.Sequential(*(Layer(1) for _ in range(num_layers)), Layer(4))


def imbalance(loads: list[float]) -> float:
    """By how much the longest rank is longer than the mean."""
    return max(loads) / statistics.mean(loads) - 1


def rank_loads(costs: pipert.Costs, placement: pipert.Placement) -> list[float]:
    """By rank, the time of one microbatch."""
    loads = [0.0] * placement.num_ranks
    for stage in range(placement.num_stages):
        times = (costs.forward[stage], costs.input[stage], costs.weight[stage])
        loads[placement.rank_of(stage)] += sum(times)
    return loads


def summed(costs: list[float], sizes: list[int]) -> list[float]:
    """By stage."""
    edges = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return [sum(costs[a:b]) for a, b in itertools.pairwise(edges)]


def long_last_layer(repeats: int) -> list[dict[str, Any]]:
    """Cuts of a model whose last layer costs four: by time, and as many layers in each stage."""
    schedules = {
        "1f1b": {"num_stages": RANKS},
        "zb_v": {"num_stages": 2 * RANKS},
        "interleaved_1f1b": {"num_stages": 2 * RANKS},
    }
    rows = []
    for name, options in schedules.items():
        schedule = pipert.Schedule.build(
            name, num_ranks=RANKS, num_microbatches=MICROBATCHES, **options
        )
        for num_layers in (12, 28, 60):
            found = [one_balance(schedule, num_layers) for _ in range(repeats)]
            row = {"schedule": name, "layers": num_layers + 1}
            for key in found[0]:
                values = [one[key] for one in found]
                row[key] = values if key == "balance" else statistics.median(values)
                if key != "balance":
                    row[f"{key}_worst"] = max(values)
            rows.append(row)
            print(
                f"{name:17} {num_layers + 1:3} layers: imbalance {100 * row['by_time']:5.1f} % "
                f"(worst of {repeats}: {100 * row['by_time_worst']:5.1f} %), uniform "
                f"{100 * row['uniform']:5.1f} %, step {row['step_by_time']:.3f} of its work, "
                f"uniform {row['step_uniform']:.3f}",
                flush=True,
            )
    return rows


def one_balance(schedule: pipert.Schedule, num_layers: int) -> dict[str, Any]:
    """Cut by one measurement, and judged by another one of every layer."""
    model, x = model_of(num_layers), torch.randn(ROWS, WIDTH)
    options = {"placement": schedule, "example_args": (x,)}
    by_time = pipert.split(model, balance="time", **options)
    sizes = [len(stage) for stage in by_time]
    paths = [str(i) for i in range(1, num_layers + 1)]
    layers = pipert.split(model, at=paths, balance="time", example_args=(x,)).costs
    uniform = [len(stage) for stage in pipert.split(model, balance="uniform", **options)]
    result: dict[str, Any] = {"balance": sizes}
    for name, cuts in (("by_time", sizes), ("uniform", uniform)):
        costs = pipert.Costs(
            forward=summed(layers.forward, cuts),
            input=summed(layers.input, cuts),
            weight=summed(layers.weight, cuts),
        )
        loads = rank_loads(costs, schedule.placement)
        result[name] = imbalance(loads)
        work = MICROBATCHES * sum(loads) / RANKS
        result[f"step_{name}"] = schedule.simulate(costs).makespan / work
    return result


def search_times() -> list[dict[str, Any]]:
    """Seconds of the cuts alone, of layers that all differ."""
    rows = []
    for num_layers in (100, 200, 400):
        source = random.Random(num_layers)
        work = [0.5 + source.random() for _ in range(num_layers)]
        work[-1] = 4.0
        for ranks in (8, 16, 32):
            placements = {
                "one a rank": pipert.Placement.loop(ranks, ranks),
                "V": pipert.Placement.v_shaped(ranks, 2 * ranks),
                "interleaved": pipert.Placement.loop(ranks, 2 * ranks),
            }
            for name, placement in placements.items():
                seconds = []
                for _ in range(5):
                    start = time.perf_counter()
                    found = _C.balanced_cuts(work, placement)
                    seconds.append(time.perf_counter() - start)
                rows.append(
                    {
                        "layers": num_layers,
                        "ranks": ranks,
                        "placement": name,
                        "seconds": statistics.median(seconds),
                        "slowest_s": max(seconds),
                        "gap_to_bound": found.gap,
                    }
                )
                print(
                    f"{num_layers:4} layers, {ranks:2} ranks, {name:11}: "
                    f"{1e3 * rows[-1]['seconds']:8.2f} ms, gap to the bound "
                    f"{100 * found.gap:.1f} %",
                    flush=True,
                )
    return rows


def main() -> None:
    """Runs all, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "balance.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    content = {
        "ranks": RANKS,
        "microbatches": MICROBATCHES,
        "rows": ROWS,
        "width": WIDTH,
        "repeats": args.repeats,
        "long_last_layer": long_last_layer(args.repeats),
        "search": search_times(),
    }
    write_json(QUESTION, content, args.out)


if __name__ == "__main__":
    main()
