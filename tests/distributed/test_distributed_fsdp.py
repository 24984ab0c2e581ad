"""Stages of a traced model whose leaves torch's fully_shard has sharded over replicas."""

from __future__ import annotations

import copy

import pytest
import torch
from plain_loop import plain_loop
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

import pipert

WIDTH, ROWS, MICROBATCHES = 8, 8, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Model(nn.Module):
    """Its first layer's output is read by the last one, past those between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(4))
        self.scale = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.layers[0](x)
        for layer in self.layers[1:]:
            x = layer(x)
        return x * first * self.scale


def _average(gradient: Tensor, group: torch.distributed.ProcessGroup) -> None:
    """Over the replicas, of what isn't sharded."""
    torch.distributed.all_reduce(gradient, group=group)
    gradient /= group.size()


@pytest.mark.processes(4)
@pytest.mark.parametrize(
    ("schedule", "num_stages", "options"),
    [
        ("1f1b", 2, {"recompute": "all"}),
        ("interleaved_1f1b", 4, {}),
        ("zb_h1", 2, {"main_grads": True}),
    ],
)
def test_sharded_leaves_train_as_whole_ones(
    schedule: str, num_stages: int, options: dict[str, object]
) -> None:
    """On a mesh of two ranks and two replicas."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    replica, replicas = mesh["dp"].get_local_rank(), mesh["dp"].get_group()
    model = Model()
    reference = copy.deepcopy(model)
    x, y = torch.randn(2, 2 * ROWS, WIDTH)
    stages = pipert.split(model, num_stages, balance="uniform", example_args=(x[:2],))
    for stage in stages[mesh["pp"].get_local_rank() :: 2]:
        for layer in stage.layers.children():
            fully_shard(layer, mesh=mesh["dp"])
    where = "main_grad" if "main_grads" in options else "grad"
    with pipert.Pipeline(
        stages,
        schedule=schedule,
        num_microbatches=MICROBATCHES,
        loss_fn=functional.mse_loss,
        group=mesh["pp"],
        broadcast_loss=True,
        timeout_s=20,
        **options,
    ) as pipe:
        expected = dict(reference.named_parameters())
        for _ in range(2):
            loss = pipe.step(x.chunk(2)[replica], target=y.chunk(2)[replica]).loss
            losses = plain_loop(reference, x, y, 2 * MICROBATCHES)
            torch.testing.assert_close(loss, losses.chunk(2)[replica].mean())
            for name, parameter in pipe.named_parameters():
                gradient = getattr(parameter, where)
                if name == "scale":
                    _average(gradient, replicas)
                else:
                    assert 2 * gradient.to_local().numel() == gradient.numel()
                    gradient = gradient.full_tensor()
                torch.testing.assert_close(gradient, expected[name].grad, msg=name)
            norm = pipe.clip_grad_norm_(0.1)
            torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(expected.values(), 0.1))
            with torch.no_grad():
                for parameter in pipe.parameters():
                    parameter -= getattr(parameter, where)
                    getattr(parameter, where).zero_()
                for parameter in reference.parameters():
                    parameter -= parameter.grad
                    parameter.grad.zero_()


@pytest.mark.processes(4)
def test_leaves_that_are_sharded_before_the_split_are_refused() -> None:
    model = Model()
    fully_shard(model.layers[1], mesh=init_device_mesh("cpu", (4,)))
    x = torch.randn(2, WIDTH)
    with pytest.raises(ValueError, match=r"layers\.1 is sharded already, and can't be traced"):
        pipert.split(model, 2, example_args=(x,))
