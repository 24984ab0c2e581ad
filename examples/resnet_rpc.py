"""Trains ResNet-50 on two workers, with micro-batches of any size: torch's RPC tutorial, here.

    python examples/resnet_rpc.py                       # workers are threads of this process
    torchrun --nproc-per-node 2 examples/resnet_rpc.py  # or processes: the same losses, bit for bit

The tutorial ("Distributed Pipeline Parallelism Using RPC") cuts the model behind layer2, and each
batch into micro-batches of `split_size` rows, the last one smaller. Its loss is one over all rows,
so a micro-batch counts by its rows.
"""

import argparse
import time
from collections import OrderedDict

import torch
import torch.distributed as dist
from torch import nn

import pipert


class Bottleneck(nn.Module):
    """Three convolutions, the middle one over neighbours, and a shortcut around them."""

    def __init__(self, before, width, stride):
        super().__init__()
        after = 4 * width
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


def resnet50(width=64, num_classes=1000):
    """As a Sequential, with torchvision's names: its weights load."""

    def layer(before, width, num_blocks, stride):
        blocks = [Bottleneck(before, width, stride)]
        blocks += [Bottleneck(4 * width, width, 1) for _ in range(num_blocks - 1)]
        return nn.Sequential(*blocks)

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            bn1=nn.BatchNorm2d(width),
            relu=nn.ReLU(),
            maxpool=nn.MaxPool2d(3, stride=2, padding=1),
            layer1=layer(width, width, 3, 1),
            layer2=layer(4 * width, 2 * width, 4, 2),
            layer3=layer(8 * width, 4 * width, 6, 2),
            layer4=layer(16 * width, 8 * width, 3, 2),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(32 * width, num_classes),
        )
    )


def torchvisions():
    """torchvision's, if it is installed, in the same form."""
    from torchvision.models import resnet50 as theirs

    parts = OrderedDict(theirs().named_children())
    fc = parts.pop("fc")
    return nn.Sequential(OrderedDict(**parts, flatten=nn.Flatten(), fc=fc))


def random_batches(args):
    """Images, and one-hot labels."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(args.batches):
        images = torch.randn(args.rows, 3, args.image, args.image, generator=generator)
        labels = torch.randint(0, args.classes, (args.rows,), generator=generator)
        yield images, nn.functional.one_hot(labels, args.classes).float()


def main():
    args = parse_args()
    group = pipert.init()  # None unless torchrun started us
    torch.set_num_threads(1)  # one for each worker
    torch.manual_seed(0)  # both build the same model, and keep their own half
    model = torchvisions() if args.torchvision else resnet50(args.width, args.classes)
    pipe = pipert.Pipeline(
        pipert.split(model, at=["layer3"]),
        num_microbatches=-(-args.rows // args.split_size),
        loss_fn=nn.MSELoss(),
        group=group,
        broadcast_loss=True,
    )
    optimizer = torch.optim.SGD(pipe.parameters(), lr=0.05)
    for index, (images, labels) in enumerate(random_batches(args)):
        start = time.perf_counter()
        optimizer.zero_grad()
        result = pipe.step(
            microbatches=images.split(args.split_size),
            target=labels.split(args.split_size),
            loss_weights=[len(part) / args.rows for part in images.split(args.split_size)],
        )
        optimizer.step()
        if group is None or group.rank() == 0:
            seconds = time.perf_counter() - start
            print(f"batch {index}  loss {result.loss.item():.9g}  {seconds:.2f} s", flush=True)
    pipe.close()
    if group is not None:
        dist.destroy_process_group()


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8, help="images in a batch")
    parser.add_argument("--split-size", type=int, default=3, help="images in a micro-batch")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--image", type=int, default=128, help="its width and height")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--width", type=int, default=64, help="channels of the first layer")
    parser.add_argument("--torchvision", action="store_true", help="train its ResNet-50")
    return parser.parse_args()


if __name__ == "__main__":
    main()
