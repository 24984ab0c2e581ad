"""How fast is pipert on this GPU, and is it right there? It builds, tests, measures.

python benchmarks/gpu.py --build --tests --out benchmarks/results/gpu_<name>.json
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

LIMIT_OF_A_TEST_FILE_S = 150
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
loss_fn = nn.functional.mse_loss


@dataclasses.dataclass(frozen=True)
class Row:
    """One model and batch: stages of Linear layers, all on one GPU."""

    name: str
    stages: int
    layers: int
    width: int
    microbatch_size: int
    microbatches: int
    dtype: torch.dtype = torch.float32
    rounds: int = 60

    def __str__(self) -> str:
        size = f"{self.stages} x {self.layers}xLinear({self.width}) mb {self.microbatch_size}"
        dtype = "" if self.dtype is torch.float32 else f" {str(self.dtype).removeprefix('torch.')}"
        return f"{self.name}: {size} M={self.microbatches}{dtype}"

    def modules(self) -> list[nn.Module]:
        torch.manual_seed(0)
        return [
            nn.Sequential(*(nn.Linear(self.width, self.width) for _ in range(self.layers))).to(
                "cuda", self.dtype
            )
            for _ in range(self.stages)
        ]

    def batch(self) -> tuple[Tensor, Tensor]:
        shape = (self.microbatches * self.microbatch_size, self.width)
        generator = torch.Generator("cuda").manual_seed(0)
        x, y = (torch.randn(shape, device="cuda", generator=generator) for _ in range(2))
        return x.to(self.dtype), y.to(self.dtype)


ROWS = [
    Row("launch-bound", 2, 4, 64, 4, 8),
    Row("launch-bound", 4, 4, 64, 4, 8),
    Row("launch-bound, many microbatches", 4, 4, 64, 4, 32, rounds=30),
    Row("between", 2, 4, 1024, 64, 8),
    Row("between, bfloat16", 4, 4, 2048, 256, 8, torch.bfloat16, rounds=40),
    Row("compute-bound, bfloat16", 2, 4, 8192, 2048, 8, torch.bfloat16, rounds=12),
]


class Pipert:
    """All stages on one rank, or one rank each, in this process."""

    def __init__(self, row: Row, kind: str, *, ranks: int = 1, schedule: str = "") -> None:
        import pipert

        self._modules = row.modules()
        self._pipe = pipert.Pipeline(
            self._modules,
            schedule=schedule or ("1f1b" if ranks == row.stages else "interleaved_1f1b"),
            num_ranks=ranks,
            devices=["cuda:0"] * ranks,
            num_microbatches=row.microbatches,
            loss_fn=loss_fn,
            stage_kind=kind,
        )
        self._x, self._y = row.batch()
        self.losses: Tensor | None = None

    def prepare(self) -> None:
        for module in self._modules:
            module.zero_grad(set_to_none=True)

    def run(self) -> None:
        self.losses = self._pipe.step(self._x, target=self._y).losses

    def kind(self) -> str:
        return "; ".join(sorted(set(self._pipe.stage_kinds.values())))

    def close(self) -> None:
        self._pipe.close()


class Torch:
    """torch.distributed.pipelining, all stages on one rank, eager.

    Versions differ in what they can do between stages of one rank. The first way that works is
    taken: its interleaved schedule as it is, or the same order of actions in its newer runtime.
    """

    def __init__(self, row: Row) -> None:
        self._modules = row.modules()
        self._x, self._y = row.batch()
        self._losses: list[Tensor] = []
        self.way = ""
        refusals = []
        for backend, is_static, in_runtime in itertools.product(
            ("gloo", "nccl"), (False, True), (False, True)
        ):
            way = ", ".join(
                [
                    backend,
                    "static shapes" if is_static else "inferred shapes",
                    "in its runtime" if in_runtime else "as it is",
                ]
            )
            try:
                self._schedule = _torch_schedule(row, self._modules, backend, is_static, in_runtime)
                self.prepare()
                self.run()
                self.way = way
                return
            except Exception as error:  # whatever this version stumbles over
                refusals.append(f"{way}: {type(error).__name__}: {error}"[:120])
        raise RuntimeError("; ".join(refusals))

    @property
    def losses(self) -> Tensor:
        return torch.stack(self._losses)

    def prepare(self) -> None:
        for module in self._modules:
            module.zero_grad(set_to_none=True)
        self._losses = []

    def run(self) -> None:
        self._schedule.step(self._x, target=self._y, losses=self._losses)

    def kind(self) -> str:
        return f"ScheduleInterleaved1F1B {self.way}"

    def close(self) -> None:
        pass


@functools.cache
def _group(backend: str) -> Any:
    return dist.new_group([0], backend=backend)


def _torch_schedule(
    row: Row, modules: list[nn.Module], backend: str, is_static: bool, in_runtime: bool
) -> Any:
    from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B
    from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

    x = row.batch()[0][: row.microbatch_size]
    stages = []
    for index, module in enumerate(modules):
        shapes = {}
        if is_static:
            shapes = {
                "input_args": x.clone().requires_grad_(index > 0),
                "output_args": x.clone().requires_grad_(),
            }
        stages.append(
            PipelineStage(
                module, index, row.stages, torch.device("cuda:0"), group=_group(backend), **shapes
            )
        )
    plain = ScheduleInterleaved1F1B(stages, row.microbatches, loss_fn)
    if not in_runtime:
        return plain
    schedule = _PipelineScheduleRuntime(stages, row.microbatches, loss_fn)
    load = getattr(schedule, "_prepare_schedule_with_comms", None) or schedule._load_actions
    load(plain.pipeline_order)
    return schedule


def measure_steps(row: Row) -> dict[str, Any]:
    """Host and whole time of a step of each contender, taken in turns."""
    makers: dict[str, Callable[[], Any]] = {
        "torch": lambda: Torch(row),
        "module": lambda: Pipert(row, "module"),
        "native": lambda: Pipert(row, "native"),
        "captured": lambda: Pipert(row, "captured"),
        "captured, a rank for each stage": lambda: Pipert(row, "captured", ranks=row.stages),
        "captured zb_interleaved": lambda: Pipert(row, "captured", schedule="zb_interleaved"),
    }
    contenders: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name, make in makers.items():
        try:
            contenders[name] = make()
        except Exception as error:  # the others are still worth their time
            refused[name] = f"{type(error).__name__}: {error}"
    host: dict[str, list[float]] = {name: [] for name in contenders}
    whole: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(row.rounds + 6):
        for name, contender in contenders.items():
            contender.prepare()
            torch.cuda.synchronize()
            begun = time.perf_counter()
            contender.run()
            issued = time.perf_counter()
            torch.cuda.synchronize()
            done = time.perf_counter()
            if round_ >= 6:
                host[name].append((issued - begun) * 1e6)
                whole[name].append((done - begun) * 1e6)
    reference = contenders["module"].losses
    rows = {}
    for name, contender in contenders.items():
        ratio = [t / own for t, own in zip(whole.get("torch", []), whole[name], strict=False)]
        rows[name] = {
            "host_us": _spread(host[name]),
            "step_us": _spread(whole[name]),
            "times_as_fast_as_torch": _spread(ratio) if ratio else None,
            "runs_as": contender.kind(),
            "losses_equal_module": bool(torch.equal(contender.losses, reference)),
        }
        contender.close()
    return {"row": str(row), "contenders": rows, "refused": refused}


def measure_hidden() -> list[dict[str, Any]]:
    """How much of what goes to the host and comes back is hidden, by the device's own times.

    One stage of two Linear(16384), bfloat16, microbatches of 2048 rows: an activation takes less
    time on its way than the work beside it.
    """
    import pipert

    row = Row("offload", 1, 2, 16384, 2048, 6, torch.bfloat16)
    schedule = pipert.Schedule.build("gpipe", num_ranks=1, num_microbatches=row.microbatches)
    modules = row.modules()
    x, y = row.batch()
    found = []
    for name, used in (("on the device", schedule), ("offload", schedule.with_offload(ahead=2))):
        with pipert.Pipeline(
            modules,
            schedule=used,
            devices=["cuda:0"],
            num_microbatches=row.microbatches,
            loss_fn=loss_fn,
            device_times=True,
        ) as pipe:
            shares, steps = [], []
            for _ in range(7):
                modules[0].zero_grad(set_to_none=True)
                torch.cuda.synchronize()
                begun = time.perf_counter()
                pipe.step(x, target=y)
                torch.cuda.synchronize()
                steps.append((time.perf_counter() - begun) * 1e3)
                transfers = pipe.trace().transfers(0)
                if transfers is not None:
                    shares.append(transfers.share)
            entry: dict[str, Any] = {"name": name, "step_ms": _spread(steps[2:])}
            if shares:
                entry["transfers_ms"] = round(transfers.took * 1e3, 2)
                entry["hidden_share"] = _spread([100 * share for share in shares[2:]])
            found.append(entry)
    return found


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 2),
        "p10": round(ordered[len(ordered) // 10], 2),
        "p90": round(ordered[len(ordered) * 9 // 10], 2),
    }


def print_steps(rows: list[dict[str, Any]]) -> None:
    print(f"\n{'':34}{'host us':>10}{'step us':>12}{'x torch':>9}  losses, runs as")
    for row in rows:
        print(row["row"])
        for name, entry in row["contenders"].items():
            same = "same" if entry["losses_equal_module"] else "DIFFER"
            ratio = entry["times_as_fast_as_torch"]
            print(
                f"  {name:32}{entry['host_us']['median']:10.1f}{entry['step_us']['median']:12.1f}"
                f"{ratio['median'] if ratio else float('nan'):9.2f}  {same}, {entry['runs_as']}"
            )
        for name, reason in row["refused"].items():
            print(f"  {name}: {reason}")


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Rows of one kind, a column for each of their keys."""
    print(f"\n{title}")
    for row in rows:
        print("  " + ", ".join(f"{key} {value}" for key, value in row.items()))


def build() -> dict[str, Any]:
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"the build failed:\n{(done.stdout + done.stderr)[-8000:]}")
    return {"seconds": round(time.perf_counter() - begun, 1)}


def run_tests() -> list[dict[str, Any]]:
    """Each file of tests/gpu in a process of its own, four at a time."""
    files = sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(_run_file, files))


def _run_file(file: pathlib.Path) -> dict[str, Any]:
    begun = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(file),
        "-q",
        "--tb=short",
        "-p",
        "no:cacheprovider",
    ]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=LIMIT_OF_A_TEST_FILE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
    closing = re.findall(r"^=*\s*((?:\d+ \w+,? ?)+in [\d.]+s.*?)\s*=*$", output, re.MULTILINE)
    failed = sorted(set(re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)))
    if process.returncode:
        print(f"--- {file.name}: exit code {process.returncode}\n{output[-4000:]}")
    return {
        "file": file.name,
        "result": closing[-1] if closing else f"no closing line, exit code {process.returncode}",
        "failed": failed,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", action="store_true", help="build the module first")
    parser.add_argument("--tests", action="store_true", help="run tests/gpu as well")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("a CUDA device is needed: torch finds none")
    answer: dict[str, Any] = {}
    if options.build:
        answer["build"] = build()
    if options.tests:
        answer["tests"] = run_tests()
    from environment import write_json

    sections: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "steps": lambda: [measure_steps(row) for row in ROWS],
        "host": _host,
        "hidden": measure_hidden,
        "kernels": _kernels,
        "channels": _channels,
        "processes": _processes,
    }
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for name, measure in sections.items():
        begun = time.perf_counter()
        try:
            answer[name] = measure()
        except Exception as error:  # the others are still worth their time
            answer[name] = []
            answer.setdefault("errors", {})[name] = f"{type(error).__name__}: {error}"
        answer.setdefault("seconds", {})[name] = round(time.perf_counter() - begun, 1)
    dist.destroy_process_group()
    print_table("kernels", [row for row in answer["kernels"] if row["megabytes"] >= 64])
    print_table("channels", answer["channels"])
    print_table("steps of two processes, by rank and kind of stages", answer["processes"])
    print_table("host time of a captured step, in us", answer["host"])
    print_table("transfers hidden behind compute (per cent)", answer["hidden"])
    print_steps(answer["steps"])
    for entry in answer.get("tests", []):
        print(f"{entry['file']:34}{entry['result']}")
    for name in ("build", "errors", "seconds"):
        print(f"{name}: {answer.get(name)}")
    write_json("How fast is pipert on a GPU, and is it right there?", answer, options.out)


def _host() -> list[dict[str, Any]]:
    import gpu_host

    return gpu_host.measure()


def _kernels() -> list[dict[str, Any]]:
    import gpu_kernels

    return gpu_kernels.measure(torch.device("cuda:0"))


def _channels() -> list[dict[str, Any]]:
    import gpu_channels

    return gpu_channels.measure()


def _processes() -> list[dict[str, Any]]:
    import gpu_processes

    return gpu_processes.measure()


if __name__ == "__main__":
    main()
