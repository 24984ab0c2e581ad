"""The examples with transformers models train, alike in threads and in processes."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest
import torch
from example_script import imported, losses_in, run, run_in_processes
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="transformers isn't installed")

pytestmark = pytest.mark.timeout(300)
SMALL = ["--batch", 4, "--microbatches", 2, "--steps", 3]
LLAMA = ["hf_llama.py", *SMALL]
FOUR_STAGES = ["--stages", 4, "--schedule", "interleaved_1f1b"]
T5 = ["hf_t5.py", *SMALL, "--layers", 2, "--width", 32, *FOUR_STAGES]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Saved models by name: a Llama in several files, and a GPT-2, whose head is its embedding."""
    llama = transformers.LlamaConfig(
        num_hidden_layers=4,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        vocab_size=256,
    )
    gpt2 = transformers.GPT2Config(
        n_layer=4,
        n_embd=32,
        n_head=4,
        n_positions=64,
        vocab_size=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    folders = {name: tmp_path_factory.mktemp(name) for name in ("llama", "gpt2")}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(llama).save_pretrained(folders["llama"], max_shard_size="50KB")
    transformers.GPT2LMHeadModel(gpt2).save_pretrained(folders["gpt2"])
    return folders


@pytest.fixture(scope="module")
def in_two_processes(
    checkpoints: dict[str, pathlib.Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[float]]:
    """The losses that the examples print under torchrun, by model."""
    runs = {
        "llama": [*LLAMA, "--checkpoint", checkpoints["llama"], *FOUR_STAGES],
        "gpt2": [*LLAMA, "--checkpoint", checkpoints["gpt2"]],
        "t5": T5,
    }
    outputs = run_in_processes(2, tmp_path_factory.mktemp("printed"), *runs.values())
    return dict(zip(runs, map(losses_in, outputs), strict=True))


def byte_ids(step: int) -> Tensor:
    """What the examples train on."""
    text = imported("text")
    return text.training_batch(text.read_text(None, 4)[1], step, 4)[0]


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
    found = losses_in(run(*LLAMA, "--layers", 4, "--width", 32, "--lr", 1e-2))
    assert len(found) == 3
    assert found[-1] < found[0] < 6


@pytest.mark.distributed
def test_llama_starts_from_a_checkpoint_the_same_in_threads_and_processes(
    checkpoints, in_two_processes
):
    """Each rank reads its own tensors; the first loss is the whole model's."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    ids = byte_ids(0)
    expected = sum(model(input_ids=part, labels=part).loss for part in ids.split(2)) / 2
    threads = losses_in(run(*LLAMA, "--checkpoint", checkpoints["llama"], *FOUR_STAGES))
    assert threads[0] == pytest.approx(expected.item(), abs=1e-8)
    assert in_two_processes["llama"] == threads


@pytest.mark.distributed
def test_a_gpt2_whose_processes_share_one_embedding_trains_as_the_whole_model(
    checkpoints, in_two_processes
):
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["gpt2"]).train()
    expected = plain_losses(
        model, lambda step: dict.fromkeys(("input_ids", "labels"), byte_ids(step))
    )
    assert in_two_processes["gpt2"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "launcher", ["threads", pytest.param("processes", marks=pytest.mark.distributed)]
)
def test_t5_trains_as_the_whole_model(request, launcher):
    """Its encoder's output skips a stage, and three stages share one embedding."""
    if launcher == "threads":
        found = losses_in(run(*T5))
    else:
        found = request.getfixturevalue("in_two_processes")["t5"]
    example = imported("hf_t5")
    text = imported("text").read_text(None, 4)[1]
    model = example.make_model(2, 32)
    expected = plain_losses(model, lambda step: example.gaps_batch(text, step, 4))
    assert found == pytest.approx(expected, abs=1e-5)
