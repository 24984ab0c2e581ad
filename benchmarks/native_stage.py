"""What does a stage cost without Python, and do ranks that are threads then run side by side?

    python benchmarks/native_stage.py

Two tables. The first: the forward of a stage, native against its module, autograd on: as a call
(the module itself against its graph), and inside of a pipeline of one rank, where the stage's
forward is what the trace says of it. The second: a step of two ranks that are threads, against the
limit (microbatches + ranks - 1) times what the slower stage's forward and backward take, measured
in the same round in pipelines that have both stages on one rank: "alone", when nobody else runs,
and, for native stages, "at once", when two such pipelines that have nothing to do with each other
run side by side. Where the two differ, the machine's cores are not worth two (virtual cores may
share a real one for a while), and no runtime reaches the first limit. Contenders take turns, as in
pairs.py. Before the first timing, both kinds must have given the same bits.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import itertools
import pathlib
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from environment import RESULTS, write_json
from pairs import Summary, table
from torch import Tensor, nn
from torch.nn import functional

import pipert
from pipert import native

QUESTION = "What does a native stage cost, and do two ranks that are threads run side by side?"
KINDS = ("module", "native")


class Block(nn.Module):
    """One layer of a GPT, as in examples/gpt.py."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)
        attended = functional.scaled_dot_product_attention(*heads.unbind(2), is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Embedding(nn.Module):
    """Bytes and their positions."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.byte, self.position = nn.Embedding(256, width), nn.Embedding(context, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.byte(x) + self.position.weight


def mlp(layers: int, width: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


def gpt(width: int, context: int) -> nn.Sequential:
    blocks = [Block(width) for _ in range(4)]
    return nn.Sequential(Embedding(width, context), *blocks, nn.LayerNorm(width))


@dataclasses.dataclass(frozen=True)
class Model:
    """A stage and one microbatch for it."""

    build: Callable[[], nn.Module]
    example: Callable[[], Tensor]
    num_microbatches: int = 32


FORWARDS = {
    "4xLinear(64) mb 4": Model(lambda: mlp(4, 64), lambda: torch.randn(4, 64)),
    "GPT 4 layers width 32, 16 tokens mb 1": Model(
        lambda: gpt(32, 16), lambda: torch.randint(256, (1, 16))
    ),
    "GPT 4 layers width 32, 64 tokens mb 1": Model(
        lambda: gpt(32, 64), lambda: torch.randint(256, (1, 64))
    ),
}

STEPS = {
    f"{layers}xLinear({width}) mb {rows}": Model(
        lambda layers=layers, width=width: mlp(layers, width),
        lambda width=width, rows=rows: torch.randn(rows, width),
    )
    for layers, width, rows in ((11, 64, 4), (8, 128, 16), (16, 128, 16))
}


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    return output.square().mean()


def pipeline(stages: list[nn.Module], kind: str, model: Model, num_ranks: int) -> pipert.Pipeline:
    return pipert.Pipeline(
        stages,
        schedule="1f1b" if num_ranks == len(stages) else "interleaved_1f1b",
        num_microbatches=model.num_microbatches,
        loss_fn=loss_fn,
        num_ranks=num_ranks,
        stage_kind=kind,
        intra_op_threads=1,
    )


def times(pipe: pipert.Pipeline) -> dict[str, float]:
    """Median seconds of each kind of action of the last step: {"F0": ..., "B1": ...}."""
    spans = defaultdict(list)
    for event in pipe.trace().events:
        if event.action is not None:
            spans[f"{event.action.kind}{event.action.stage}"].append(event.ended - event.started)
    return {name: statistics.median(values) for name, values in spans.items()}


def step(pipe: pipert.Pipeline, batch: Tensor) -> float:
    """Seconds of one step."""
    for parameter in pipe.parameters():
        parameter.grad = None
    start = time.perf_counter()
    pipe.step(batch, target=batch)
    return time.perf_counter() - start


def in_turns(rounds: int, contenders: dict[str, Callable[[], None]]) -> None:
    """A B, B A, A B, ..., with garbage collected in between alone."""
    gc.disable()
    try:
        for index in range(rounds):
            gc.collect()
            names = list(contenders)
            for name in names if index % 2 == 0 else reversed(names):
                contenders[name]()
    finally:
        gc.enable()


def microseconds(seconds: list[float]) -> dict[str, float]:
    return dataclasses.asdict(Summary.of([1e6 * value for value in seconds], 2))


def compare(samples: dict[str, list[float]]) -> dict[str, Any]:
    """Of two contenders: their microseconds, and native / module round by round."""
    ratios = [n / m for n, m in zip(samples["native"], samples["module"], strict=True)]
    return {
        **{kind: microseconds(samples[kind]) for kind in KINDS},
        "native_by_module": dataclasses.asdict(Summary.of(ratios)),
    }


def measure_call(model: Model, rounds: int) -> dict[str, Any]:
    """The module's call against its graph's."""
    torch.manual_seed(0)
    module, x = model.build(), model.example()
    exported = native.export(module, (x,), {})
    for index, (owner, name) in enumerate(exported.sources):
        exported.graph.set_parameter(index, owner[name])
    if not torch.equal(exported.graph.run([x])[0], module(x)):
        raise RuntimeError("the graph's output is not the module's")
    calls = {"module": lambda: module(x), "native": lambda: exported.graph.run([x])}
    samples: dict[str, list[float]] = {kind: [] for kind in KINDS}

    def timed(kind: str) -> Callable[[], None]:
        def run() -> None:
            clock = [time.perf_counter()]
            for _ in range(100):
                calls[kind]()
                clock.append(time.perf_counter())
            samples[kind].append(
                statistics.median(end - start for start, end in itertools.pairwise(clock))
            )

        return run

    in_turns(rounds, {kind: timed(kind) for kind in KINDS})
    return compare(samples)


def measure_stage(model: Model, rounds: int) -> dict[str, Any]:
    """The forward of the first of two stages on one rank, in training steps."""
    torch.manual_seed(0)
    batch = torch.cat([model.example() for _ in range(model.num_microbatches)])
    samples: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with contextlib.ExitStack() as stack:
        pipes, gradients = {}, {}
        for kind in KINDS:
            torch.manual_seed(0)
            stages = [model.build(), nn.Identity()]
            pipes[kind] = stack.enter_context(pipeline(stages, kind, model, num_ranks=1))
            for _ in range(3):
                step(pipes[kind], batch)
            gradients[kind] = [parameter.grad.clone() for parameter in pipes[kind].parameters()]
        check(pipes["native"], gradients)

        def timed(kind: str) -> Callable[[], None]:
            def run() -> None:
                step(pipes[kind], batch)
                samples[kind].append(times(pipes[kind])["F0"])

            return run

        in_turns(rounds, {kind: timed(kind) for kind in KINDS})
    return compare(samples)


def check(pipe: pipert.Pipeline, gradients: dict[str, list[Tensor]]) -> None:
    """Makes sure that what shall be native is, and does the same work."""
    kinds = {*pipe.stage_kinds.values(), pipe.loss_kind}
    if kinds != {"native"}:
        raise RuntimeError(f"expected native stages, got {kinds}")
    pairs = zip(gradients["native"], gradients["module"], strict=True)
    if not all(torch.equal(ours, theirs) for ours, theirs in pairs):
        raise RuntimeError("native and module gave other gradients")


def slower_stage(pipe: pipert.Pipeline) -> float:
    """Seconds of a forward and a backward of the slower of two stages, in the last step."""
    took = times(pipe)
    return max(took[f"F{s}"] + took[f"B{s}"] for s in range(2))


def step_at_once(pipes: list[pipert.Pipeline], batch: Tensor) -> None:
    """Steps pipelines that don't know each other, each in a thread of its own."""
    threads = [threading.Thread(target=step, args=(pipe, batch)) for pipe in pipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure_step(model: Model, rounds: int) -> dict[str, Any]:
    """A step of two ranks, by kind, and the limits from the stages' own times."""
    batch = torch.cat([model.example() for _ in range(model.num_microbatches)])
    slots = model.num_microbatches + 1
    steps: dict[str, list[float]] = {kind: [] for kind in KINDS}
    own: dict[str, dict[str, list[float]]] = {
        "module": {"alone": []},  # two at once would share the GIL
        "native": {"alone": [], "at once": []},
    }
    with contextlib.ExitStack() as stack:
        contenders: dict[str, Callable[[], None]] = {}
        gradients = {}
        for kind in KINDS:
            alone, other, both = (
                warm(stack.enter_context(pipeline(seeded(model), kind, model, ranks)), batch)
                for ranks in (1, 1, 2)
            )
            gradients[kind] = [parameter.grad.clone() for parameter in both.parameters()]

            def run_alone(pipe: pipert.Pipeline = alone, kind: str = kind) -> None:
                step(pipe, batch)
                own[kind]["alone"].append(slower_stage(pipe))

            def run_at_once(
                pipes: tuple[pipert.Pipeline, ...] = (alone, other), kind: str = kind
            ) -> None:
                step_at_once(list(pipes), batch)
                own[kind]["at once"].append(statistics.mean(map(slower_stage, pipes)))

            def run_both(pipe: pipert.Pipeline = both, kind: str = kind) -> None:
                steps[kind].append(step(pipe, batch))

            contenders |= {f"{kind} alone": run_alone, f"{kind} both": run_both}
            if "at once" in own[kind]:
                contenders[f"{kind} at once"] = run_at_once
        check(both, gradients)
        in_turns(rounds, contenders)
    answer: dict[str, Any] = {}
    for kind in KINDS:
        answer[kind] = {"step_microseconds": microseconds(steps[kind])}
        for how, stage_times in own[kind].items():
            efficiency = [slots * o / s for o, s in zip(stage_times, steps[kind], strict=True)]
            answer[kind][how] = {
                "stage_microseconds": microseconds(stage_times),
                "efficiency": dataclasses.asdict(Summary.of(efficiency)),
            }
    return answer


def seeded(model: Model) -> list[nn.Module]:
    torch.manual_seed(0)
    return [model.build(), model.build()]


def warm(pipe: pipert.Pipeline, batch: Tensor) -> pipert.Pipeline:
    for _ in range(3):
        step(pipe, batch)
    return pipe


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--rounds", type=int, default=60, help="how often each is timed")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "native_stage.json")
    args = parser.parse_args()
    torch.set_num_threads(1)

    forwards: dict[str, Any] = {}
    lines = []
    for name, model in FORWARDS.items():
        forwards[name] = {
            "call": measure_call(model, args.rounds),
            "stage": measure_stage(model, args.rounds),
        }
        for what, answer in forwards[name].items():
            ratio = answer["native_by_module"]
            medians = [answer[kind]["median"] for kind in KINDS]
            lines.append([name, what, *medians, ratio["median"], ratio["p10"], ratio["p90"]])
    head = ["forward", "of", "module us", "native us", "native/module", "p10", "p90"]
    print(table(head, lines))

    steps: dict[str, Any] = {}
    lines = []
    for name, model in STEPS.items():
        steps[name] = measure_step(model, args.rounds)
        for kind in KINDS:
            answer = steps[name][kind]
            for how in sorted(answer.keys() - {"step_microseconds"}):
                efficiency = answer[how]["efficiency"]
                lines.append(
                    [
                        f"2 x {name}",
                        kind,
                        how,
                        answer[how]["stage_microseconds"]["median"],
                        answer["step_microseconds"]["median"],
                        *(efficiency[part] for part in ("median", "p10", "p90")),
                    ]
                )
    print()
    head = ["step", "stages", "limit", "stage us", "step us", "efficiency", "p10", "p90"]
    print(table(head, lines))
    write_json(QUESTION, {"unit": "microseconds", "forwards": forwards, "steps": steps}, args.out)


if __name__ == "__main__":
    main()
