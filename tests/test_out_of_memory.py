"""A rank that is out of memory says what it held, and what would hold less.

The module raises the error itself: no machine needs to be out of memory.
"""

import re

import pytest
import torch
from plain_loop import batch, mlp
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss


class Full(nn.Module):
    """Raises at its call number `at`."""

    def __init__(self, at):
        super().__init__()
        self.at = at
        self.num_calls = 0

    def forward(self, x):
        self.num_calls += 1
        if self.num_calls == self.at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return x


def out_of_memory(at, training=True, num_ranks=4, rank=0, **options):
    stages = list(pipert.split(mlp(num_ranks), num_ranks))
    stages[rank] = nn.Sequential(*stages[rank], Full(at))
    x, y = batch(16)
    with pipert.Pipeline(stages, num_microbatches=8, loss_fn=mse, **options) as pipe:
        with pytest.raises(pipert.PipelineError) as raised:
            pipe.step(x, target=y) if training else pipe.evaluate(x, target=y)
        pipe.step(x, target=y)  # it works again
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)
    return str(raised.value)


def test_the_error_says_which_activations_were_there_and_at_most_are():
    text = out_of_memory(at=3, schedule="gpipe")
    assert "rank 0, stage 0, microbatch 2, 0F2 (forward): OutOfMemoryError: CUDA out of" in text
    assert "rank 0 held the activations of 3 microbatches: 3 of stage 0\n" in text
    assert "gpipe holds at most 8 there; with the same stages" in text
    assert re.search(r"1f1b would hold 4\b", text)


def test_stages_of_one_rank_are_counted_apart():
    stages = pipert.split(mlp(4), 4)
    stages = [*stages[:2], nn.Sequential(*stages[2], Full(1)), stages[3]]
    x, y = batch(16)
    with (
        pipert.Pipeline(
            stages, schedule="interleaved_1f1b", num_ranks=2, num_microbatches=8, loss_fn=mse
        ) as pipe,
        pytest.raises(pipert.PipelineError, match="3 microbatches: 2 of stage 0, 1 of stage 2"),
    ):
        pipe.step(x, target=y)


def test_recompute_is_named_unless_it_is_on():
    advice = "recompute='all' keeps the input of each alone"
    assert advice in out_of_memory(at=2)
    assert advice not in out_of_memory(at=2, recompute="all")


def test_bytes_are_told_where_they_are_measured():
    assert "MB with all else" not in out_of_memory(at=2)
    assert re.search(r"\d\.\d MB with all else", out_of_memory(at=2, measure_memory=True))


def test_an_evaluation_holds_nothing_and_gets_no_advice_about_schedules():
    text = out_of_memory(at=2, training=False)
    assert "held the activations of 0 microbatches: 0 of stage 0" in text
    assert "holds at most" not in text


def test_other_errors_say_nothing_of_memory():
    stages = [nn.Linear(8, 8), nn.Linear(7, 8)]
    x, y = batch(8)
    with (
        pipert.Pipeline(stages, num_microbatches=4, loss_fn=mse) as pipe,
        pytest.raises(pipert.PipelineError) as raised,
    ):
        pipe.step(x, target=y)
    assert "held the activations" not in str(raised.value)
