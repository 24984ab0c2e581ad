"""One SPMD script: the model is cut by names, and the linears inside a stage are sharded.

torchrun --nproc-per-node 4 examples/pipeline_cuts_spmd.py    # 2 stages x 2 shards
"""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn import functional

import pipert

SHARDED = {"up": ColwiseParallel(), "down": RowwiseParallel()}


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(functional.gelu(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self, width, num_layers, classes=16):
        super().__init__()
        self.embed = nn.Linear(classes, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(num_layers))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def batch(step, rows, classes=16):
    """The task: name the largest of the numbers."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(rows, classes, generator=generator)
    return x, x.argmax(-1)


def train(args):
    """Trains on this process's part, and yields each step's loss, the same on all ranks."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("pp", "tp"))
    torch.manual_seed(0)  # every process builds the same model, and keeps its own part
    model = Model(args.width, args.layers)
    x, _ = batch(0, rows=4)
    stages = pipert.split(model, pipeline_cuts=args.pipeline_cuts, example_args=(x,))
    stage = stages[mesh["pp"].get_local_rank()]
    for module in stage.modules():
        if isinstance(module, Block):
            parallelize_module(module, mesh["tp"], SHARDED)
    pipe = pipert.Pipeline(
        stages,
        schedule="zb_h1",
        num_microbatches=4,
        loss_fn=functional.cross_entropy,
        group=mesh["pp"],
        broadcast_loss=True,
    )
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=3e-3)
    with pipe:
        for step in range(args.steps):
            x, y = batch(step, args.rows)
            optimizer.zero_grad()
            loss = pipe.step(x, target=y).loss
            optimizer.step()
            yield loss


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pipeline-cuts", nargs="+", default=["layers.2"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipert.init()
    for step, loss in enumerate(train(args)):
        if dist.get_rank() == 0:
            print(f"step {step}  loss {loss:.6f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
