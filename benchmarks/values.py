"""What does it cost a Run that its stage exchanges values by name?

    python benchmarks/values.py

Stages with specs return a tuple of values, each of which goes its own way: where a stage reads
several messages, or makes something for several ranks, the runtime takes messages apart and puts
others together. Stages without specs get what the one before returned, as it came. Here both do the
same work, next to none: Python functions that return the tensors that they are given, on one rank,
so that nothing else is in the time. A Run is the F or the B of one microbatch on one stage.

"chain": each stage hands all values to the next one. "skips": the first stage makes all values,
each is for one later stage alone beside those of a chain, so that all messages are taken apart; its
contender without specs hands all of them through every stage.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import torch
from environment import RESULTS, write_json
from pairs import Contender, Summary, alternate, table
from torch import Tensor

import pipert
from pipert.stages import Stages, StageSpec, Value

QUESTION = "What does it cost a Run that its stage exchanges values by name?"
NUM_STAGES = 4
NUM_MICROBATCHES = 32
ROWS = [("chain", 1), ("chain", 2), ("chain", 4), ("chain", 8), ("skips", 3)]


def loss_fn(output: Any, target: Tensor) -> Tensor:
    first = output if isinstance(output, Tensor) else output[0]
    return first.sum()


def source(num_values: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    def make(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.detach().requires_grad_() for _ in range(num_values))

    return make


def identity(*values: Tensor) -> tuple[Tensor, ...]:
    return values


def last_of(*values: Tensor) -> tuple[Tensor, ...]:
    return values[-1:]


def wired(calls: list[Any], inputs: list[list[str]], values: list[Value]) -> Stages:
    specs = [
        StageSpec(
            inputs=tuple(inputs[stage]),
            outputs=tuple(value.name for value in values if value.maker == stage),
            arguments=("x",) if stage == 0 else (),
        )
        for stage in range(NUM_STAGES)
    ]
    nothing: list[list[str]] = [[] for _ in calls]
    return Stages(calls, specs=specs, values=values, arguments=["x"], names=nothing)


def chain(num_values: int) -> tuple[Stages, list[Any]]:
    """With specs, and without."""
    calls = [source(num_values)] + [identity] * (NUM_STAGES - 1)
    values = [
        Value(f"v{stage}_{i}", stage, (stage + 1,))
        for stage in range(NUM_STAGES - 1)
        for i in range(num_values)
    ]
    inputs = [[v.name for v in values if stage in v.readers] for stage in range(NUM_STAGES)]
    return wired(calls, inputs, values), calls


def skips(num_values: int) -> tuple[Stages, list[Any]]:
    """Likewise; value i of the first stage is for stage i + 1."""
    values = [Value(f"v{i}", 0, (i + 1,)) for i in range(num_values)]
    values += [Value(f"h{stage}", stage, (stage + 1,)) for stage in range(1, NUM_STAGES - 1)]
    inputs = [[v.name for v in values if stage in v.readers] for stage in range(NUM_STAGES)]
    calls = [source(num_values)] + [last_of] * (NUM_STAGES - 1)
    unwired = [source(num_values)] + [identity] * (NUM_STAGES - 1)
    return wired(calls, inputs, values), unwired


def measure(kind: str, num_values: int, rounds: int) -> dict[str, Any]:
    stages, plain = (chain if kind == "chain" else skips)(num_values)
    x = torch.ones(NUM_MICROBATCHES, 1)
    with contextlib.ExitStack() as stack:

        def pipe(of: Any) -> pipert.Pipeline:
            made = pipert.Pipeline(
                of,
                schedule="interleaved_1f1b",
                num_microbatches=NUM_MICROBATCHES,
                num_ranks=1,
                loss_fn=loss_fn,
            )
            return stack.enter_context(contextlib.closing(made))

        pipes = {"with specs": pipe(stages), "without": pipe(plain)}

        def step(name: str) -> Callable[[], object]:
            return lambda: pipes[name].step(x, target=x)

        def forward(name: str) -> Callable[[], object]:
            return lambda: pipes[name](x)

        answer = {}
        for of, run, runs_each in (("step", step, 2), ("forward", forward, 1)):
            contenders = [Contender(name, run=run(name)) for name in pipes]
            samples = alternate(contenders, rounds, warmup=rounds // 5, collect_every=rounds)
            runs = NUM_STAGES * NUM_MICROBATCHES * runs_each
            each = {n: [1e6 * s / runs for s in seconds] for n, seconds in samples.items()}
            pairs = zip(each["with specs"], each["without"], strict=True)
            answer[of] = {
                **{name: dataclasses.asdict(Summary.of(us, 3)) for name, us in each.items()},
                "more": dataclasses.asdict(Summary.of([a - b for a, b in pairs], 3)),
            }
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "values.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    answers = []
    lines = []
    for kind, num_values in ROWS:
        found = measure(kind, num_values, arguments.rounds)
        answers.append({"kind": kind, "values": num_values, "microseconds_a_run": found})
        for of, times in found.items():
            more = times["more"]
            medians = [times[name]["median"] for name in ("without", "with specs")]
            lines.append([f"{kind}, {of}", num_values, *medians, *more.values()])
    head = ["", "values", "without specs us", "with", "more", "p10", "p90"]
    print("microseconds a Run")
    print(table(head, lines))
    write_json(QUESTION, {"rounds": arguments.rounds, "rows": answers}, arguments.out)


if __name__ == "__main__":
    main()
