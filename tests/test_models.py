"""Transformers models train through pipelines as they do alone, bit for bit.

This is a diagonal of the matrix in model_matrix.py; `make models-doc` runs the whole.
"""

from __future__ import annotations

import pytest
from model_matrix import (
    BEGIN,
    END,
    PAGE,
    WAYS,
    Outcome,
    cell,
    diagonal,
    reason_without,
    row,
    try_run,
    ways_of,
)
from toy_models import TOY_MODELS

transformers = pytest.importorskip("transformers", reason="transformers isn't installed")


@pytest.mark.parametrize("run", list(diagonal()), ids=str)
def test_gradients_equal_the_plain_model_s_bit_for_bit(run):
    outcome = try_run(run)
    assert outcome.num_gradients > 5
    assert outcome.differ == ()
    assert outcome.far == ()


def test_a_gradient_that_differs_is_told():
    assert cell([Outcome((), (), 9), Outcome(("x",), (), 9)]) == "1 of 2: gradients differ (x)"
    assert cell([Outcome((), (), 9), ValueError("no\nmore")]) == "1 of 2: ValueError: no"


def rows_of_page() -> dict[str, list[str]]:
    """By model, the cells of the page's table."""
    made = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in made.splitlines()]
    return {row[0]: row for row in rows if len(row) > 1}


def test_the_page_has_every_model_and_no_other():
    assert rows_of_page().keys() - {"model", "---"} == TOY_MODELS.keys()


@pytest.mark.parametrize("name", TOY_MODELS)
def test_the_page_says_that_everything_works_or_why_not(name):
    """What it says is what the last `make models-doc` found."""
    cells = dict.fromkeys(ways_of(name), "9 of 9")
    expected = [cells.get(way) or reason_without(name, way) for way in WAYS]
    assert rows_of_page()[name][2 : 2 + len(WAYS)] == expected
    assert f"| {' | '.join(rows_of_page()[name])} |" == row(name, cells)
