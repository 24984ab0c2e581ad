"""The examples run at a small size, and do what they say."""

from __future__ import annotations

import importlib
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.timeout(150)


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch):
    """Imports an example as a module."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def run(name: str, *options: str, processes: int | None = None) -> str:
    """Runs an example to its end, under torchrun if `processes` says so; returns its output."""
    command = [sys.executable]
    if processes is not None:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # a free port
    process = subprocess.Popen(
        [*command, str(EXAMPLES / name), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, errors[-3000:]
    return output


def losses_in(output: str) -> list[float]:
    return [float(number) for number in re.findall(r"loss (\S+)", output)]


@pytest.mark.distributed
def test_pipeline_cuts_spmd_trains_as_the_whole_model_does(imported):
    example = imported("pipeline_cuts_spmd")
    sizes = {"width": 16, "layers": 3, "rows": 8, "steps": 4}
    options = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    output = run("pipeline_cuts_spmd.py", *options, "--pipeline-cuts", "layers.1", processes=4)

    torch.manual_seed(0)
    model = example.Model(sizes["width"], sizes["layers"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    expected = []
    for step in range(sizes["steps"]):
        x, y = example.batch(step, sizes["rows"])
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses_in(output) == pytest.approx(expected, abs=2e-5)


@pytest.mark.distributed
def test_pippy_script_trains_alike_under_its_schedules(imported):
    example = imported("pippy_script")
    options = ["--rows", "16", "--steps", "3", "--chunks", "4"]
    outputs = {
        schedule: run("pippy_script.py", "--schedule", schedule, *options, processes=2)
        for schedule in ("1F1B", "ZBVZeroBubble")
    }
    torch.manual_seed(0)
    model = example.Sorter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    expected = []
    for step in range(3):
        x, y = example.batch(step, 16)
        optimizer.zero_grad()
        loss = example.loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    for schedule, num_stages in (("1F1B", 2), ("ZBVZeroBubble", 4)):
        output = outputs[schedule]
        assert losses_in(output) == pytest.approx(expected, abs=2e-5)
        assert f"submod_pp_{num_stages - 1} = self.submod_pp_{num_stages - 1}(" in output
        assert "right on a new batch" in output


def test_gpipe_style_trains_as_the_sequential_does(imported):
    example = imported("gpipe_style")
    sizes = {"steps": 10, "batch": 16, "chunks": 4, "width": 4, "pixels": 16}
    options = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    output = run("gpipe_style.py", *options)
    assert "stage  layers" in output
    assert "step  10/10" in output

    torch.manual_seed(0)
    model = example.network(sizes["width"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(sizes["steps"]):
        x, y = example.training_batch(step, sizes["batch"], sizes["pixels"])
        optimizer.zero_grad()
        pieces = zip(x.chunk(sizes["chunks"]), y.chunk(sizes["chunks"]), strict=True)
        losses = [functional.cross_entropy(model(a), b) / sizes["chunks"] for a, b in pieces]
        for loss in losses:
            loss.backward()
        optimizer.step()
    assert losses_in(output) == pytest.approx([sum(losses).item()], abs=2e-4)
