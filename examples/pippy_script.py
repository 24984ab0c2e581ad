"""PiPPy's way: mark where to cut, look at the pieces, pick a schedule.

torchrun --nproc-per-node 2 examples/pippy_script.py
torchrun --nproc-per-node 2 examples/pippy_script.py --schedule ZBVZeroBubble
"""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from pipert.compat.pippy import PipelineStage, SplitPoint, annotate_split_points, pipeline
from pipert.compat.torch_pipelining.schedules import get_schedule_class

ONE_STAGE_A_RANK, V_SHAPED = ("GPipe", "1F1B"), ("ZBVZeroBubble", "DualPipeV")


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads=4, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Sorter(nn.Module):
    """Learns to say which number comes where when a sequence of digits is sorted."""

    def __init__(self, width=32, num_layers=4, length=8):
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.position = nn.Parameter(torch.randn(length, width))
        self.layers = nn.ModuleList(Block(width) for _ in range(num_layers))
        self.head = nn.Linear(width, 10)

    def forward(self, digits):
        x = self.embed(digits) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def batch(step, rows, length=8):
    digits = torch.randint(10, (rows, length), generator=torch.Generator().manual_seed(step))
    return digits, digits.sort(-1).values


def loss_fn(output, target):
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def cuts(schedule, num_ranks, num_layers):
    """A stage for each rank, or two: each ends with one of the layers."""
    num_stages = num_ranks if schedule in ONE_STAGE_A_RANK else 2 * num_ranks
    ends = [num_layers * s // num_stages - 1 for s in range(1, num_stages)]
    return {f"layers.{layer}": SplitPoint.END for layer in ends}


def own_stages(schedule, rank, num_ranks):
    if schedule in ONE_STAGE_A_RANK:
        return [rank]
    return [rank, 2 * num_ranks - 1 - rank if schedule in V_SHAPED else num_ranks + rank]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedule", default="1F1B")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)  # every rank builds the same model, and keeps its own stages
    model = Sorter()
    annotate_split_points(model, cuts(args.schedule, size, len(model.layers)))
    x, _ = batch(0, args.rows)
    pipe = pipeline(model, args.chunks, example_args=(x,))
    if rank == 0:
        print(pipe)
    own = own_stages(args.schedule, rank, size)
    stages = [PipelineStage(pipe, s, torch.device("cpu")) for s in own]
    schedule = get_schedule_class(args.schedule)(
        stages[0] if args.schedule in ONE_STAGE_A_RANK else stages, args.chunks, loss_fn
    )
    optimizer = torch.optim.AdamW((p for s in stages for p in s.submod.parameters()), lr=3e-3)
    has_first, has_last = 0 in own, pipe.num_stages - 1 in own
    for step in range(args.steps):
        x, y = batch(step, args.rows)
        losses = []
        optimizer.zero_grad()
        schedule.step(*([x] if has_first else []), target=y if has_last else None, losses=losses)
        optimizer.step()
        if has_last:
            print(f"step {step}  loss {torch.stack(losses).mean():.6f}", flush=True)
    x, y = batch(args.steps, args.rows)
    if has_last:
        output = schedule.eval(*([x] if has_first else []), target=y)
        right = (output.argmax(-1) == y).float().mean()
        print(f"right on a new batch: {right:.0%}")
    else:
        schedule.eval(x)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
