"""How many times faster is a pipert step than a step of DeepSpeed's pipeline engine?

    pip install --no-deps --no-build-isolation deepspeed
    pip install hjson einops msgpack psutil py-cpuinfo pydantic tqdm
    torchrun --nproc-per-node 2 benchmarks/step_vs_deepspeed.py

Same model, microbatches and machine, two processes, one intra-op thread each, float32 on the CPU.
DeepSpeed trains by `train_batch` with plain SGD and learning rate 0, on its 1F1B and gloo; a pipert
step is timed with the step of torch's SGD and with clearing its gradients, which train_batch does
too. DeepSpeed is an optional peer: without it, its column stays empty.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before it is imported

import torch
import torch.distributed as dist
from environment import RESULTS, write_json
from mlp import NUM_RANKS, ROWS, Row, loss_fn
from pairs import Contender, alternate, milliseconds, table, times_faster
from pipert_contender import PipertPipeline
from torch import Tensor

QUESTION = "How many times faster is a pipert step than a step of DeepSpeed's pipeline engine?"
HAVE_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
PEER = "deepspeed"
OURS = {"processes": "module", "processes native": "native"}  # the kind of their stages


class DeepSpeedPipeline:
    """One rank's part of a pipeline by DeepSpeed.

    Args:
        row: The model and the batch.
    """

    def __init__(self, row: Row) -> None:
        import deepspeed
        from deepspeed.pipe import PipelineModule

        layers = [layer for stage in range(row.num_stages) for layer in row.stage(stage)]
        model = PipelineModule(
            layers=layers, num_stages=NUM_RANKS, loss_fn=loss_fn, partition_method="uniform"
        )
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=torch.optim.SGD(parameters, lr=0.0),
            config={
                "train_micro_batch_size_per_gpu": row.microbatch_size,
                "gradient_accumulation_steps": row.num_microbatches,
                "steps_per_print": 10**9,
            },
        )
        x, y = row.batch()
        self._parts = list(
            zip(x.split(row.microbatch_size), y.split(row.microbatch_size), strict=True)
        )
        self.loss: Tensor | None = None  # every rank has it

    def run(self) -> None:
        self.loss = self._engine.train_batch(itertools.cycle(self._parts))


class PipertTrainer:
    """A pipert Pipeline that does what train_batch does."""

    def __init__(self, row: Row, stage_kind: str) -> None:
        self._pipeline = PipertPipeline(row, "1f1b", group=dist.group.WORLD, stage_kind=stage_kind)
        self._optimizer = torch.optim.SGD(self._pipeline.pipe.parameters(), lr=0.0)
        self.loss: Tensor | None = None  # of the rank with the last stage

    def run(self) -> None:
        self.loss = self._pipeline.run().loss
        self._optimizer.step()
        self._optimizer.zero_grad()


def contenders(row: Row) -> list[Contender]:
    """Builds the contenders of one row, and makes sure that they compute the same loss."""
    ours = {name: PipertTrainer(row, kind) for name, kind in OURS.items()}
    peer = DeepSpeedPipeline(row) if HAVE_DEEPSPEED else None
    for _ in range(2):  # native stages are native from the second step on
        for trainer in ours.values():
            trainer.run()
    if peer is not None:
        peer.run()
        for trainer in ours.values():
            if trainer.loss is not None:
                torch.testing.assert_close(trainer.loss, peer.loss)
    runs = [Contender(name, trainer.run) for name, trainer in ours.items()]
    return [Contender(PEER, peer.run), *runs] if peer is not None else runs


def measure(row: Row, rounds: int) -> dict[str, Any]:
    """Returns one row of the answer."""
    samples = alternate(contenders(row), rounds)
    answer = {"row": str(row), "milliseconds": milliseconds(samples)}
    if HAVE_DEEPSPEED:
        answer["times_faster_than_deepspeed"] = {
            name: times_faster(samples, name, PEER) for name in OURS
        }
    return answer


def print_table(answers: list[dict[str, Any]]) -> None:
    """Prints medians in milliseconds, ratios of medians (and p10-p90 of the ratios by round)."""
    names = [PEER, *OURS]
    lines = []
    for answer in answers:
        line = [answer["row"], *(answer["milliseconds"].get(n, {}).get("median") for n in names)]
        for name in OURS:
            ratio = answer.get("times_faster_than_deepspeed", {}).get(name)
            line.append("{of_medians:.2f} ({p10:.2f}-{p90:.2f})".format(**ratio) if ratio else None)
        lines.append(line)
    print(table(["row", *names, *(f"{PEER}/{name}" for name in OURS)], lines))


def main() -> None:
    rows = [name for name, row in ROWS.items() if row.stages_per_rank == 1]
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows[:3])
    parser.add_argument("--rounds", type=int, default=20, help="timed runs of each contender")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "step_vs_deepspeed.json")
    args = parser.parse_args()
    if int(os.environ.get("WORLD_SIZE", "1")) != NUM_RANKS:
        sys.exit(f"usage: torchrun --nproc-per-node {NUM_RANKS} {sys.argv[0]}")
    torch.set_num_threads(1)
    version = None
    if HAVE_DEEPSPEED:
        import deepspeed

        deepspeed.init_distributed("gloo")
        version = deepspeed.__version__
    else:
        dist.init_process_group("gloo")
        print("DeepSpeed isn't installed: its column stays empty")
    answers = [measure(ROWS[name], args.rounds) for name in args.rows]
    if dist.get_rank() == 0:
        print_table(answers)
        answer = {"unit": "milliseconds a step", "deepspeed": version, "rows": answers}
        write_json(QUESTION, answer, args.out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
