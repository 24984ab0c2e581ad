"""Models, the plain loop that they are compared with, and what one rank may say about both."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

import pipert

WIDTH = 8


def layers(count: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The same on every rank."""
    torch.manual_seed(seed)
    pairs = [m for _ in range(count) for m in (nn.Linear(WIDTH, WIDTH, dtype=dtype), nn.Tanh())]
    return nn.Sequential(*pairs)


def data(rows: int, seed: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, WIDTH, generator=generator)
    return x.to(dtype), torch.randn(rows, WIDTH, generator=generator).to(dtype)


def plain_loop(
    model: Callable[..., object],
    x: Tensor,
    y: Tensor,
    num_microbatches: int,
    loss_fn: Callable[..., Tensor] = functional.mse_loss,
) -> Tensor:
    """Gradient accumulation over the microbatches of the whole model; returns the losses."""
    losses = []
    for piece, target in zip(
        x.tensor_split(num_microbatches), y.tensor_split(num_microbatches), strict=True
    ):
        loss = loss_fn(model(piece), target)
        (loss * (len(piece) / len(x))).backward()
        losses.append(loss.detach())
    return torch.stack(losses)


def same(got: Tensor | None, expected: Tensor | None, what: str = "") -> None:
    """Asserts equality bit for bit, of dtype and shape too."""
    if got is None or expected is None:
        assert got is expected, f"{what}: got {got}, expected {expected}"
        return
    assert got.dtype == expected.dtype, f"{what}: got {got.dtype}, expected {expected.dtype}"
    assert got.shape == expected.shape, f"{what}: got {got.shape}, expected {expected.shape}"
    equal = torch.equal(got, expected) or (
        torch.equal(got.isnan(), expected.isnan())
        and torch.equal(got.nan_to_num(), expected.nan_to_num())
    )
    assert equal, f"{what}: got {got}, expected {expected}"


def same_gradients(pipe: pipert.Pipeline, model: nn.Module) -> None:
    """This rank's gradients are those of the whole model."""
    expected = dict(model.named_parameters())
    count = 0
    for name, parameter in pipe.named_parameters():
        same(parameter.grad, expected[name].grad, f"gradient of {name}")
        count += 1
    assert count > 0


def is_last(pipe: pipert.Pipeline) -> bool:
    return pipe.schedule.num_stages - 1 in pipe.stages


def same_everywhere(value: object, group: dist.ProcessGroup | None = None) -> None:
    """Asserts that all ranks give the same value (compared by its repr)."""
    mine = torch.frombuffer(bytearray(repr(value).encode().ljust(20_000)), dtype=torch.uint8)
    first = mine.clone()
    dist.broadcast(first, dist.get_process_group_ranks(group or dist.group.WORLD)[0], group=group)
    assert torch.equal(mine, first), f"{value!r} differs from the first rank's"


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    assert took < seconds, f"took {took:.2f} s, at most {seconds} s were expected"


@contextlib.contextmanager
def limited_files(num_bytes: int) -> Iterator[None]:
    """No file of this process may be longer: as with a full /dev/shm, memory can't be had."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def segment_names() -> set[str]:
    """Of segments in shared memory that were made by these processes or by dead ones.

    Other jobs of the same user may have some too.
    """

    def is_ours(name: str) -> bool:
        process = name.split("-")[3]
        try:
            stat = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            return True
        parent = int(stat.rpartition(")")[2].split()[1])
        return parent in (os.getppid(), os.getpid())

    names = {path.name for path in Path("/dev/shm").glob(f"pipert-{os.geteuid()}-*")}
    return set(filter(is_ours, names))
