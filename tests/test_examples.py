"""The examples run at a small size, and train as the plain model does."""

from __future__ import annotations

import pytest
import torch
from example_script import imported, losses_in, run, run_in_processes
from plain_loop import assert_same_gradients, plain_loop
from torch import nn
from torch.nn import functional

import pipert

pytestmark = pytest.mark.timeout(240)

RESNET = ["resnet_rpc.py", "--width", 8, "--image", 32, "--classes", 10]
PIPPY = ["pippy_script.py", "--rows", 16, "--steps", 3, "--chunks", 4]
MOE = ["moe.py", "--layers", 4, "--width", 16, "--experts", 3, "--steps", 3, "--batch", 8]
MOE += ["--stages", 4, "--schedule", "interleaved_1f1b"]


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What examples print under torchrun, by name."""
    runs = {
        "resnet": RESNET,
        "1F1B": PIPPY,
        "ZBVZeroBubble": [*PIPPY, "--schedule", "ZBVZeroBubble"],
        "moe": MOE,
    }
    outputs = run_in_processes(2, tmp_path_factory.mktemp("printed"), *runs.values())
    return dict(zip(runs, outputs, strict=True))


def plain_losses(model, optimizer, batches, num_microbatches, loss_fn) -> list[float]:
    """Of the steps of a loop without a pipeline."""
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        losses.append(plain_loop(model, x, y, num_microbatches, loss_fn).mean().item())
        optimizer.step()
    return losses


# --- ResNet-50 ------------------------------------------------------------------------------------


def plain_resnet_losses(split_size: int) -> list[float]:
    example = imported("resnet_rpc")
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
        losses.append(total.item())
    return losses


@pytest.mark.parametrize("split_size", [3, 5])
def test_resnet_trains_on_uneven_microbatches_as_the_plain_model(split_size):
    found = losses_in(run(*RESNET, "--split-size", split_size))
    assert found == pytest.approx(plain_resnet_losses(split_size), rel=1e-6)


@pytest.mark.distributed
def test_resnet_in_processes_prints_the_losses_of_threads(in_two_processes):
    found = losses_in(in_two_processes["resnet"])
    assert len(found) == 3
    assert found == losses_in(run(*RESNET))


def test_the_resnet_is_resnet_50():
    with torch.device("meta"):
        model = imported("resnet_rpc").resnet50()
    assert sum(p.numel() for p in model.parameters()) == 25_557_032  # torchvision's
    assert {"conv1.weight", "layer3.5.bn3.running_var", "layer2.0.downsample.1.bias"} <= set(
        model.state_dict()
    )


def test_torchvisions_resnet_may_be_trained_if_it_is_installed():
    torchvision = pytest.importorskip("torchvision")
    example = imported("resnet_rpc")
    theirs = example.torchvisions()
    theirs.load_state_dict(torchvision.models.resnet50().state_dict())
    assert list(theirs.state_dict()) == list(example.resnet50().state_dict())


# --- PiPPy, pipeline_cuts, torchgpipe -------------------------------------------------------------


@pytest.mark.distributed
@pytest.mark.parametrize(("schedule", "num_stages"), [("1F1B", 2), ("ZBVZeroBubble", 4)])
def test_pippy_script_trains_alike_under_its_schedules(in_two_processes, schedule, num_stages):
    example = imported("pippy_script")
    torch.manual_seed(0)
    model = example.Sorter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = [example.batch(step, 16) for step in range(3)]
    expected = plain_losses(model, optimizer, batches, 4, example.loss_fn)
    output = in_two_processes[schedule]
    assert losses_in(output) == pytest.approx(expected, abs=2e-5)
    assert f"submod_pp_{num_stages - 1} = self.submod_pp_{num_stages - 1}(" in output
    assert "right on a new batch" in output


@pytest.mark.distributed
def test_pipeline_cuts_spmd_trains_as_the_whole_model_does(tmp_path):
    example = imported("pipeline_cuts_spmd")
    options = ["--width", 16, "--layers", 3, "--rows", 8, "--steps", 4]
    script = ["pipeline_cuts_spmd.py", *options, "--pipeline-cuts", "layers.1"]
    [output] = run_in_processes(4, tmp_path, script)
    torch.manual_seed(0)
    model = example.Model(16, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = [example.batch(step, 8) for step in range(4)]
    expected = plain_losses(model, optimizer, batches, 4, functional.cross_entropy)
    assert losses_in(output) == pytest.approx(expected, abs=2e-5)


def test_gpipe_style_trains_as_the_sequential_does():
    example = imported("gpipe_style")
    options = ["--steps", 10, "--batch", 16, "--chunks", 4, "--width", 4, "--pixels", 16]
    output = run("gpipe_style.py", *options)
    assert "stage  layers" in output
    assert "step  10/10" in output

    torch.manual_seed(0)
    model = example.network(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches = [example.training_batch(step, 16, 16) for step in range(10)]
    losses = plain_losses(model, optimizer, batches, 4, functional.cross_entropy)
    assert losses_in(output) == pytest.approx([losses[-1]], abs=2e-4)


# --- mixture of experts ---------------------------------------------------------------------------


def moe_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    text = imported("text")
    train = text.read_text(None, 8)[1]
    return [text.training_batch(train, step, 8) for step in range(3)]


def moe_model() -> nn.Module:
    torch.manual_seed(0)
    return imported("moe").Model(num_layers=4, width=16, num_experts=3)


@pytest.mark.parametrize(
    "launcher", ["threads", pytest.param("processes", marks=pytest.mark.distributed)]
)
def test_moe_prints_the_losses_of_the_plain_model_bit_for_bit(request, launcher):
    if launcher == "threads":
        output = run(*MOE)
    else:
        output = request.getfixturevalue("in_two_processes")["moe"]
    example, model = imported("moe"), moe_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    expected = plain_losses(
        model, optimizer, moe_batches(), 4, lambda logits, y: example.loss_fn(logits, y)[0]
    )
    assert losses_in(output) == [float(f"{loss:.9g}") for loss in expected]
    assert "skip 0 -> 3: blocks.0.1" in output


def test_moe_has_the_plain_models_gradients_and_metrics():
    """The router's too, half of which come back from the last stage, past the others."""
    example, model, reference = imported("moe"), moe_model(), moe_model()
    x, y = moe_batches()[0]
    stages = pipert.split(model, 4, example_args=(x[:2],))
    metrics = []

    def loss_fn(output, target):
        loss, parts = example.loss_fn(output, target)
        metrics.append(parts)
        return loss

    with pipert.Pipeline(
        stages, schedule="zb_h1", num_microbatches=4, loss_fn=example.loss_fn
    ) as pipe:
        result = pipe.step(x, target=y)
        losses = plain_loop(reference, x, y, 4, loss_fn)
        assert torch.equal(result.losses, losses)
        for name in ("entropy", "imbalance"):
            assert result.metrics[name].tolist() == [parts[name].item() for parts in metrics]
        assert_same_gradients(pipe, reference)
