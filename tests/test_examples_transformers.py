"""The examples with transformers models train, alike in threads and in processes."""

from __future__ import annotations

import importlib
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="transformers isn't installed")

pytestmark = pytest.mark.timeout(300)
EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
TORCHRUN += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # a free port
SMALL = ["--batch", "4", "--microbatches", "2", "--steps", "3"]


def losses(example: str, *options: str, launcher: list[str] | None = None) -> list[float]:
    """Runs it, and returns what it printed."""
    command = [sys.executable, *(launcher or []), str(EXAMPLES / example), *SMALL, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(loss) for loss in re.findall(r"loss (\S+)", done.stdout)]


def imported(example: str) -> Any:
    sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(example)


def byte_ids(step: int) -> Tensor:
    """What the examples train on."""
    gpt = imported("gpt")
    return gpt.training_batch(gpt.read_text(None, 4)[1], step, 4)[0]


def plain_losses(model: nn.Module, batch_of: Callable[[int], dict[str, Tensor]]) -> list[float]:
    """Of as many steps of the whole model, in two microbatches."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(3):
        parts = {name: value.split(2) for name, value in batch_of(step).items()}
        loss = sum(model(**{name: of[i] for name, of in parts.items()}).loss for i in (0, 1)) / 2
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_llama_trains():
    found = losses("hf_llama.py", "--layers", "4", "--width", "32", "--lr", "1e-2")
    assert len(found) == 3
    assert found[-1] < found[0] < 6


@pytest.mark.distributed
def test_llama_starts_from_a_checkpoint_the_same_in_threads_and_processes(tmp_path):
    """Each rank reads its own tensors; the first loss is the whole model's."""
    config = transformers.LlamaConfig(
        num_hidden_layers=4,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        vocab_size=256,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    ids = byte_ids(0)
    expected = sum(model(input_ids=part, labels=part).loss for part in ids.split(2)) / 2
    options = ["--checkpoint", str(tmp_path), "--schedule", "interleaved_1f1b", "--stages", "4"]
    threads = losses("hf_llama.py", *options)
    assert threads[0] == pytest.approx(expected.item(), abs=1e-8)
    assert losses("hf_llama.py", *options, launcher=TORCHRUN) == threads


@pytest.mark.distributed
def test_a_gpt2_whose_processes_share_one_embedding_trains_as_the_whole_model(tmp_path):
    config = transformers.GPT2Config(
        n_layer=4,
        n_embd=32,
        n_head=4,
        n_positions=64,
        vocab_size=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).train()
    model.save_pretrained(tmp_path)
    expected = plain_losses(
        model, lambda step: dict.fromkeys(("input_ids", "labels"), byte_ids(step))
    )
    found = losses("hf_llama.py", "--checkpoint", str(tmp_path), launcher=TORCHRUN)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(None, id="threads"),
        pytest.param(TORCHRUN, id="processes", marks=pytest.mark.distributed),
    ],
)
def test_t5_trains_as_the_whole_model(launcher):
    """Its encoder's output skips a stage, and three stages share one embedding."""
    options = ["--layers", "2", "--width", "32", "--stages", "4", "--schedule", "interleaved_1f1b"]
    found = losses("hf_t5.py", *options, launcher=launcher)
    example = imported("hf_t5")
    text = imported("gpt").read_text(None, 4)[1]
    model = example.make_model(2, 32)
    expected = plain_losses(model, lambda step: example.gaps_batch(text, step, 4))
    assert found == pytest.approx(expected, abs=1e-5)
