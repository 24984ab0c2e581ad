"""How many bytes do skip edges save, against handing values through every stage?

    python benchmarks/skip_edges.py

A U-Net's shape: stage i makes a value for stage n - 1 - i, as large as its hidden state. And an
encoder and decoder: what the encoder returns is read by every stage of the decoder, a mask by all
stages. With skip edges a value goes to each rank that reads it, once; a pipeline without them has
to hand it through every stage between. Both run, one step each, and what was sent is counted in
their traces: activations forward, gradients back. Their losses are the same bits. No times: these
are threads of one process, where nothing is copied.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
from collections import Counter
from typing import Any

import torch
from environment import RESULTS, write_json
from pairs import table
from torch import Tensor, nn

import pipert
from pipert.stages import Stages, StageSpec, Value

QUESTION = "How many bytes do skip edges save, against handing values through every stage?"
WIDTH, ROWS, MICROBATCHES = 64, 8, 8
# (model, stages, ranks, schedule)
CASES = [
    ("u-net", 4, 4, "1f1b"),
    ("u-net", 8, 8, "1f1b"),
    ("u-net", 8, 4, "zb_v"),
    ("encoder and decoder", 8, 8, "1f1b"),
    ("encoder and decoder", 8, 4, "interleaved_1f1b"),
]


def values_of(model: str, num_stages: int) -> list[Value]:
    """Hidden states along the chain, and what skips."""
    last = num_stages - 1
    values = [Value(f"hidden_{i}", i, (i + 1,)) for i in range(last)]
    if model == "u-net":
        pairs = [(i, last - i) for i in range(num_stages // 2) if last - i > i + 1]
        return values + [Value(f"skip_{i}", i, (reader,)) for i, reader in pairs]
    half = num_stages // 2
    values.append(Value("mask", 0, tuple(range(1, num_stages)), differentiable=False))
    return [*values, Value("encoded", half - 1, tuple(range(half + 1, num_stages)))]


class Stage(nn.Module):
    """Adds up what it reads; makes all of its outputs of the sum."""

    def __init__(self, outputs: list[Value]) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.outputs = outputs

    def forward(self, *values: Tensor, x: Tensor | None = None) -> Any:
        h = self.layer(sum(values) if x is None else x)
        if not self.outputs:
            return h
        return tuple(h if value.differentiable else h.detach().sign() for value in self.outputs)


class Passing(nn.Module):
    """The same stage, given all values that are on their way, which hands them on."""

    def __init__(self, index: int, stage: Stage, values: list[Value]) -> None:
        super().__init__()
        self.stage = stage
        self.comes = self.crossing(values, index - 1)
        self.goes = self.crossing(values, index)
        self.reads = [value.name for value in values if index in value.readers]

    @staticmethod
    def crossing(values: list[Value], index: int) -> list[str]:
        """The names of those that must get from this stage to the next one."""
        return [v.name for v in values if v.maker <= index < v.readers[-1]]

    def forward(self, *values: Tensor) -> Any:
        known = dict(zip(self.comes, values, strict=False))
        if self.comes:
            made = self.stage(*(known[name] for name in self.reads))
        else:
            made = self.stage(x=values[0])
        if not self.goes:
            return made
        known.update(zip((value.name for value in self.stage.outputs), made, strict=True))
        return tuple(known[name] for name in self.goes)


def both(model: str, num_stages: int) -> tuple[Stages, list[Passing]]:
    torch.manual_seed(0)
    values = values_of(model, num_stages)
    modules = [Stage([v for v in values if v.maker == i]) for i in range(num_stages)]
    specs = [
        StageSpec(
            inputs=tuple(value.name for value in values if i in value.readers),
            outputs=tuple(value.name for value in modules[i].outputs),
            arguments=("x",) if i == 0 else (),
        )
        for i in range(num_stages)
    ]
    names = [[f"{i}.{name}" for name in m.state_dict()] for i, m in enumerate(modules)]
    stages = Stages(modules, specs=specs, values=values, arguments=["x"], names=names)
    return stages, [Passing(i, module, values) for i, module in enumerate(modules)]


def sent(stages: Any, num_ranks: int, schedule: str) -> tuple[dict[str, Counter[str]], Tensor]:
    """By kind, the bytes that a step sends over each edge; and the losses."""
    x = torch.randn(ROWS * MICROBATCHES, WIDTH, generator=torch.Generator().manual_seed(1))
    pipe = pipert.Pipeline(
        stages,
        schedule=schedule,
        num_microbatches=MICROBATCHES,
        num_ranks=num_ranks,
        loss_fn=nn.functional.mse_loss,
    )
    with contextlib.closing(pipe):
        losses = pipe.step(x, target=x).losses
        counts: dict[str, Counter[str]] = {"activation": Counter(), "gradient": Counter()}
        for event in pipe.trace().events:
            if event.kind == "send":
                edge = f"{event.message.source}->{event.message.destination}"
                counts[event.message.kind][edge] += event.bytes
    return counts, losses


def measure(model: str, num_stages: int, num_ranks: int, schedule: str) -> dict[str, Any]:
    wired, passing = both(model, num_stages)
    with_skips, losses = sent(wired, num_ranks, schedule)
    through, expected = sent(passing, num_ranks, schedule)
    if not torch.equal(losses, expected):
        raise RuntimeError(f"{model}: the losses differ")
    answer: dict[str, Any] = {
        "model": model,
        "stages": num_stages,
        "ranks": num_ranks,
        "schedule": schedule,
        "bytes_by_edge": {
            "skip_edges": {kind: dict(edges) for kind, edges in with_skips.items()},
            "through_every_stage": {kind: dict(edges) for kind, edges in through.items()},
        },
    }
    for kind in ("activation", "gradient"):
        few, many = with_skips[kind].total(), through[kind].total()
        answer[kind] = {"skip_edges": few, "through_every_stage": many, "times": many / few}
        busiest = max(with_skips[kind].values()), max(through[kind].values())
        answer[kind]["busiest_edge"] = dict(
            zip(("skip_edges", "through_every_stage"), busiest, strict=True)
        )
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "skip_edges.json")
    arguments = parser.parse_args()
    answers = [measure(*case) for case in CASES]
    lines = []
    for answer in answers:
        shape = f"{answer['model']}, {answer['stages']} stages, {answer['ranks']} ranks"
        for kind in ("activation", "gradient"):
            found = answer[kind]
            busiest = found["busiest_edge"]
            lines.append(
                [
                    f"{shape}: {kind}s",
                    *(found[way] // 1024 for way in ("skip_edges", "through_every_stage")),
                    found["times"],
                    *(busiest[way] // 1024 for way in ("skip_edges", "through_every_stage")),
                ]
            )
    head = ["KiB a step", "skip edges", "through", "times", "busiest edge", "through"]
    print(table(head, lines))
    write_json(QUESTION, {"cases": answers}, arguments.out)


if __name__ == "__main__":
    main()
