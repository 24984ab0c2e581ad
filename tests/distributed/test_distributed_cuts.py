"""Processes that split a model together have the cuts and costs of the first one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import data, layers, plain_loop, same_everywhere, same_gradients, within
from torch import nn
from torch.nn import functional

import pipert


def _split(model: nn.Module, num_stages: int | None = 2, **options: Any) -> pipert.Stages:
    x, _ = data(4)
    return pipert.split(model, num_stages, example_args=(x,), group=pipert.init(), **options)


@pytest.mark.processes(2)
@pytest.mark.parametrize(
    "how",
    [{"by": "structure"}, {"by": "trace"}, {"num_stages": None, "at": ["2"], "by": "trace"}],
    ids=["structure", "trace", "trace at"],
)
def test_times_are_those_of_the_first_rank(how: dict[str, Any]) -> None:
    stages = _split(layers(2), balance="time", **how)
    costs = stages.costs
    assert costs is not None
    assert all(seconds > 0 for seconds in costs.forward)
    same_everywhere(str([stages.layers, costs.forward, costs.input, costs.weight, costs.bytes]))


@pytest.mark.processes(2)
def test_a_function_is_asked_on_the_first_rank_alone() -> None:
    rank = pipert.init().rank()

    def balance(path: str, _: nn.Module) -> float:
        assert rank == 0
        return 3.0 if path == "0" else 1.0

    assert _split(layers(2), balance=balance).layers == [["0"], ["1", "2", "3"]]


@pytest.mark.processes(2)
def test_one_line_with_times_trains_as_the_plain_loop_does() -> None:
    model, plain = layers(4), layers(4)
    x, y = data(8)
    with pipert.pipeline(
        model,
        num_microbatches=4,
        loss_fn=functional.mse_loss,
        example_args=(x[:2],),
        balance="time",
    ) as pipe:
        pipe.step(x, target=y)
        plain_loop(plain, x, y, 4)
        same_gradients(pipe, plain)


@pytest.mark.processes(2)
def test_what_fails_on_the_first_rank_is_an_error_on_all() -> None:
    def balance(path: str, _: nn.Module) -> float:
        return -1.0 if path == "2" else 1.0

    with within(1.0), pytest.raises(ValueError, match=r"for layer 2 got -1\.0"):
        _split(layers(2), balance=balance)


@pytest.mark.processes(2)
def test_other_models_on_other_ranks_are_an_error() -> None:
    rank = pipert.init().rank()
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3 + rank)))
    if rank == 0:
        _split(model, balance="time")
        return
    with within(1.0), pytest.raises(ValueError, match="rank 0 has 3 layers, rank 1 has 4"):
        _split(model, balance="time")


@pytest.mark.processes(2)
def test_a_rank_that_can_not_split_is_told_to_the_other() -> None:
    rank = pipert.init().rank()
    x = torch.randn(4, 8 + rank)  # rank 1's first layer takes no such rows
    kind = ValueError if rank else pipert.PipelineError
    with within(5.0), pytest.raises(kind, match="fails on the example"):
        pipert.split(
            layers(2), 2, by="trace", example_args=(x,), balance="time", group=pipert.init()
        )
