"""How near do the kernels over many tensors come to a plain device-to-device copy?

    python benchmarks/gpu_kernels.py

Each works on eight tensors of one dtype. `MB` is the size of the wide side: what is packed, what
is unpacked to, the main gradients, what is checked. `moved` is what a kernel must read plus what it
must write; the copy beside it moves as many bytes (half of them read, half written), and `of copy`
is its time over the kernel's. Both are timed by events on the device, behind a spinning kernel that
gives the host time to issue them all; they take turns, in alternating order. A check only reads, so
what it reads stands against what the copy reads and writes.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import torch
from environment import RESULTS, write_json
from pairs import table

from pipert._C import kernels

QUESTION = "How near do the kernels over many tensors come to a device-to-device copy?"
MEGABYTES = (64, 256, 1024)
NUM_TENSORS = 8
WARM_UP = 3
ROUNDS = 25
SPIN_CYCLES = 400_000  # longer than the host takes to issue one round


class Work:
    """The tensors of one size, each kind made when first asked for."""

    def __init__(self, megabytes: int, device: torch.device) -> None:
        self.device = device
        self.numel = (megabytes << 20) // 4 // NUM_TENSORS
        self.flag = torch.zeros(1, dtype=torch.int32, device=device)
        self.norm = torch.zeros(1, device=device)

    def tensors(self, dtype: torch.dtype, numel: int | None = None) -> list[torch.Tensor]:
        """Finite numbers of moderate size; zeros would be as fast, NaN isn't what is measured."""
        return [
            torch.randn(numel or self.numel, device=self.device).to(dtype)
            for _ in range(NUM_TENSORS)
        ]

    def slot(self, tensors: list[torch.Tensor], format: str) -> torch.Tensor:  # noqa: A002
        size = kernels.packed_bytes(tensors, format)
        slot = torch.zeros(size, dtype=torch.uint8, device=self.device)
        kernels.pack(tensors, slot, format)
        return slot


def pack(dtype: torch.dtype, format: str) -> Callable[[Work], tuple[Callable[[], Any], int]]:  # noqa: A002
    def make(work: Work) -> tuple[Callable[[], Any], int]:
        tensors = work.tensors(dtype)
        slot = work.slot(tensors, format)
        return lambda: kernels.pack(tensors, slot, format), size_of(tensors) + slot.nbytes

    return make


def unpack(dtype: torch.dtype, format: str) -> Callable[[Work], tuple[Callable[[], Any], int]]:  # noqa: A002
    def make(work: Work) -> tuple[Callable[[], Any], int]:
        tensors = work.tensors(dtype)
        slot = work.slot(tensors, format)
        return lambda: kernels.unpack(slot, tensors, format), size_of(tensors) + slot.nbytes

    return make


def accumulate(dtype: torch.dtype) -> Callable[[Work], tuple[Callable[[], Any], int]]:
    def make(work: Work) -> tuple[Callable[[], Any], int]:
        gradients, mains = work.tensors(dtype), work.tensors(torch.float32)
        moved = size_of(gradients) + 2 * size_of(mains)
        return lambda: kernels.accumulate(gradients, mains), moved

    return make


def check_finite(dtype: torch.dtype) -> Callable[[Work], tuple[Callable[[], Any], int]]:
    def make(work: Work) -> tuple[Callable[[], Any], int]:
        tensors = work.tensors(dtype, work.numel * 4 // dtype.itemsize)  # as many bytes
        return lambda: kernels.check_finite(tensors, work.flag, work.norm), size_of(tensors)

    return make


def size_of(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


KERNELS = {
    "pack as_is": pack(torch.float32, "as_is"),
    "unpack as_is": unpack(torch.float32, "as_is"),
    "pack float32 to bfloat16": pack(torch.float32, "bfloat16"),
    "unpack bfloat16 to float32": unpack(torch.float32, "bfloat16"),
    "pack float32 to fp8_block": pack(torch.float32, "fp8_block"),
    "unpack fp8_block to float32": unpack(torch.float32, "fp8_block"),
    "accumulate float32": accumulate(torch.float32),
    "accumulate bfloat16": accumulate(torch.bfloat16),
    "check_finite float32": check_finite(torch.float32),
    "check_finite bfloat16": check_finite(torch.bfloat16),
}


def microseconds(contenders: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """The times of each contender in each round, by events, in alternating order."""
    for contender in contenders * WARM_UP:
        contender()
    samples: list[list[float]] = [[] for _ in contenders]
    for turn in range(rounds):
        order = range(len(contenders)) if turn % 2 == 0 else reversed(range(len(contenders)))
        torch.cuda._sleep(SPIN_CYCLES)
        events = []
        for index in order:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            contenders[index]()
            end.record()
            events.append((index, begin, end))
        torch.cuda.synchronize()
        for index, begin, end in events:
            samples[index].append(begin.elapsed_time(end) * 1000)
    return samples


def measure(
    device: str | torch.device = "cuda",
    megabytes: tuple[int, ...] = MEGABYTES,
    rounds: int = ROUNDS,
) -> list[dict[str, Any]]:
    """Times every kernel at every size beside a copy that moves as many bytes.

    Args:
        device: A CUDA device.
        megabytes: Sizes of the wide side.
        rounds: Timed runs of each.

    Returns:
        A row for each kernel and size: name, megabytes, moved_bytes, microseconds (median),
        gigabytes_per_second (moved), copy_microseconds, copy_gigabytes_per_second, of_copy.
    """
    device = torch.device(device)
    rows = []
    with torch.cuda.device(device), torch.no_grad():
        for size in megabytes:
            for name, make in KERNELS.items():
                run, moved = make(Work(size, device))
                source = torch.zeros(moved // 2, dtype=torch.uint8, device=device)
                target = torch.empty_like(source)
                times = microseconds([run, lambda t=target, s=source: t.copy_(s)], rounds)
                kernel, copy = map(statistics.median, times)
                rows.append(
                    {
                        "name": name,
                        "megabytes": size,
                        "moved_bytes": moved,
                        "microseconds": round(kernel, 2),
                        "gigabytes_per_second": round(moved / kernel / 1e3, 1),
                        "copy_microseconds": round(copy, 2),
                        "copy_gigabytes_per_second": round(moved / copy / 1e3, 1),
                        "of_copy": round(copy / kernel, 3),
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "gpu_kernels.json")
    args = parser.parse_args()
    rows = measure(args.device, rounds=args.rounds)
    head = ["kernel", "MB", "us", "GB/s moved", "copy us", "of copy"]
    keys = ["name", "megabytes", "microseconds", "gigabytes_per_second", "copy_microseconds"]
    print(table(head, [[row[key] for key in [*keys, "of_copy"]] for row in rows]))
    write_json(QUESTION, {"rounds": args.rounds, "kernels": rows}, args.out)


if __name__ == "__main__":
    main()
