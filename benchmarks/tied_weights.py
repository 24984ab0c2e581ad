"""What does it cost a step that two processes share an embedding, against all_reduce after it?

    torchrun --nproc-per-node 2 benchmarks/tied_weights.py

A model of two stages whose embedding is the head's weight too. `untied`: each process has a weight
of its own, which is the floor: the same compute. `tied`: pipert exchanges the gradient at the end
of the step. `all_reduce`: untied, and after the step torch.distributed adds the gradients up over
gloo, as a script without tied weights would.

In a step of two microbatches there is little compute: what is compared is the exchange, and the
last columns have its time, what a step takes longer than untied. The gradients of the last two
agree before anything is timed.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
from typing import Any

import torch
import torch.distributed as dist
from environment import RESULTS, write_json
from pairs import Contender, alternate, milliseconds, table
from torch import Tensor, nn

import pipert

QUESTION = (
    "What does it cost a step that two processes share an embedding, against all_reduce after it?"
)
WIDTH = 256
MEGABYTES = [1, 8, 64]  # of the embedding's weight


def make_pipe(words: int, tied: bool) -> pipert.Pipeline:
    torch.manual_seed(0)
    embedding, head = nn.Embedding(words, WIDTH), nn.Linear(WIDTH, words, bias=False)
    with torch.no_grad():
        head.weight.copy_(embedding.weight)
    if tied:
        head.weight = embedding.weight
    return pipert.Pipeline(
        [embedding, head], num_microbatches=2, loss_fn=loss, group=pipert.init(), timeout_s=60
    )


def loss(logits: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, target)


def contenders(words: int) -> tuple[list[Contender], list[pipert.Pipeline]]:
    """The three, their gradients compared."""
    pipes = {name: make_pipe(words, name == "tied") for name in ("untied", "tied", "all_reduce")}
    x = torch.arange(4) % words
    y = torch.arange(1, 5) % words

    def step(name: str) -> None:
        pipes[name].step(x, target=y)
        if name == "all_reduce":
            dist.all_reduce(gradient(name))

    def gradient(name: str) -> Tensor:
        return next(pipes[name].parameters()).grad

    def clear(name: str) -> None:
        next(pipes[name].parameters()).grad = None

    for name in pipes:
        step(name)
    torch.testing.assert_close(gradient("tied"), gradient("all_reduce"))
    return [
        Contender(name, run=lambda name=name: step(name), prepare=lambda name=name: clear(name))
        for name in pipes
    ], list(pipes.values())


def measure(megabytes: int, rounds: int) -> dict[str, Any]:
    ways, pipes = contenders((megabytes << 20) // (4 * WIDTH))
    samples = alternate(ways, rounds)
    for pipe in pipes:
        pipe.close()
    extra = {
        name: round(
            1e3
            * statistics.median(
                own - floor for own, floor in zip(samples[name], samples["untied"], strict=True)
            ),
            3,
        )
        for name in ("tied", "all_reduce")
    }
    return {"milliseconds": milliseconds(samples), "milliseconds_more_than_untied": extra}


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "tied_weights.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    group = pipert.init()
    if group is None or group.size() != 2:
        raise SystemExit("two processes are needed: torchrun --nproc-per-node 2 " + __file__)
    answer = {str(size): measure(size, arguments.rounds) for size in MEGABYTES}
    if group.rank() == 0:
        rows = []
        for size, found in answer.items():
            steps, extra = found["milliseconds"], found["milliseconds_more_than_untied"]
            rows.append(
                [
                    f"{size} MB",
                    *(steps[name]["median"] for name in ("untied", "tied", "all_reduce")),
                    *extra.values(),
                ]
            )
        head = ["weight", "untied", "tied", "all_reduce", "tied, more", "all_reduce, more"]
        print("milliseconds a step (medians)")
        print(table(head, rows))
        write_json(QUESTION, {"rounds": arguments.rounds, "by_megabytes": answer}, arguments.out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
