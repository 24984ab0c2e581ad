"""How fast is a message between two processes, through shared memory and through gloo?

    torchrun --nproc-per-node 2 benchmarks/channels.py

Two processes, each on a core of its own. `latency`: half of a round trip of 4 KB. `bandwidth`: a
stream of messages of one size, two of them on their way. Both with everything that a message of the
pipeline has: its frame is written, checked and taken apart, and the receiver gets a tensor that it
may keep. Over shared memory a large message is copied once and never moved again, so the receiver
of this stream doesn't touch what it gets; in `shm, read` it looks at each cache line, as a stage
would, and that time counts too.

As between two steps, the memory that a stream needs is there: some messages went ahead of it. The
channels take turns in every round, beside one core's memcpy of as many bytes from one warm
buffer: `memcpy` into two others by turns, which is what a sender with two messages on their way
must do; `memcpy, one` always into the same one, which stays in the cache where the stream can't.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
from typing import Any

import torch
import torch.distributed as dist
from environment import RESULTS, write_json
from pairs import Summary, table

import pipert
from pipert import _C
from pipert.processes.connection import Connection
from pipert.processes.distributed import Peers

QUESTION = "How fast is a message between two processes, through shared memory and through gloo?"
CHANNELS = ("shm", "process_group")
STREAMS = {
    "shm": False,
    "shm, read": True,
    "process_group": False,
}  # whether the receiver reads
WARM_UP = 4  # messages before a stream, of its size
COPIES = {"memcpy": 2, "memcpy, one": 1}  # buffers that are written, by turns
LATENCY_BYTES = 4096
SIZES = [4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20]
STREAM_BYTES = 256 << 20  # of one timed stream, at most; and at most 2000 messages


def connect(group: dist.ProcessGroup) -> dict[str, _C.ExternalChannels]:
    """The edges between the two processes, over each channel."""
    schedule = pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=2)
    program = pipert.lower(schedule)[dist.get_rank()]
    peers = Peers(group)
    cpu = torch.device("cpu")
    return {name: Connection(peers, program, cpu, {}, name).channels for name in CHANNELS}


def own_core(rank: int) -> int | None:
    """Puts the process on a core that is not the other's; None where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return None
    os.sched_setaffinity(0, {cores[rank]})
    return cores[rank]


def measure(channels: dict[str, _C.ExternalChannels], rounds: int, echoes: int) -> dict[str, Any]:
    """Seconds by channel: of each round trip's half, and of each stream by size."""
    rank = dist.get_rank()
    latency: dict[str, list[float]] = {name: [] for name in channels}
    streams: dict[str, dict[int, list[float]]] = {
        name: {size: [] for size in SIZES} for name in (*STREAMS, *COPIES)
    }
    for epoch in range(rounds + 1):  # the first one makes room, and isn't counted
        names = list(channels) if epoch % 2 else list(reversed(channels))
        for name in names:
            dist.barrier()
            seconds = _C.time_echoes(
                channels[name],
                rank=rank,
                num_bytes=LATENCY_BYTES,
                num_messages=echoes,
                epoch=epoch * 100,
            )
            if epoch > 0:
                latency[name] += [second / 2 for second in seconds]
        for at, size in enumerate(SIZES):
            count = max(8, min(2000, STREAM_BYTES // size))
            for name, reads in STREAMS.items() if epoch % 2 else reversed(STREAMS.items()):
                for messages in (
                    WARM_UP,
                    count,
                ):  # a channel gives memory back that rests
                    dist.barrier()
                    second = _C.time_stream(
                        channels[name.partition(",")[0]],
                        rank=rank,
                        num_bytes=size,
                        num_messages=messages,
                        epoch=epoch * 100 + 1 + 2 * at + reads,
                        reads=reads,
                    )
                if epoch > 0:
                    streams[name][size].append(second / count)
            dist.barrier()
            if rank == 0:
                for name, buffers in COPIES.items():
                    copies = _C.time_copies(num_bytes=size, count=count, num_destinations=buffers)
                    if epoch > 0:
                        streams[name][size].append(statistics.median(copies))
            dist.barrier()
    return {"latency": latency, "streams": streams}


def answer(measured: dict[str, Any]) -> dict[str, Any]:
    """Medians and spreads, in microseconds and gigabytes a second, and shares of memcpy."""
    latency = {
        name: {
            **vars(Summary.of([1e6 * second for second in seconds], 3)),
            "p99": round(1e6 * sorted(seconds)[int(0.99 * len(seconds))], 3),
        }
        for name, seconds in measured["latency"].items()
    }
    bandwidth: dict[str, Any] = {}
    for size in SIZES:
        by_name = {name: sizes[size] for name, sizes in measured["streams"].items()}
        entry: dict[str, Any] = {
            name: vars(Summary.of([size / second / 1e9 for second in seconds], 3))
            for name, seconds in by_name.items()
        }
        for name in STREAMS:
            for baseline in COPIES:
                pairs = zip(by_name[baseline], by_name[name], strict=True)
                shares = Summary.of([copy / own for copy, own in pairs], 3)
                entry[f"{name} of {baseline}"] = vars(shares)
        bandwidth[str(size)] = entry
    return {"latency_us": latency, "bandwidth_gb_per_s": bandwidth}


def print_tables(content: dict[str, Any]) -> None:
    """Prints the answer."""
    print(f"latency of {LATENCY_BYTES} bytes, microseconds")
    rows = [
        [name, *(numbers[key] for key in ("median", "p10", "p90", "p99"))]
        for name, numbers in content["latency_us"].items()
    ]
    print(table(["channel", "median", "p10", "p90", "p99"], rows))
    for title, columns in (
        ("bandwidth, GB/s (median)", [*STREAMS, *COPIES]),
        (
            "shares of memcpy (median)",
            [f"{name} of {baseline}" for baseline in COPIES for name in STREAMS],
        ),
    ):
        print(f"\n{title}")
        rows = [
            [f"{int(size) / 2**20:g} MB", *(entry[name]["median"] for name in columns)]
            for size, entry in content["bandwidth_gb_per_s"].items()
        ]
        print(table(["message", *columns], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--echoes", type=int, default=2000, help="round trips in each round")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "channels.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    group = pipert.init()
    if group is None or group.size() != 2:
        raise SystemExit("two processes are needed: torchrun --nproc-per-node 2 " + __file__)
    channels = connect(group)
    cores = os.sched_getaffinity(0)
    core = own_core(group.rank())
    measured = measure(channels, arguments.rounds, arguments.echoes)
    os.sched_setaffinity(0, cores)  # the environment that is written down is the host's
    if group.rank() == 0:
        content = answer(measured)
        print_tables(content)
        write_json(
            QUESTION,
            {"pinned": core is not None, "rounds": arguments.rounds, **content},
            arguments.out,
        )
    dist.barrier()
    channels.clear()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
