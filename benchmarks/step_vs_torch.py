"""How many times faster is a pipert step than a step of torch.distributed.pipelining?

    torchrun --nproc-per-node 2 benchmarks/step_vs_torch.py

Same model, schedule, microbatches and machine, one intra-op thread a rank, float32 on the CPU.
Contenders take turns: `torch` (two processes on gloo), `threads` (pipert with both ranks as threads
of the first process, the second one asleep in a barrier), `processes` (pipert in the same two
processes as torch, on gloo); the last two with module stages, and with native ones. `limit` is what
the plain module takes for (microbatches + ranks - 1) forwards and backwards, one core at work;
`limit both` the same on both cores at once, which on a machine that shares its cores is the time
that two ranks can really reach. `last rank` is a plain Python loop over the last rank's modules and
its loss function, which the limit leaves out.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import pathlib
import statistics
import sys
from typing import Any

import torch
import torch.distributed as dist
from environment import RESULTS, write_json
from mlp import NUM_RANKS, ROWS, LastRank, Limit, Row, check_same
from pairs import Contender, alternate, milliseconds, table, times_faster
from torch_peer import TorchPipeline

QUESTION = "How many times faster is a pipert step than a step of torch.distributed.pipelining?"
SCHEDULES = {1: ("1f1b",), 2: ("interleaved_1f1b", "zb_interleaved")}  # by stages a rank
OURS = ["threads", "threads native", "processes", "processes native"]
HAVE_PIPERT = importlib.util.find_spec("pipert") is not None


def contenders(row: Row, schedule: str) -> list[Contender]:
    """Builds the contenders of one row, and makes sure that they compute the same gradients."""
    peer = TorchPipeline(row, schedule)
    pipelines: dict[str, Any] = {"torch": peer}
    if HAVE_PIPERT:
        from pipert_contender import PipertPipeline

        for name in OURS:
            options = {"stage_kind": "native"} if "native" in name else {}
            if "processes" in name:
                options["group"] = dist.group.WORLD
            elif dist.get_rank() > 0:
                continue
            pipelines[name] = PipertPipeline(row, schedule, **options)
    for name, pipeline in pipelines.items():
        for _ in range(2):  # native stages are native from the second step on
            pipeline.prepare()
            pipeline.run()
        if name != "torch":
            check_same(pipeline.gradients(), peer.gradients())

    pipelines["limit both"] = Limit(row)
    if dist.get_rank() == 0:
        pipelines["limit"] = pipelines["limit both"]
        pipelines["last rank"] = LastRank(row)
    names = ["limit", "limit both", "last rank", "torch"]
    names += OURS if HAVE_PIPERT else []
    return [
        Contender(name, pipelines[name].run, pipelines[name].prepare)
        if name in pipelines
        else Contender(name)
        for name in names
    ]


def measure(row: Row, schedule: str, rounds: int) -> dict[str, Any]:
    """Returns one row of the answer."""
    samples = alternate(contenders(row, schedule), rounds)
    ours = [name for name in OURS if name in samples]
    medians = {name: statistics.median(seconds) for name, seconds in samples.items()}
    return {
        "row": str(row),
        "schedule": schedule,
        "milliseconds": milliseconds(samples),
        "times_faster_than_torch": {name: times_faster(samples, name, "torch") for name in ours},
        "efficiency": {
            name: round(medians["limit"] / medians[name], 3) for name in [*ours, "torch"]
        },
    }


def print_table(answers: list[dict[str, Any]]) -> None:
    """Prints medians in milliseconds, ratios of medians (and p10-p90 of the ratios by round)."""
    known = ["limit", "limit both", "last rank", "torch", *OURS]
    head = ["row", "schedule", *known, *(f"torch/{name}" for name in OURS)]
    lines = []
    for answer in answers:
        medians = {name: value["median"] for name, value in answer["milliseconds"].items()}
        line = [answer["row"], answer["schedule"], *(medians.get(name) for name in known)]
        for name in OURS:
            ratio = answer["times_faster_than_torch"].get(name)
            line.append("{of_medians:.2f} ({p10:.2f}-{p90:.2f})".format(**ratio) if ratio else None)
        lines.append(line)
    print(table(head, lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, help="timed runs of each contender (default: by row)")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "step_vs_torch.json")
    args = parser.parse_args()
    if int(os.environ.get("WORLD_SIZE", "1")) != NUM_RANKS:
        sys.exit(f"usage: torchrun --nproc-per-node {NUM_RANKS} {sys.argv[0]}")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    leader = dist.get_rank() == 0
    if leader and not HAVE_PIPERT:
        print("pipert isn't installed: its columns stay empty")

    answers = []
    for row in (ROWS[name] for name in args.rows):
        for schedule in SCHEDULES[row.stages_per_rank]:
            answers.append(measure(row, schedule, args.rounds or row.rounds))
            if leader:
                print(f"{row} {schedule}: done", file=sys.stderr)
    if leader:
        print_table(answers)
        write_json(QUESTION, {"unit": "milliseconds a step", "rows": answers}, args.out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
