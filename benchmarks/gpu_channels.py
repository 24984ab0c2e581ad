"""How fast is a message between two processes that share one GPU, and what is it made of?

    python benchmarks/gpu_channels.py

Two processes on cuda:0, each part in two of its own. All is given to the streams before the time
runs; what is compared is measured in turn. Times are of one message, or one way.

`push`, by size and by the number of streams that push (2 are what the channel has): `push_us`, with
the flags that tell of each push and free its slot, against plain copies within the device of as
many bytes into as many buffers (`copy_us`; into one: `copy_into_one_us`). `bare_us`: copies into
the other process's slots, of which nobody is told: the most there can be. `copied_out_us`: the
receiver copies each message out of its slot, as the channel does, and the two processes share the
device for that. `issue_us`: what it takes the host to give a push to the streams. GB/s count what
is read and what is written.

`flag`: from a stream's write to the end of the other process's wait. `hop`: with a copy of some
bytes within the device before each flag, in both processes; what it takes beyond a flag and a copy
goes to taking turns on the device, which two GPUs don't. `event`: a hop by events of two processes,
the other way to tell of a push; `orphan`: whether a wait for an event ends if the process that was
to come to it is killed.

`message`: through the channel. `us`: from the call that sends it until it is there, half of a round
trip; `send_us` and `take_us`: what these calls take the host when there is nothing to wait for;
`stream_us`: each of many, two on their way. `frame`: one of the CPU's through the same ring.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import signal
import sys
import tempfile
import traceback

import gpu_channel_parts as parts
from gpu_channel_parts import Row
from two_ranks import run_two_ranks

# Each in processes of its own.
LIMITS_S = {"pushes": 60.0, "messages": 60.0, "events": 30.0, "orphan": 30.0}


def measure() -> list[Row]:
    """A row for each number; a part that failed, or took too long, leaves one that is an error."""
    rows: list[Row] = []
    for part, limit_s in LIMITS_S.items():
        with tempfile.TemporaryDirectory() as folder:
            written = pathlib.Path(folder) / "rows"
            arguments = ["--part", part, "--out", str(written)]
            expected = [-signal.SIGKILL if part == "orphan" else 0, 0]
            error = run_two_ranks(__file__, arguments, pathlib.Path(folder), limit_s, expected)
            if written.exists():
                rows += [json.loads(line) for line in written.read_text().splitlines()]
        if error is not None:
            rows.append({"name": "error", "error": f"{part}: {error}"})
    return rows


def run_rank(part: str, rank: int, port: int, out: pathlib.Path) -> None:
    import torch
    import torch.distributed as dist

    writer = 1 if part == "orphan" else 0

    def write(row: Row) -> None:  # at once: what comes later may fail
        if rank == writer:
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")

    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=40),
    )
    torch.cuda.set_device(0)
    torch.ones(1, device="cuda:0")
    pair = parts.Processes(rank)
    match part:
        case "pushes":
            from pipert import _C

            parts.measure_pushes(pair, write, _C.PushProbe)
        case "messages":
            parts.measure_messages(pair, write)
        case "events":
            parts.measure_events(pair, write)
        case "orphan":
            parts.measure_orphan(pair, write)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=LIMITS_S)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--port", type=int)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    if options.part is None:
        for row in measure():
            print(row)
        return
    try:
        run_rank(options.part, options.rank, options.port, options.out)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # no end of a channel waits for the other one


if __name__ == "__main__":
    main()
