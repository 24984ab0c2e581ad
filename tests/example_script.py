"""Examples as scripts: run here, or one after the other under one torchrun.

Starting torch takes seconds, so the runs of a test file that need processes share them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

EXAMPLES = Path(__file__).parents[1] / "examples"
LIMIT_S = 240.0


def run(name: str, *options: object) -> str:
    """Runs an example in this process, its ranks as threads; returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        _run_as_main(name, *options)
    return output.getvalue()


def run_in_processes(count: int, folder: Path, *runs: list[object]) -> list[str]:
    """Runs examples under torchrun.

    Args:
        count: of processes.
        folder: an empty one, for what they print.
        *runs: for each its name and its options.

    Returns:
        What each run printed, rank by rank.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # a free port
    process = subprocess.Popen(
        [*launcher, __file__, str(folder), json.dumps([[str(w) for w in run] for run in runs])],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=LIMIT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, errors[-6000:]
    return [
        "".join(_output_of(folder, index, rank).read_text() for rank in range(count))
        for index in range(len(runs))
    ]


def losses_in(output: str) -> list[float]:
    """What a run printed: nine digits name each float32."""
    return [float(number) for number in re.findall(r"\bloss (\S+)", output)]


def imported(name: str) -> Any:
    """An example as a module."""
    with mock.patch.object(sys, "path", [str(EXAMPLES), *sys.path]):
        return importlib.import_module(name)


def _run_as_main(name: str, *options: object) -> None:
    script = str(EXAMPLES / name)
    with (
        mock.patch.object(sys, "argv", [script, *map(str, options)]),
        mock.patch.object(sys, "path", [str(EXAMPLES), *sys.path]),
    ):
        runpy.run_path(script, run_name="__main__")


def _output_of(folder: Path, index: int, rank: int) -> Path:
    return folder / f"run-{index}-rank-{rank}.txt"


def _serve(folder: Path, runs: list[list[str]]) -> None:
    """The life of one of torchrun's processes."""
    import torch.distributed as dist

    for index, words in enumerate(runs):
        # Groups are numbered from 0 again after a run, and torchrun's store has their keys still.
        dist.distributed_c10d._world.group_count = 1000 * index
        output = _output_of(folder, index, int(os.environ["RANK"]))
        with output.open("w") as file, contextlib.redirect_stdout(file):
            _run_as_main(*words)
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), json.loads(sys.argv[2]))
