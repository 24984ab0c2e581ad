"""Transformers models, ways to cut them, stages and schedules, against the plain model.

As a script (`make models-doc`) it runs the whole and writes docs/models.md; tests/test_models.py
runs a diagonal of it.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from toy_models import TOY_MODELS, ToyModel

import pipert
from pipert.integrations.transformers import has_plan, split_by_plan

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- made by `make models-doc` -->", "<!-- until here -->"
WAYS = ("traced", "plan")
STAGES = (2, 3, 4)
SCHEDULES = ("1f1b", "interleaved_1f1b", "zb_h1")
NUM_MICROBATCHES = 4
ROWS_EACH = 2

# What must be known of a model before one reads its row.
NOTES = {
    "bart": "two towers",
    "clip": "two towers; a fixed number of rows; the loss compares the rows of a microbatch alone",
    "deepseek_v3": "mixture of experts",
    "gpt_oss": "mixture of experts",
    "mixtral": "mixture of experts",
    "qwen2_moe": "mixture of experts",
    "qwen3_moe": "mixture of experts",
    "resnet": "batch norm: running statistics are updated microbatch by microbatch",
    "t5": "two towers",
    "whisper": "two towers",
}


class Run(NamedTuple):
    """One training pass of one model, cut in one way, under one schedule."""

    model: str
    way: str
    num_stages: int
    schedule: str

    def __str__(self) -> str:
        return f"{self.model}-{self.way}-{self.num_stages}-{self.schedule}"


@dataclass(frozen=True)
class Outcome:
    """How the gradients compare with the plain model's.

    Attributes:
        differ: names whose gradients differ in a bit, weights that are tied left out.
        far: names whose gradients differ by more than rounding.
        num_gradients: how many were compared.
    """

    differ: tuple[str, ...]
    far: tuple[str, ...]
    num_gradients: int


def ways_of(name: str) -> tuple[str, ...]:
    """Those that can be expected to work."""
    model = TOY_MODELS[name].make("meta")
    return tuple(way for way in WAYS if way != "plan" or has_plan(model))


def all_runs(names: Iterable[str] = TOY_MODELS) -> Iterator[Run]:
    for name in names:
        for way in ways_of(name):
            for num_stages, schedule in itertools.product(STAGES, SCHEDULES):
                yield Run(name, way, num_stages, schedule)


def diagonal() -> Iterator[Run]:
    """For each model and way one run; neighbours have other stages and schedules."""
    pairs = list(itertools.product(STAGES, SCHEDULES))
    for i, name in enumerate(TOY_MODELS):
        for j, way in enumerate(ways_of(name)):
            num_stages, schedule = pairs[(4 * i + 5 * j) % len(pairs)]
            yield Run(name, way, num_stages, schedule)


def batches_of(toy: ToyModel) -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [toy.batch(ROWS_EACH) for _ in range(NUM_MICROBATCHES)]


def plain_gradients(toy: ToyModel, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of the model as it is, microbatch by microbatch."""
    model = toy.make()
    for batch in batches:
        (model(**batch).loss / NUM_MICROBATCHES).backward()
    return gradients_of(model)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@functools.lru_cache(maxsize=1)
def cut(name: str, way: str, num_stages: int) -> tuple[nn.Module, pipert.Stages]:
    """A model and its stages, which schedules share."""
    toy = TOY_MODELS[name]
    model = toy.make()
    at, example = toy.cuts[num_stages], batches_of(toy)[0]
    if way == "plan":
        return model, split_by_plan(model, at=at, example_kwargs=example)
    stages = pipert.split(
        model, at=at, example_kwargs=example, by="trace", fixed_batch=toy.fixes_batch
    )
    return model, stages


def num_ranks(run: Run) -> int:
    """Interleaved schedules have several stages on each rank."""
    if run.schedule != "interleaved_1f1b":
        return run.num_stages
    return run.num_stages // 2 if run.num_stages % 2 == 0 else 1


def try_run(run: Run) -> Outcome:
    """Trains one step through a pipeline, and compares."""
    toy = TOY_MODELS[run.model]
    batches = batches_of(toy)
    expected = plain_gradients(toy, batches)
    model, stages = cut(run.model, run.way, run.num_stages)
    model.zero_grad()
    with pipert.Pipeline(
        stages,
        schedule=run.schedule,
        num_microbatches=NUM_MICROBATCHES,
        num_ranks=num_ranks(run),
        loss_fn=lambda output: output.loss,
        timeout_s=60,
    ) as pipe:
        pipe.step(microbatches=batches)
    return compare(gradients_of(model), expected, _tied_names(stages))


def compare(got: dict[str, Tensor], expected: dict[str, Tensor], tied: set[str]) -> Outcome:
    assert got.keys() == expected.keys(), got.keys() ^ expected.keys()
    differ = {name for name, value in expected.items() if not torch.equal(got[name], value)}
    far = {n for n in differ if not _is_close(got[n], expected[n])}
    return Outcome(tuple(sorted(differ - tied)), tuple(sorted(far)), len(expected))


def _is_close(got: Tensor, expected: Tensor) -> bool:
    scale = expected.abs().max().item()
    return bool((got - expected).abs().max() <= 1e-5 * scale)


def _tied_names(stages: pipert.Stages) -> set[str]:
    return {name for tied in stages.tied for _, name in tied.uses}


# --- the page --------------------------------------------------------------------------------


def cell(outcomes: list[Outcome | Exception]) -> str:
    """What the page says of a model and a way."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    wrong = [o for o in outcomes if not isinstance(o, Exception) and (o.differ or o.far)]
    good = len(outcomes) - len(errors) - len(wrong)
    text = f"{good} of {len(outcomes)}"
    if errors:
        text += f": {type(errors[0]).__name__}: {str(errors[0]).splitlines()[0]}"
    elif wrong:
        text += f": gradients differ ({', '.join((wrong[0].far or wrong[0].differ)[:2])})"
    return text.replace("|", "\\|")


def reason_without(name: str, way: str) -> str:
    """Why a model can't be cut in a way."""
    assert way == "plan"
    return "no plan"


def row(name: str, cells: dict[str, str]) -> str:
    toy = TOY_MODELS[name]
    notes = [NOTES[name]] if name in NOTES else []
    if toy.ties:
        notes.append("tied weights")
    texts = [cells.get(way) or reason_without(name, way) for way in WAYS]
    return f"| {' | '.join([name, f'`{toy.model}`', *texts, '; '.join(notes)])} |"


def table(cells: dict[str, dict[str, str]]) -> str:
    head = ["model", "class", *WAYS, "notes"]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    return "\n".join([*lines, *(row(name, cells[name]) for name in TOY_MODELS)])


def run_all(names: Iterable[str]) -> dict[str, dict[str, str]]:
    outcomes: dict[str, dict[str, list[Outcome | Exception]]] = {name: {} for name in names}
    for run in all_runs(outcomes):
        try:
            outcome: Outcome | Exception = try_run(run)
        except Exception as error:
            outcome = error
        print(run, outcome if isinstance(outcome, Exception) else cell([outcome]), flush=True)
        outcomes[run.model].setdefault(run.way, []).append(outcome)
    return {
        name: {way: cell(of) for way, of in by_way.items()} for name, by_way in outcomes.items()
    }


def write_page(made: str) -> None:
    text = PAGE.read_text()
    head, tail = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{head}{BEGIN}\n{made}\n{END}{tail}")


def main() -> None:
    torch.set_num_threads(1)
    names = sys.argv[1:]
    cells = run_all(names or TOY_MODELS)
    if names:
        print("\n".join(row(name, cells[name]) for name in names))
    else:
        write_page(table(cells))


if __name__ == "__main__":
    main()
