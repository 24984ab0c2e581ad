"""What a benchmark ran on, as data that goes into its JSON file."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

import torch

RESULTS = pathlib.Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Describes the machine, the software and the load at this moment.

    Returns:
        Plain JSON values: CPU model and cores, GPU (or None), torch, python and pipert versions,
        threads, load average, date (UTC) and git revision ("-dirty" where tracked files differ).
    """
    return {
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory_gib": _memory_gib(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pipert": _pipert_version(),
        "threads_per_rank": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "revision": _revision(),
    }


def write_json(question: str, content: dict[str, Any], out: pathlib.Path) -> None:
    """Writes a benchmark's answer beside the environment that it was measured in.

    Args:
        question: What the benchmark asks, in one sentence.
        content: The answer, plain JSON values.
        out: The file; its folder is made if need be.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    answer = {"question": question, "environment": environment(), **content}
    out.write_text(json.dumps(answer, indent=1) + "\n")
    print(f"\nwritten: {out}")


def _cpu_model() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _pipert_version() -> str | None:
    try:
        import pipert
    except ImportError:
        return None
    return getattr(pipert, "__version__", "unknown")


def _revision() -> str | None:
    if given := os.environ.get("PIPERT_REVISION"):  # of a copy without its repository
        return given
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    folder = pathlib.Path(__file__).parent
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
