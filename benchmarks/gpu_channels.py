"""How fast is a message between two processes that share one GPU, and what is it made of?

    python benchmarks/gpu_channels.py

Two processes on cuda:0. `push`: copy engines push into the other process's memory, with the flags
that tell of each push and free its slot, against plain copies within the device of as many bytes
into as many buffers, measured in turn; GB/s count what is read and what is written. All is given to
the streams before the time runs. `flag`: from a stream's write to the end of the other process's
wait, half of a round trip. `message`: 4 KB through the channel, from the call that sends it until
it is there, half of a round trip, with what both hosts do.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
ROOT = str(pathlib.Path(__file__).resolve().parent.parent)
MB = 1 << 20
SIZES_MB = (16, 64, 256, 1)
ROUNDS = 9
HOPS = 200  # of one round, there and back again; a stream's queue holds about 1000 operations
NUM_SLOTS = 4
MESSAGE_BYTES = 4096
PUSH_BAR = 0.9  # of a plain copy, from 16 MB
FLAG_BAR_US = 10.0
LIMITS_S = {"pushes": 25.0, "messages": 20.0}  # each part in processes of its own


def measure() -> list[Row]:
    """A row for each number; a part that failed, or took too long, leaves one that is an error."""
    rows: list[Row] = []
    for part, limit_s in LIMITS_S.items():
        with tempfile.TemporaryDirectory() as folder:
            error = _run_part(part, limit_s, pathlib.Path(folder))
            written = pathlib.Path(folder) / "rows"
            if written.exists():
                rows += [json.loads(line) for line in written.read_text().splitlines()]
        if error is not None:
            rows.append({"name": "error", "error": f"{part}: {error}"})
    return rows


def _run_part(part: str, limit_s: float, folder: pathlib.Path) -> str | None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    told = [folder / f"output-{rank}" for rank in range(2)]
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(2):
            command = [
                sys.executable,
                os.path.abspath(__file__),
                "--part",
                part,
                "--rank",
                str(rank),
            ]
            command += ["--port", str(port), "--out", str(folder / "rows")]
            with told[rank].open("wb") as output:
                ranks.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=output)
                )
        end = time.monotonic() + limit_s
        while (codes := [process.poll() for process in ranks]) != [0, 0]:
            if any(codes):  # the other would wait for it
                time.sleep(1)
                break
            if time.monotonic() > end:
                break
            time.sleep(0.05)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    if codes == [0, 0]:
        return None
    tails = [" ".join(path.read_text(errors="replace")[-1500:].split()) for path in told]
    told_by = "; ".join(f"rank {rank}: {tail}" for rank, tail in enumerate(tails))
    return f"exit codes {codes} (None: too slow, {limit_s:g} s); {told_by}"


# --- in the processes ----------------------------------------------------------------------------


def measure_pushes(rank: int, write: Callable[[Row], None]) -> None:
    import torch.distributed as dist

    from pipert import _C

    name = [""]
    if rank == 0:
        probe = _C.PushProbe.make()
        name = [probe.name]
    dist.broadcast_object_list(name, 0)
    if rank == 1:
        probe = _C.PushProbe.open(name[0])
    dist.barrier()

    def timed(answer: Callable[[int], None], ask: Callable[[int], float], count: int) -> float:
        if rank == 1:
            answer(count)
        dist.barrier()
        seconds = ask(count) if rank == 0 else 0.0
        if rank == 1:
            probe.finish()
        dist.barrier()
        return seconds / count

    hops = [timed(probe.answer_flags, probe.time_flags, HOPS) / 2 for _ in range(ROUNDS + 1)][1:]
    flag = _spread([1e6 * second for second in hops])
    write(
        {"name": "flag", "us": flag["median"], "bar": FLAG_BAR_US, **_ends(flag)}
        | {"is_met": flag["median"] <= FLAG_BAR_US}
    )
    for size_mb in SIZES_MB:
        size = size_mb * MB
        count = 40 if size_mb <= 64 else 20
        for own in (1, 0):  # the destination goes first
            if rank == own:
                probe.prepare(size)
            dist.barrier()
        pushes, copies, into_one = [], [], []
        for _ in range(ROUNDS + 1):  # the first one isn't counted
            pushes.append(timed(probe.answer_pushes, probe.time_pushes, count))
            if rank == 0:
                copies.append(probe.time_copies(count, NUM_SLOTS) / count)
                into_one.append(probe.time_copies(count, 1) / count)
        if rank == 0:
            write(_push_row(size, pushes[1:], copies[1:], into_one[1:]))
        dist.barrier()


def _push_row(size: int, pushes: list[float], copies: list[float], into_one: list[float]) -> Row:
    share = _spread([copy / push for push, copy in zip(pushes, copies, strict=True)])
    row: Row = {"name": "push", "megabytes": size // MB, "of_copy": share["median"], **_ends(share)}
    for name, seconds in (("push", pushes), ("copy", copies), ("copy_into_one", into_one)):
        median = statistics.median(seconds)
        row |= {
            f"{name}_gbps": round(2 * size / median / 1e9, 1),
            f"{name}_us": round(median * 1e6, 2),
        }
    if size >= 16 * MB:
        row |= {"bar": PUSH_BAR, "is_met": share["median"] >= PUSH_BAR}
    return row


def measure_messages(rank: int, write: Callable[[Row], None]) -> None:
    import torch
    import torch.distributed as dist

    import pipert
    from pipert import _C
    from pipert.connection import Connection
    from pipert.distributed import Peers

    group = pipert.init()
    assert group is not None
    program = pipert.lower(pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=2))[rank]
    device = torch.device("cuda:0")
    channels = Connection(Peers(group), program, device, [], "cuda_ipc").channels
    for epoch, count in enumerate((20, 200)):  # the first ones make room
        dist.barrier()
        seconds = _C.time_echoes(
            channels,
            rank=rank,
            num_bytes=MESSAGE_BYTES,
            num_messages=count,
            epoch=epoch,
            device="cuda:0",
        )
    torch.cuda.synchronize()
    if rank == 0:
        spread = _spread([1e6 * second / 2 for second in seconds])
        write({"name": "message", "bytes": MESSAGE_BYTES, "us": spread["median"], **_ends(spread)})
    dist.barrier()
    del channels


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "p10": round(ordered[len(ordered) // 10], 3),
        "p90": round(ordered[len(ordered) * 9 // 10], 3),
    }


def _ends(spread: dict[str, float]) -> dict[str, float]:
    return {"p10": spread["p10"], "p90": spread["p90"]}


def run_rank(part: str, rank: int, port: int, out: pathlib.Path) -> None:
    import torch
    import torch.distributed as dist

    def write(row: Row) -> None:  # at once: what comes later may fail
        if rank == 0:
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")

    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=20),
    )
    torch.cuda.set_device(0)
    torch.ones(1, device="cuda:0")
    {"pushes": measure_pushes, "messages": measure_messages}[part](rank, write)
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
