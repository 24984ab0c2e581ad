"""How many times faster is a pipert step in one process than a step of torchgpipe?

    pip install --no-deps --no-build-isolation torchgpipe
    python benchmarks/step_vs_torchgpipe.py

Same model, microbatches and machine, two ranks as threads, one intra-op thread each, float32 on the
CPU, no recompute (`checkpoint="never"`). torchgpipe knows one schedule, GPipe: `gpipe` is pipert on
the same one, `1f1b` on its default. `limit` is what the plain module takes for (microbatches +
ranks - 1) forwards and backwards on one core.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: torchgpipe's threads take OpenMP's default

import argparse
import importlib.util
import pathlib
import statistics
import sys
from typing import Any

import torch
from environment import RESULTS, write_json
from mlp import NUM_RANKS, ROWS, Limit, Row, check_same, gradients, loss_fn
from pairs import Contender, alternate, milliseconds, table, times_faster
from torch import Tensor, nn

QUESTION = "How many times faster is a pipert step in one process than a step of torchgpipe?"
HAVE_PIPERT = importlib.util.find_spec("pipert") is not None
SCHEDULES = ("gpipe", "1f1b")


class TorchGPipePipeline:
    """A torchgpipe GPipe over a row's stages, both partitions on the CPU."""

    def __init__(self, row: Row) -> None:
        from torchgpipe import GPipe

        self._stages = {stage: row.stage(stage) for stage in range(row.num_stages)}
        layers = [layer for module in self._stages.values() for layer in module]
        self._model = GPipe(
            nn.Sequential(*layers),
            balance=[row.layers] * NUM_RANKS,
            devices=["cpu"] * NUM_RANKS,
            chunks=row.num_microbatches,
            checkpoint="never",
        )
        self._input, self._target = row.batch()

    def prepare(self) -> None:
        for module in self._stages.values():
            module.zero_grad(set_to_none=True)

    def run(self) -> None:
        loss_fn(self._model(self._input), self._target).backward()

    def gradients(self) -> dict[str, Tensor]:
        """Returns the gradients, by stage and parameter name."""
        return gradients(self._stages)


def contenders(row: Row) -> list[Contender]:
    """Builds the contenders of one row, and makes sure that they compute the same gradients."""
    peer = TorchGPipePipeline(row)
    pipelines: dict[str, Any] = {"torchgpipe": peer}
    if HAVE_PIPERT:
        from pipert_contender import PipertPipeline

        pipelines.update({schedule: PipertPipeline(row, schedule) for schedule in SCHEDULES})
    for name, pipeline in pipelines.items():
        pipeline.prepare()
        pipeline.run()
        if name != "torchgpipe":
            check_same(pipeline.gradients(), peer.gradients())
    limit = Limit(row)
    runs = [Contender(name, pipeline.run, pipeline.prepare) for name, pipeline in pipelines.items()]
    return [Contender("limit", limit.run, limit.prepare), *runs]


def measure(row: Row, rounds: int) -> dict[str, Any]:
    """Returns one row of the answer."""
    samples = alternate(contenders(row), rounds)
    ours = [name for name in SCHEDULES if name in samples]
    medians = {name: statistics.median(seconds) for name, seconds in samples.items()}
    return {
        "row": str(row),
        "milliseconds": milliseconds(samples),
        "times_faster_than_torchgpipe": {
            name: times_faster(samples, name, "torchgpipe") for name in ours
        },
        "efficiency": {
            name: round(medians["limit"] / medians[name], 3) for name in [*ours, "torchgpipe"]
        },
    }


def print_table(answers: list[dict[str, Any]]) -> None:
    """Prints medians in milliseconds, ratios of medians (and p10-p90 of the ratios by round)."""
    names = ("limit", "torchgpipe", *SCHEDULES)
    head = ["row", *names, *(f"torchgpipe/{name}" for name in SCHEDULES)]
    head += [f"eff. {name}" for name in SCHEDULES]
    lines = []
    for answer in answers:
        medians = {name: value["median"] for name, value in answer["milliseconds"].items()}
        line = [answer["row"], *(medians.get(name) for name in names)]
        for name in SCHEDULES:
            ratio = answer["times_faster_than_torchgpipe"].get(name)
            line.append("{of_medians:.2f} ({p10:.2f}-{p90:.2f})".format(**ratio) if ratio else None)
        lines.append([*line, *(answer["efficiency"].get(name) for name in SCHEDULES)])
    print(table(head, lines))


def main() -> None:
    rows = [name for name, row in ROWS.items() if row.stages_per_rank == 1]
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows)
    parser.add_argument("--rounds", type=int, help="timed runs of each contender (default: by row)")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "step_vs_torchgpipe.json")
    args = parser.parse_args()
    if importlib.util.find_spec("torchgpipe") is None:
        sys.exit("torchgpipe isn't installed; the head of this file tells how to install it")
    if not HAVE_PIPERT:
        print("pipert isn't installed: its columns stay empty")
    torch.set_num_threads(1)

    answers = []
    for name in args.rows:
        answers.append(measure(ROWS[name], args.rounds or ROWS[name].rounds))
        print(f"{ROWS[name]}: done", file=sys.stderr)
    print_table(answers)
    write_json(QUESTION, {"unit": "milliseconds a step", "rows": answers}, args.out)


if __name__ == "__main__":
    main()
