"""The ResNet example trains alike as threads and as processes, and as the plain model does."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "resnet_rpc.py"
SMALL = ["--width", "8", "--image", "32", "--classes", "10"]
LOSS = re.compile(r"^batch \d+  loss (\S+)", re.MULTILINE)


def losses_of(launcher: list[str], *options: str) -> list[str]:
    result = subprocess.run(
        [*launcher, str(EXAMPLE), *SMALL, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return LOSS.findall(result.stdout)


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    return importlib.import_module("resnet_rpc")


def plain_losses(example, split_size: int) -> list[str]:
    """Those of a loop without a pipeline."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = example.resnet50(8, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    args = type("Args", (), {"rows": 8, "batches": 3, "image": 32, "classes": 10})
    losses = []
    for images, labels in example.random_batches(args):
        optimizer.zero_grad()
        total = torch.zeros(())
        for part, label in zip(images.split(split_size), labels.split(split_size), strict=True):
            loss = nn.functional.mse_loss(model(part), label)
            weight = len(part) / len(images)
            loss.backward(torch.full_like(loss, weight))
            total += loss.detach() * weight
        optimizer.step()
        losses.append(f"{total.item():.9g}")
    torch.set_num_threads(threads)
    return losses


@pytest.mark.parametrize("split_size", [3, 5])
def test_threads_train_as_the_plain_model(example, split_size):
    found = losses_of([sys.executable], "--split-size", str(split_size))
    expected = plain_losses(example, split_size)
    assert [float(loss) for loss in found] == pytest.approx([float(e) for e in expected], rel=1e-6)


@pytest.mark.distributed
def test_processes_print_the_losses_of_threads():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # a free port
    found = losses_of(torchrun)
    assert len(found) == 3
    assert found == losses_of([sys.executable])


def test_the_model_is_resnet_50(example):
    with torch.device("meta"):
        model = example.resnet50()
    assert sum(p.numel() for p in model.parameters()) == 25_557_032  # torchvision's
    assert {"conv1.weight", "layer3.5.bn3.running_var", "layer2.0.downsample.1.bias"} <= set(
        model.state_dict()
    )


def test_torchvisions_model_may_be_trained_if_it_is_installed(example):
    torchvision = pytest.importorskip("torchvision")
    theirs = example.torchvisions()
    theirs.load_state_dict(torchvision.models.resnet50().state_dict())
    assert list(theirs.state_dict()) == list(example.resnet50().state_dict())
