"""Trains a convolutional nn.Sequential as torchgpipe's users do: balanced by time, checkpointed.

    python examples/gpipe_style.py

In torchgpipe this is

    balance = balance_by_time(2, model, sample)
    model = GPipe(model, balance, chunks=4, checkpoint="except_last", deferred_batch_norm=True)
    loss = loss_fn(model(x), y)
    loss.backward()
"""

import argparse
import math

import torch
from torch import nn

import pipert

CLASSES = 4


def network(width):
    """Strided convolutions: early layers have large images, late ones many parameters."""
    layers, channels = [], 3
    for size in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(channels, size, 3, padding=1), nn.BatchNorm2d(size), nn.ReLU()]
        layers += [nn.Conv2d(size, size, 3, stride=2, padding=1), nn.BatchNorm2d(size), nn.ReLU()]
        channels = size
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]
    return nn.Sequential(*layers)


def training_batch(step, size, pixels):
    """Noisy stripes, in one of four directions: a function of the step alone."""
    generator = torch.Generator().manual_seed(step)
    y = torch.randint(CLASSES, (size,), generator=generator)
    angle = (y * math.pi / CLASSES).view(-1, 1, 1)
    row = torch.arange(pixels).float()
    stripes = torch.sin(row.view(-1, 1) * angle.sin() + row * angle.cos())
    return stripes.unsqueeze(1) + torch.randn(size, 3, pixels, pixels, generator=generator), y


def main():
    args = parse_args()
    torch.set_num_threads(1)  # one for each rank
    torch.manual_seed(0)
    model = network(args.width)
    sample, _ = training_batch(0, args.batch // args.chunks, args.pixels)
    stages = pipert.split(model, args.stages, balance="time", example_args=(sample,))
    print(f"{stages}\n")

    pipe = pipert.Pipeline(
        stages,
        schedule="gpipe",
        num_microbatches=args.chunks,
        loss_fn=nn.functional.cross_entropy,
        recompute="except_last",
        deferred_batch_norm=True,
    )
    optimizer = torch.optim.SGD(pipe.parameters(), lr=0.05, momentum=0.9)
    for step in range(args.steps):
        x, y = training_batch(step, args.batch, args.pixels)
        optimizer.zero_grad()
        loss = pipe.step(x, target=y).loss
        optimizer.step()
        if (step + 1) % 10 == 0 or step + 1 == args.steps:
            print(f"step {step + 1:3}/{args.steps}  loss {loss:.4f}", flush=True)

    model.eval()  # its layers are those of the stages
    x, y = training_batch(args.steps, args.batch, args.pixels)
    print(f"right: {(pipe(x).argmax(1) == y).sum()} of {len(y)}")
    pipe.close()


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=4, help="microbatches in a step")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--width", type=int, default=16, help="channels of the first layer")
    parser.add_argument("--pixels", type=int, default=32)
    return parser.parse_args()


if __name__ == "__main__":
    main()
