"""What does the trace cost a step?

    python benchmarks/trace_cost.py

Pipelines that differ in nothing but `trace` take turns, a few steps each: without a trace, with
that of the last step, with a ring of 64 steps, and without one again. Each is compared with the
first, pair by pair within a round, over hundreds of rounds; of all pairs come the median, the 95 %
interval of that median, and the spread. "off again" shows what is left of the machine's noise,
and of where a pipeline's memory lies, although all are made anew, in another order, several times:
a cost below that isn't shown.

Stages are Python functions that return their input (a step is then nothing but the runtime's work:
the worst case), native ones that do as little, and the plain modules of a small MLP. All ranks are
threads of this process. Where both stages are on one, no thread waits for another, so that the time
that a trace adds is the instructions': there it is also told in nanoseconds for each.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from environment import RESULTS, write_json
from pairs import Contender, Summary, alternate, median_interval, table
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


def measure(case: str, turns: int, rounds: int, steps: int) -> dict[str, Any]:
    """Times all contenders on one kind of stages."""
    num_ranks = CASES[case][2]
    samples: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    names = list(CONTENDERS)
    instructions = 0
    for _ in range(turns):
        names = [*names[1:], names[0]]
        taken, instructions = time_once(case, names, rounds, steps)
        for name, seconds in taken.items():
            samples[name] += seconds
    plain = samples["off"]
    found: dict[str, Any] = {
        "instructions": instructions,
        "milliseconds_a_step": {
            name: asdict(Summary.of([1e3 * second / steps for second in seconds]))
            for name, seconds in samples.items()
        },
        "cost_percent": {},
    }
    if num_ranks == 1:
        found["nanoseconds_an_instruction"] = {}
    for name, seconds in samples.items():
        if name == "off":
            continue
        pairs = list(zip(seconds, plain, strict=True))
        found["cost_percent"][name] = told([100 * (traced / off - 1) for traced, off in pairs])
        if num_ranks == 1:
            each = 1e9 / (steps * instructions)
            found["nanoseconds_an_instruction"][name] = told(
                [each * (traced - off) for traced, off in pairs]
            )
    return found


def time_once(
    case: str, names: Sequence[str], rounds: int, steps: int
) -> tuple[dict[str, list[float]], int]:
    """Seconds of each contender's runs, of pipelines made in this order; and the instructions."""
    make, width, num_ranks = CASES[case]
    x = torch.randn(ROWS * MICROBATCHES, width)
    with contextlib.ExitStack() as open_pipes:
        contenders = []
        for name in names:
            pipe = open_pipes.enter_context(
                pipert.Pipeline(
                    **make(),
                    schedule="1f1b" if num_ranks > 1 else "interleaved_1f1b",
                    num_ranks=num_ranks,
                    num_microbatches=MICROBATCHES,
                    trace=CONTENDERS[name],
                )
            )

            def run(pipe: pipert.Pipeline = pipe) -> None:
                for _ in range(steps):
                    pipe.step(x, target=x)

            contenders.append(Contender(name, run))
        return alternate(contenders, rounds, collect_every=20), sum(map(len, pipe.program))


def told(values: Sequence[float]) -> dict[str, Any]:
    """Of all pairs: median, its 95 % interval, and the spread."""
    return {**asdict(Summary.of(values, 2)), "interval": median_interval(values, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--turns", type=int, default=4, help="how often all are made anew")
    parser.add_argument("--rounds", type=int, default=120, help="timed runs of each, each turn")
    parser.add_argument("--steps", type=int, default=2, help="steps of each run")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "trace_cost.json")
    args = parser.parse_args()
    torch.set_num_threads(1)

    cases = {case: measure(case, args.turns, args.rounds, args.steps) for case in args.cases}
    head = ["stages", "trace", "ms a step", "cost %", "95 % of it", "p10", "p90"]
    head += ["ns an instruction", "95 % of it"]
    lines = []
    for case, found in cases.items():
        for name in CONTENDERS:
            cost = found["cost_percent"].get(name, {})
            each = found.get("nanoseconds_an_instruction", {}).get(name, {})
            lines.append(
                [
                    case,
                    name,
                    found["milliseconds_a_step"][name]["median"],
                    cost.get("median"),
                    " .. ".join(f"{end:.2f}" for end in cost.get("interval", [])),
                    cost.get("p10"),
                    cost.get("p90"),
                    each.get("median"),
                    " .. ".join(f"{end:.0f}" for end in each.get("interval", [])),
                ]
            )
    print(table(head, lines))
    sizes = {"turns": args.turns, "rounds_a_turn": args.rounds, "steps_a_run": args.steps}
    write_json(QUESTION, {**sizes, "cases": cases}, args.out)


if __name__ == "__main__":
    main()
