"""What goes wrong on a GPU is told, and the pipeline is as good as before."""

import gc
import re

import pytest
import torch
from plain_loop import assert_same_gradients, batch, mlp, plain_loop, same_bits, twins
from torch import nn

import pipert

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(60)]
mse = nn.functional.mse_loss
MB = 1 << 20


class Large(nn.Module):
    """Keeps 32 MB for the backward of each microbatch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32 * MB // 4))

    def forward(self, x):
        large = self.weight * x.mean()
        return x + (large * large).mean()


@pytest.fixture
def little_memory():
    """For 450 MB more than there is in use."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    fraction = (torch.cuda.memory_reserved() + 450 * MB) / total
    torch.cuda.set_per_process_memory_fraction(fraction, 0)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, 0)
    gc.collect()
    torch.cuda.empty_cache()


def test_a_real_lack_of_memory_says_what_the_rank_held(little_memory):
    x, y = (t.cuda() for t in batch(16, width=8))
    stages = [Large(), nn.Linear(8, 8)]
    with pipert.Pipeline(
        stages,
        schedule="gpipe",
        devices=["cuda:0"] * 2,
        num_microbatches=16,
        loss_fn=mse,
        measure_memory=True,
    ) as pipe:
        with pytest.raises(pipert.PipelineError) as raised:
            pipe.step(x, target=y)
        text = str(raised.value)
        print(text)
        assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)
        assert raised.value.rank == 0
        found = re.search(r"held the activations of (\d+) microbatches: (\d+) of stage 0", text)
        assert found is not None
        assert 2 <= int(found[1]) < 16
        assert "MB with all else" in text
        assert re.search(r"gpipe holds at most 16 there.*1f1b would hold 2\b", text)
        assert "recompute='all'" in text
        raised.value.__traceback__ = raised.value.__cause__.__traceback__ = None
        del raised
        gc.collect()
        torch.cuda.empty_cache()
        pipe.reschedule("1f1b")
        assert pipe.step(x, target=y).loss.isfinite()


class Fails(nn.Module):
    """Fails at its third call, with work of the device behind it that isn't done."""

    def __init__(self, on_backward):
        super().__init__()
        self.on_backward = on_backward
        self.num_calls = 0

    def fail(self, like):
        self.num_calls += 1
        torch.cuda._sleep(300_000)
        if self.num_calls == 3:
            raise RuntimeError("the third call")

    def forward(self, x):
        if self.on_backward and x.requires_grad:
            x.register_hook(self.fail)
        elif not self.on_backward:
            self.fail(x)
        return x.view_as(x)


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
@pytest.mark.parametrize("on_backward", [False, True])
def test_after_an_error_the_next_step_has_the_plain_loops_bits(schedule, on_backward):
    model, reference = twins(mlp, 2, width=64)
    reference.cuda()
    stages = list(pipert.split(model, 2))
    fails = Fails(on_backward)
    stages[1] = nn.Sequential(fails, *stages[1])
    x, y = (t.cuda() for t in batch(16, width=64))
    with pipert.Pipeline(
        stages, schedule=schedule, devices=["cuda:0"] * 2, num_microbatches=4, loss_fn=mse
    ) as pipe:
        for _ in range(5):
            fails.num_calls = 0
            with pytest.raises(pipert.PipelineError, match=r"rank 1, stage 1.*the third call"):
                pipe.step(x, target=y)
            # Without a wait: what the lanes still do must not reach the new gradients.
            for parameter in pipe.parameters():
                parameter.grad = None
            fails.num_calls = 100
            losses = pipe.step(x, target=y).losses
            reference.zero_grad()
            assert same_bits(losses, plain_loop(reference, x, y, 4))
            got = [p.grad for p in pipe.parameters()]
            assert all(map(same_bits, got, [p.grad for p in reference.parameters()]))
            for parameter in pipe.parameters():
                parameter.grad = None


def test_a_device_that_is_not_there_is_refused_with_those_that_are():
    count = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"got 'cuda:{count}', but this process sees {count}: "):
        pipert.Pipeline(
            pipert.split(mlp(2), 2), num_microbatches=2, devices=["cuda:0", f"cuda:{count}"]
        )


def test_a_device_without_a_number_is_the_current_one():
    model, reference = twins(mlp, 2)
    reference.cuda()
    x, y = (t.cuda() for t in batch(8))
    with pipert.Pipeline(
        pipert.split(model, 2), devices=["cuda", "cuda:0"], num_microbatches=4, loss_fn=mse
    ) as pipe:
        pipe.step(x, target=y)
        plain_loop(reference, x, y, 4)
        assert_same_gradients(pipe, reference)


def test_one_connection_to_the_device_is_warned_of(monkeypatch):
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    with pytest.warns(UserWarning, match="go through one hardware queue"):
        pipert.Pipeline(pipert.split(mlp(2), 2), devices=["cuda:0"] * 2, num_microbatches=2).close()


def test_a_batch_on_another_device_than_the_first_stage_is_the_stages_own_error():
    x, y = batch(8)
    with (
        pipert.Pipeline(
            pipert.split(mlp(2), 2), devices=["cuda:0"] * 2, num_microbatches=4, loss_fn=mse
        ) as pipe,
        pytest.raises(pipert.PipelineError, match=r"rank 0, stage 0.*same device"),
    ):
        pipe.step(x, target=y.cuda())
