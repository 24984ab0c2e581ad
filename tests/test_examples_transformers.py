"""The examples with transformers models train, alike in threads and in processes."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch

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
    sys.path.insert(0, str(EXAMPLES))
    from gpt import read_text, training_batch

    _, text, _ = read_text(None, 4)
    ids, _ = training_batch(text, 0, 4)
    expected = sum(model(input_ids=part, labels=part).loss for part in ids.split(2)) / 2
    options = ["--checkpoint", str(tmp_path), "--schedule", "interleaved_1f1b", "--stages", "4"]
    threads = losses("hf_llama.py", *options)
    assert threads[0] == pytest.approx(expected.item(), abs=1e-8)
    assert losses("hf_llama.py", *options, launcher=TORCHRUN) == threads
