"""What does a step take in two processes on one GPU: captured actions against module stages?

    python benchmarks/gpu_processes.py

Each process is a rank with one stage of a few small layers, launch-bound. Both kinds of stages step
in turn. `step`: until the device is done, on the slower rank. `host`: until the call returns.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
import traceback
from typing import Any

from two_ranks import run_two_ranks

Row = dict[str, Any]
LIMIT_S = 45.0
ROUNDS = 60
WARMUPS = 6
LAYERS, WIDTH, ROWS, MICROBATCHES = 8, 64, 4, 16


def measure(device: str = "cuda:0") -> list[Row]:
    """A row for each rank and kind, or one that says what went wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        arguments = ["--device", device, "--out", name]
        error = run_two_ranks(__file__, arguments, folder, LIMIT_S)
        rows = [
            json.loads(line)
            for path in sorted(folder.glob("rows-*"))
            for line in path.read_text().splitlines()
        ]
    return [*rows, *([] if error is None else [{"name": "error", "error": error}])]


# --- in the processes ----------------------------------------------------------------------------


def run_rank(rank: int, port: int, device: str) -> list[Row]:
    """Steps of both kinds in turn."""
    import torch
    import torch.distributed as dist
    from torch import nn

    import pipert

    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=20),
    )

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    pipes = {}
    for kind in ("module", "captured"):
        torch.manual_seed(0)
        stages = [
            nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))) for _ in range(2)
        ]
        pipes[kind] = pipert.Pipeline(
            stages,
            group=dist.group.WORLD,
            devices=[device],
            num_microbatches=MICROBATCHES,
            loss_fn=nn.functional.mse_loss,
            stage_kind=kind,
            timeout_s=20.0,
        )
    x = torch.randn(ROWS * MICROBATCHES, WIDTH, device=device)
    step: dict[str, list[float]] = {kind: [] for kind in pipes}
    host: dict[str, list[float]] = {kind: [] for kind in pipes}
    for turn in range(WARMUPS + ROUNDS):
        for kind, pipe in pipes.items():
            for parameter in pipe.parameters():
                parameter.grad = None
            wait()
            begun = time.perf_counter()
            pipe.step(x, target=x)
            returned = time.perf_counter()
            wait()
            if turn >= WARMUPS:
                host[kind].append((returned - begun) * 1e3)
                step[kind].append((time.perf_counter() - begun) * 1e3)
    rows = []
    for kind, pipe in pipes.items():
        how = sorted(set(pipe.stage_kinds.values()))
        name = f"rank {rank}, {kind}"
        rows.append({"name": name, "how": how, "step_ms": _spread(step[kind])})
        rows[-1]["host_ms"] = _spread(host[kind])
        pipe.close()
    dist.destroy_process_group()
    return rows


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "p10": round(ordered[len(ordered) // 10], 3),
        "p90": round(ordered[len(ordered) * 9 // 10], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0", help="'cpu' tries the script, no more")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--port", type=int)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    if options.rank is None:
        for row in measure(options.device):
            print(row)
        return
    try:
        rows = run_rank(options.rank, options.port, options.device)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (options.out / f"rows-{options.rank}").write_text(lines)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # no end of a channel waits for the other one


if __name__ == "__main__":
    main()
