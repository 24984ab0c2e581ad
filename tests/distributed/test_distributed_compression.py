"""Compressed messages between processes, over either transport."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import data, is_last, layers, same
from torch import nn
from torch.nn import functional

import pipert


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x.bfloat16().float()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.bfloat16().float()


@pytest.mark.processes(2)
def test_two_ranks_round_what_they_exchange_over_either_transport() -> None:
    group = pipert.init()
    for transport in ("shm", "process_group"):
        reference = layers(4)
        first, last = pipert.split(reference, 2)
        with pipert.Pipeline(
            pipert.split(layers(4), 2),
            num_microbatches=1,
            loss_fn=functional.mse_loss,
            group=group,
            transport=transport,
            compression="bfloat16",
            timeout_s=20,
        ) as pipe:
            for rows in (13, 4, 900):
                x, y = data(rows)
                for parameter in (*pipe.parameters(), *reference.parameters()):
                    parameter.grad = None
                loss = functional.mse_loss(last(_Round.apply(first(x))), y)
                loss.backward()
                result = pipe.step(x, target=y)
                same(result.loss, loss.detach() if is_last(pipe) else None, "loss")
                expected = dict(reference.named_parameters())
                for name, parameter in pipe.named_parameters():
                    same(parameter.grad, expected[name].grad, name)


@pytest.mark.processes(2)
def test_ranks_with_different_compressions_are_refused() -> None:
    group = pipert.init()
    with pytest.raises((ValueError, pipert.PipelineError), match="compression"):
        pipert.Pipeline(
            pipert.split(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 2),
            num_microbatches=1,
            group=group,
            compression="bfloat16" if group.rank() == 0 else "none",
        )
