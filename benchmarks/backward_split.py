"""What does it cost to split a backward into its input half and its weight half?

    python benchmarks/backward_split.py

One stage, its input requiring a gradient, float32 on one core. `whole` is pipert's B, `input` and
`weight` its I and W, as the trace of a step has them; `torch` is the split that
torch.distributed.pipelining runs in its zero-bubble schedules (stage_backward_input and
stage_backward_weight, in Python) on a graph of the same modules. They take turns. Before the first
timing all must have produced the same gradients.

A half keeps what the other one needs, so that the split touches more memory that is new: `faults`
counts the pages that the kernel had to give in a step. "freed memory kept" is the row before with
glibc told to keep what it is given back, as jemalloc does, or MALLOC_MMAP_THRESHOLD_=1073741824 and
MALLOC_TRIM_THRESHOLD_=2147483647.

Memory is what a microbatch holds after its forward and after its input half: the growth of a rank's
peak with the number of microbatches that are in that state at once, counted by torch's allocator.
"""

from __future__ import annotations

import argparse
import ctypes
import pathlib
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from environment import RESULTS, write_json
from mlp import check_same
from pairs import Summary, table
from torch import Tensor, nn
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight

import pipert

QUESTION = "What does it cost to split a backward into its input half and its weight half?"
WHOLE, SPLIT = "0F0 1F0 1B0 0B0", "0F0 1F0 1I0 1W0 0I0 0W0"


class Encoder:
    """A stage of nn.TransformerEncoderLayers.

    Args:
        layers: how many.
        width, heads, hidden: of each.
        rows, length: of a microbatch of shape (rows, length, width).
        dropout: probability.
        keeps_pages: whether malloc keeps what is freed, from here on in this process.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        hidden: int,
        rows: int,
        length: int,
        dropout: float = 0.0,
        keeps_pages: bool = False,
    ) -> None:
        self.layers, self.width, self.heads, self.hidden = layers, width, heads, hidden
        self.shape = (rows, length, width)
        self.dropout = dropout
        self.keeps_pages = keeps_pages

    def __str__(self) -> str:
        rows, length, _ = self.shape
        text = f"{self.layers} encoder layers of width {self.width}, microbatch {rows} x {length}"
        text += f", dropout {self.dropout}" if self.dropout else ""
        return text + (", freed memory kept" if self.keeps_pages else "")

    def stage(self) -> nn.Sequential:
        """Builds it, the same each time."""
        torch.manual_seed(0)
        return nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    self.width, self.heads, self.hidden, dropout=self.dropout, batch_first=True
                )
                for _ in range(self.layers)
            )
        )

    def entrance(self) -> nn.Linear:
        """A stage before it, so that its input requires a gradient."""
        torch.manual_seed(1)
        return nn.Linear(self.width, self.width)

    def batch(self, microbatches: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        rows, *rest = self.shape
        return torch.randn((rows * microbatches, *rest), generator=generator)


MODELS = {
    "tiny": Encoder(16, 16, 2, 64, rows=4, length=8),
    "small": Encoder(16, 16, 2, 64, rows=4, length=64),
    "dropout": Encoder(16, 16, 2, 64, rows=4, length=64, dropout=0.1),
    "medium": Encoder(4, 256, 4, 1024, rows=8, length=64),
    "kept": Encoder(4, 256, 4, 1024, rows=8, length=64, keeps_pages=True),
}


def keep_pages() -> None:
    """Tells glibc to keep what it is given back; elsewhere it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: what is larger is a mapping of its own
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: what is free at the end goes back


def loss_fn(output: Tensor) -> Tensor:
    return output.square().mean()


def one_rank(model: Encoder, actions: list[str], microbatches: int, **options: Any) -> Any:
    """A pipeline of two stages on one rank, with the schedule given."""
    return pipert.Pipeline(
        [model.entrance(), model.stage()],
        schedule=pipert.Schedule([actions]),
        num_microbatches=microbatches,
        num_ranks=1,
        loss_fn=loss_fn,
        **options,
    )


class Ours:
    """A step of pipert; gives the seconds of each action of the second stage."""

    def __init__(self, model: Encoder, actions: str) -> None:
        self._pipe = one_rank(model, actions.split(), 1)
        self._input = model.batch()

    def run(self) -> dict[str, float]:
        self.stage.zero_grad(set_to_none=True)
        self._pipe.step(self._input)
        return {
            event.action.kind: event.ended - event.started
            for event in self._pipe.trace().events
            if event.action is not None and event.action.stage == 1
        }

    @property
    def stage(self) -> nn.Module:
        module = self._pipe.stages[1]
        assert isinstance(module, nn.Module)
        return module


class Torch:
    """The split of torch.distributed.pipelining; gives the seconds of both halves."""

    def __init__(self, model: Encoder) -> None:
        self.stage = model.stage()
        self._entrance = model.entrance()
        self._batch = model.batch()

    def run(self) -> dict[str, float]:
        self.stage.zero_grad(set_to_none=True)
        with torch.no_grad():
            x = self._entrance(self._batch)
        x.requires_grad_()
        loss = loss_fn(self.stage(x))
        seconds, groups = timed(
            lambda: stage_backward_input([loss], None, [x], self.stage.parameters())[1]
        )
        weight, _ = timed(lambda: stage_backward_weight(self.stage.parameters(), groups))
        return {"I": seconds, "W": weight}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the work returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def measure_time(model: Encoder, rounds: int) -> dict[str, Any]:
    """Times whole, halves and torch's halves in turns."""
    contenders = {"whole": Ours(model, WHOLE), "split": Ours(model, SPLIT), "torch": Torch(model)}
    if model.dropout == 0:
        grads = {}
        for name, contender in contenders.items():
            contender.run()
            grads[name] = {k: p.grad for k, p in contender.stage.named_parameters()}
        for name in ("split", "torch"):
            check_same(grads[name], grads["whole"])
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    faults: dict[str, list[int]] = {name: [] for name in contenders}
    for index in range(-5, rounds):
        order = list(contenders.items())
        for name, contender in order if index % 2 == 0 else order[::-1]:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            seconds = contender.run()
            if index >= 0:
                samples[name].append(seconds)
                faults[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    whole = [s["B"] for s in samples["whole"]]
    halves = [s["I"] + s["W"] for s in samples["split"]]
    theirs = [s["I"] + s["W"] for s in samples["torch"]]

    def ratio(above: list[float], below: list[float]) -> dict[str, float]:
        by_round = Summary.of([a / b for a, b in zip(above, below, strict=True)], 3)
        medians = statistics.median(above) / statistics.median(below)
        return {"of_medians": round(medians, 3), **vars(by_round)}

    def ms(values: list[float]) -> dict[str, float]:
        return vars(Summary.of([1e3 * value for value in values]))

    return {
        "milliseconds": {
            "whole": ms(whole),
            "input": ms([s["I"] for s in samples["split"]]),
            "weight": ms([s["W"] for s in samples["split"]]),
            "torch halves": ms(theirs),
        },
        "page_faults_a_step": {name: statistics.median(each) for name, each in faults.items()},
        "halves_by_whole": ratio(halves, whole),
        "times_faster_than_torch": ratio(theirs, halves),
    }


def peak_bytes(model: Encoder, microbatches: int, with_input: bool) -> int:
    """The rank's peak, all microbatches' forwards (and input halves) done before any other half."""
    ahead, behind = [], []
    for m in range(microbatches):
        ahead += [f"0F{m}", f"1F{m}"] + ([f"1I{m}", f"0I{m}"] if with_input else [])
        behind += [f"1W{m}", f"0W{m}"] if with_input else [f"1B{m}", f"0B{m}"]
    with one_rank(model, ahead + behind, microbatches, measure_memory=True) as pipe:
        for _ in range(2):  # the second finds the gradients there
            pipe.step(model.batch(microbatches))
        peak = pipe.report().memory[0].peak_bytes
        assert peak is not None
        return int(peak)


def measure_memory(model: Encoder) -> dict[str, Any]:
    """Bytes that a microbatch holds after its forward, and after its input half."""

    def each(with_input: bool) -> float:
        few, many = 4, 12
        grown = peak_bytes(model, many, with_input) - peak_bytes(model, few, with_input)
        return grown / (many - few)

    forward, after_input = each(False), each(True)
    return {
        "bytes_after_forward": round(forward),
        "bytes_after_input": round(after_input),
        "after_input_by_after_forward": round(after_input / forward, 3),
    }


def measure_growth(model: Encoder, steps: int) -> dict[str, Any]:
    """Resident memory over many steps: its peak in the first tenth, and in all."""
    ours = Ours(model, SPLIT)
    for _ in range(steps // 10):
        ours.run()
    early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(steps - steps // 10):
        ours.run()
    late = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"steps": steps, "peak_rss_kib_early": early, "peak_rss_kib_late": late}


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--rows", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=60, help="timed steps of each contender")
    parser.add_argument("--steps", type=int, default=1000, help="steps to look for growth in")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "backward_split.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    growth = measure_growth(MODELS["tiny"], args.steps)
    rows = []
    for name in args.rows:
        model = MODELS[name]
        if model.keeps_pages:
            keep_pages()
        rows.append(
            {"row": str(model), **measure_time(model, args.rounds), **measure_memory(model)}
        )
    head = [
        "row",
        "B ms",
        "I ms",
        "W ms",
        "(I+W)/B",
        "torch's halves",
        "times faster",
        "memory I/F",
        "faults B",
        "I+W",
    ]
    lines = []
    for row in rows:
        ms = {name: value["median"] for name, value in row["milliseconds"].items()}
        lines.append(
            [
                *(row["row"], ms["whole"], ms["input"], ms["weight"]),
                *(row["halves_by_whole"]["of_medians"], ms["torch halves"]),
                row["times_faster_than_torch"]["of_medians"],
                row["after_input_by_after_forward"],
                *(row["page_faults_a_step"][name] for name in ("whole", "split")),
            ]
        )
    print(table(head, lines))
    early, late = growth["peak_rss_kib_early"], growth["peak_rss_kib_late"]
    print(f"peak resident memory after {args.steps // 10} steps {early} KiB, after all {late} KiB")
    write_json(QUESTION, {"rows": rows, "growth": growth}, args.out)


if __name__ == "__main__":
    main()
