"""What does an instruction cost the host, and how does that grow?

    python benchmarks/overhead.py

Stages are Python functions that return their input (the first one makes it require a gradient), so
a step is nothing but the runtime's own work, the calls of the functions and, in a training step,
autograd's walk over an empty graph. All ranks are threads of this process. One size grows at a
time, the others stay; a line is fitted through (actions, microseconds), and an exponent through
their logarithms: 1 is linear growth, less is a fixed cost shared by more work. An action is the F
or the B of one microbatch on one stage; the instructions are those of all ranks' programs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from environment import RESULTS, write_json
from pairs import Summary, table
from torch import Tensor

import pipert

QUESTION = "What does an instruction cost the host, and how does that grow?"


@dataclasses.dataclass(frozen=True)
class Size:
    """A pipeline's shape."""

    num_ranks: int = 2
    stages_per_rank: int = 1
    num_microbatches: int = 32

    def build(self) -> pipert.Pipeline:
        num_stages = self.num_ranks * self.stages_per_rank
        return pipert.Pipeline(
            [source] + [identity] * (num_stages - 1),
            schedule="1f1b" if self.stages_per_rank == 1 else "interleaved_1f1b",
            num_microbatches=self.num_microbatches,
            loss_fn=loss_fn,
            num_ranks=self.num_ranks,
        )

    def num_actions(self, training: bool) -> int:
        """Counts the actions of one pass on all ranks together: an F, and in training a B."""
        stages = self.num_ranks * self.stages_per_rank
        return stages * self.num_microbatches * (2 if training else 1)


SWEEPS = {
    "microbatches": [Size(num_microbatches=m) for m in (8, 16, 32, 64, 128, 256, 512)],
    "stages a rank": [Size(stages_per_rank=v) for v in (1, 2, 4, 8, 16)],
    "ranks": [Size(num_ranks=p) for p in (1, 2, 4, 8, 16)],
}


def source(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def identity(x: Tensor) -> Tensor:
    return x


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    return output.sum()


def seconds_of(run: Callable[[], object], repeats: int) -> list[float]:
    """Times `run`, after a fifth as many untimed runs."""
    for _ in range(max(2, repeats // 5)):
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def measure(size: Size, repeats: int) -> dict[str, Any]:
    """Times a training step and a forward pass of one size."""
    answer: dict[str, Any] = dataclasses.asdict(size)
    x = torch.ones(size.num_microbatches, 1)
    with contextlib.closing(size.build()) as pipe:
        instructions = num_instructions(pipe)
        passes = {"step": lambda: pipe.step(x, target=x), "forward": lambda: pipe(x)}
        for name, run in passes.items():
            microseconds = [1e6 * seconds for seconds in seconds_of(run, repeats)]
            actions = size.num_actions(training=name == "step")
            answer[name] = {
                "actions": actions,
                "microseconds": dataclasses.asdict(Summary.of(microseconds)),
                "microseconds_an_action": round(statistics.median(microseconds) / actions, 4),
            }
    median = answer["step"]["microseconds"]["median"]
    answer["step"]["instructions"] = instructions
    answer["step"]["microseconds_an_instruction"] = round(median / instructions, 4)
    return answer


def num_instructions(pipe: pipert.Pipeline) -> int:
    """Counts the instructions of a training step on all ranks together."""
    programs = pipe.program if isinstance(pipe.program, Sequence) else [pipe.program]
    return sum(len(program.instructions) for program in programs)


def growth(points: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    """Fits microseconds = fixed + slope * actions, and microseconds ~ actions ** exponent."""
    actions = torch.tensor([float(point[name]["actions"]) for point in points]).double()
    microseconds = torch.tensor(
        [point[name]["microseconds"]["median"] for point in points]
    ).double()
    # Relative errors count alike: else the largest size alone would decide.
    fixed, slope = _fit(actions, microseconds, weights=1 / microseconds)
    _, exponent = _fit(actions.log(), microseconds.log(), weights=torch.ones_like(actions))
    off = (fixed + slope * actions - microseconds).abs() / microseconds
    return {
        "fixed_microseconds": round(fixed, 2),
        "microseconds_an_action": round(slope, 4),
        "exponent": round(exponent, 3),
        "largest_relative_error_of_line": round(off.max().item(), 3),
    }


def _fit(x: Tensor, y: Tensor, weights: Tensor) -> tuple[float, float]:
    """Returns a and b of y = a + b x by weighted least squares."""
    left = torch.stack([torch.ones_like(x), x], dim=1) * weights[:, None]
    a, b = torch.linalg.lstsq(left, y * weights).solution.tolist()
    return a, b


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--repeats", type=int, default=100, help="timed passes of each size")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "overhead.json")
    args = parser.parse_args()
    torch.set_num_threads(1)

    sweeps = {}
    for swept, sizes in SWEEPS.items():
        points = [measure(size, args.repeats) for size in sizes]
        fits = {name: growth(points, name) for name in ("step", "forward")}
        sweeps[swept] = {"points": points, "growth": fits}
        head = [swept, "step us", "us/instruction", "us/action", "forward us", "us/action"]
        lines = []
        for size, point in zip(sizes, points, strict=True):
            grown = {
                "microbatches": size.num_microbatches,
                "stages a rank": size.stages_per_rank,
                "ranks": size.num_ranks,
            }[swept]
            step, forward = point["step"], point["forward"]
            line = [
                str(grown),
                step["microseconds"]["median"],
                step["microseconds_an_instruction"],
                step["microseconds_an_action"],
                forward["microseconds"]["median"],
                forward["microseconds_an_action"],
            ]
            lines.append(line)
        print(table(head, lines))
        for name, fit in fits.items():
            print(
                f"{name}: {fit['fixed_microseconds']:.1f} us + "
                f"{fit['microseconds_an_action']:.2f} us an action; exponent {fit['exponent']:.2f}"
            )
        print()
    write_json(QUESTION, {"unit": "microseconds", "sweeps": sweeps}, args.out)


if __name__ == "__main__":
    main()
