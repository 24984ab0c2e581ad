"""What does the trace cost a step?

    python benchmarks/trace_cost.py

Pipelines that differ in nothing but `trace` take turns: without a trace, with that of the last
step, with a ring of 64 steps, and without one again, which shows what the machine's noise alone
makes of a pair. Stages are Python functions that return their input (a step is then nothing but the
runtime's work: the worst case), native ones that do as little, and the plain modules of a small
MLP. All ranks are threads of this process; where both stages are on one, no thread waits for
another, and a ratio shows what the instructions cost and not how the threads met. A ratio is taken
between two runs of one round, each of several steps; beside it stands that of the fastest tenth of
the runs.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from environment import RESULTS, write_json
from pairs import Contender, alternate, milliseconds, table, times_faster
from torch import Tensor, nn

import pipert

QUESTION = "What does the trace cost a step?"
CONTENDERS = {"off": "off", "last": "last", "ring of 64": 64, "off again": "off"}
WIDTH, ROWS, MICROBATCHES = 64, 4, 32


def source(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def identity(x: Tensor) -> Tensor:
    return x


def first_row(output: Tensor, target: Tensor) -> Tensor:
    return output.sum()


def empty() -> dict[str, Any]:
    return {"stages": [source, identity], "loss_fn": first_row}


def native() -> dict[str, Any]:
    return {**mlp(depth=1, width=1), "stage_kind": "native"}


def mlp(depth: int = 4, width: int = WIDTH) -> dict[str, Any]:
    torch.manual_seed(0)
    stages = [
        nn.Sequential(
            *(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU()))
        )
        for _ in range(2)
    ]
    return {"stages": stages, "loss_fn": nn.functional.mse_loss}


CASES: dict[str, tuple[Callable[[], dict[str, Any]], int, int]] = {
    "empty functions": (empty, 1, 2),
    "native, 1 x Linear(1)": (native, 1, 2),
    "modules, 4 x Linear(64)": (mlp, WIDTH, 2),
    "one rank, empty functions": (empty, 1, 1),
    "one rank, native, 1 x Linear(1)": (native, 1, 1),
}


def measure(case: str, rounds: int, steps: int) -> dict[str, Any]:
    """Times all contenders on one kind of stages."""
    make, width, num_ranks = CASES[case]
    x = torch.randn(ROWS * MICROBATCHES, width)
    with contextlib.ExitStack() as open_pipes:
        contenders = []
        for name, trace in CONTENDERS.items():
            pipe = open_pipes.enter_context(
                pipert.Pipeline(
                    **make(),
                    schedule="1f1b" if num_ranks > 1 else "interleaved_1f1b",
                    num_ranks=num_ranks,
                    num_microbatches=MICROBATCHES,
                    trace=trace,
                )
            )

            def run(pipe: pipert.Pipeline = pipe) -> None:
                for _ in range(steps):
                    pipe.step(x, target=x)

            contenders.append(Contender(name, run))
        samples = alternate(contenders, rounds)
    instructions = sum(map(len, pipe.program))
    saved = {
        name: [traced - off for traced, off in zip(samples[name], samples["off"], strict=True)]
        for name in CONTENDERS
    }
    return {
        "instructions": instructions,
        "milliseconds": {
            name: {key: value for key, value in summary.items() if key != "samples"}
            for name, summary in milliseconds(samples).items()
        },
        "cost_percent": {
            name: {
                key: round(100 * (ratio - 1), 3)
                for key, ratio in times_faster(samples, "off", than=name).items()
            }
            for name in CONTENDERS
            if name != "off"
        },
        "cost_of_fastest_percent": {
            name: round(100 * (_fastest(samples[name]) / _fastest(samples["off"]) - 1), 3)
            for name in CONTENDERS
            if name != "off"
        },
        "nanoseconds_an_instruction": {
            name: round(1e9 * statistics.median(saved[name]) / steps / instructions, 1)
            for name in CONTENDERS
            if name != "off"
        },
    }


def _fastest(seconds: Sequence[float]) -> float:
    """The median of the fastest tenth: what else ran on the machine only ever adds."""
    fastest = sorted(seconds)[: max(1, len(seconds) // 10)]
    return statistics.median(fastest)


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--rounds", type=int, default=200, help="timed runs of each contender")
    parser.add_argument("--steps", type=int, default=5, help="steps of each run")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "trace_cost.json")
    args = parser.parse_args()
    torch.set_num_threads(1)

    cases = {case: measure(case, args.rounds, args.steps) for case in CASES}
    head = ["stages", "trace", "ms a run", "cost %", "p10", "p90", "of fastest %", "ns/instruction"]
    lines = []
    for case, found in cases.items():
        for name in CONTENDERS:
            cost = found["cost_percent"].get(name, {})
            lines.append(
                [
                    case,
                    name,
                    found["milliseconds"][name]["median"],
                    *(cost.get(key) for key in ("median", "p10", "p90")),
                    found["cost_of_fastest_percent"].get(name),
                    found["nanoseconds_an_instruction"].get(name),
                ]
            )
    print(table(head, lines))
    content = {"rounds": args.rounds, "steps_a_run": args.steps, "cases": cases}
    write_json(QUESTION, content, args.out)


if __name__ == "__main__":
    main()
