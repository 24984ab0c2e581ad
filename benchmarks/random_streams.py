"""What do streams of random numbers cost, and a forward that runs twice?

    python benchmarks/random_streams.py

On one thread: a draw from torch's default generator before pipert looks at draws and after, and
one from the thread's own generator; entering a layer, and drawing from its stream, whose generator
is made at the first draw. Then steps of a pipeline of two ranks, of linear layers with dropout:
with `rng_seed` and without, recomputed or not, and with torch.utils.checkpoint around each stage
instead. These take turns. All in microseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import torch
from environment import RESULTS, write_json
from pairs import Contender, Summary, alternate, table
from torch import nn
from torch.utils.checkpoint import checkpoint

import pipert

QUESTION = "What do streams of random numbers cost, and a forward that runs twice?"
LAYERS = 16
SIZES = {"16 wide": (16, 32), "256 wide": (256, 256)}  # width, and rows of the batch


class Checkpointed(nn.Sequential):
    """The same layers, recomputed by torch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        return checkpoint(super().forward, x, use_reentrant=False)


def microseconds(run: Callable[[], object], calls: int, rounds: int) -> Summary:
    """Of one call, over `rounds` of so many calls."""
    times = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        times.append(1e6 * (time.perf_counter() - start) / calls)
    return Summary.of(times[2:])


def draws(rounds: int) -> dict[str, Summary]:
    """On this thread, before and after draws are looked at."""
    x = torch.empty(64)
    module = nn.Sequential(*(nn.Identity() for _ in range(LAYERS)))
    rows = {"64 numbers, before any pipeline": microseconds(x.uniform_, 2000, rounds)}
    plain = microseconds(lambda: module(x), 200, rounds)
    with pipert.KeyedRandom(module, rng_seed=0) as keyed:
        hook = next(iter(module[1]._forward_pre_hooks.values()))

        def first_draw() -> None:
            hook.enter()
            x.uniform_()

        with keyed.microbatch(0, 0):
            rows["64 numbers, of the thread's generator"] = microseconds(x.uniform_, 2000, rounds)
            rows["entering a layer"] = microseconds(hook.enter, 2000, rounds)
            rows["entering a layer, 64 numbers of its stream"] = microseconds(
                first_draw, 2000, rounds
            )
            hooked = microseconds(lambda: module(x), 200, rounds)
    rows["64 numbers, of the default generator"] = microseconds(x.uniform_, 2000, rounds)
    rows["a layer's hook"] = Summary.of([(hooked.median - plain.median) / LAYERS])
    return rows


def steps(width: int, num_rows: int, rounds: int) -> dict[str, Summary]:
    """A step of two ranks; the contenders take turns."""
    torch.manual_seed(0)
    layers = [m for _ in range(LAYERS) for m in (nn.Linear(width, width), nn.Dropout(0.1))]
    model = nn.Sequential(*layers)
    x, y = torch.randn(num_rows, width), torch.randn(num_rows, width)
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "rng_seed": {"rng_seed": 0},
        "recompute": {"recompute": "all"},
        "rng_seed, recompute": {"rng_seed": 0, "recompute": "all"},
        "torch.utils.checkpoint": {},
    }
    with contextlib.ExitStack() as stack:
        contenders = []
        for name, own in options.items():
            stages = list(pipert.split(copy.deepcopy(model), num_stages=2))
            if name == "torch.utils.checkpoint":
                stages = [Checkpointed(*stage) for stage in stages]
            pipe = stack.enter_context(
                pipert.Pipeline(stages, num_microbatches=8, loss_fn=nn.functional.mse_loss, **own)
            )
            contenders.append(Contender(name, lambda pipe=pipe: pipe.step(x, target=y)))
        samples = alternate(contenders, rounds)
    return {name: Summary.of([1e6 * s for s in seconds]) for name, seconds in samples.items()}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "random_streams.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    answers = {"draws": draws(options.rounds // 3)}
    for name, (width, num_rows) in SIZES.items():
        answers[f"step, {name}"] = steps(width, num_rows, options.rounds)
    for title, rows in answers.items():
        lines = [[name, row.median, row.p10, row.p90] for name, row in rows.items()]
        print(table([title, "median", "10 %", "90 %"], lines), end="\n\n")
    content = {
        title: {name: dataclasses.asdict(row) for name, row in rows.items()}
        for title, rows in answers.items()
    }
    write_json(QUESTION, {"unit": "microseconds", **content}, options.out)


if __name__ == "__main__":
    main()
