"""Gradients add up in place: in .grad, or with main_grads=True in a float32 sum."""

import copy
import gc
import re
import threading
import weakref
from pathlib import Path

import pytest
import torch
from plain_loop import batch, mlp, same_bits, twins
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss
MICROBATCHES = 4


def pipeline(stages, **options):
    options = {"num_microbatches": MICROBATCHES, "loss_fn": mse, "main_grads": True, **options}
    return pipert.Pipeline(stages, **options)


def float32_loop(model, x, target, num_microbatches=MICROBATCHES, sums=None):
    """The plain loop that adds each microbatch's gradients to float32 sums, by name."""
    if sums is None:
        sums = {
            name: torch.zeros_like(p, dtype=torch.float32)
            for name, p in model.named_parameters()
            if p.requires_grad
        }
    for inputs, targets in zip(
        x.tensor_split(num_microbatches), target.tensor_split(num_microbatches), strict=True
    ):
        loss = mse(model(inputs), targets)
        loss.backward(torch.full_like(loss, len(inputs) / len(x)))
        for name, p in model.named_parameters():
            if p.grad is not None:
                sums[name] += p.grad.to(torch.float32)
                p.grad = None
    return sums


def main_grads(pipe):
    return {name: p.main_grad for name, p in pipe.named_parameters() if hasattr(p, "main_grad")}


def assert_same_sums(pipe, expected):
    found = main_grads(pipe)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert same_bits(value, expected[name]), name
    assert all(p.grad is None for p in pipe.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("schedule", "options"), [("gpipe", {}), ("1f1b", {}), ("interleaved_1f1b", {"num_ranks": 2})]
)
def test_sums_equal_plain_float32_accumulation_bit_for_bit(schedule, options, dtype):
    model, reference = (each.to(dtype) for each in twins(mlp, 4))
    x, y = (value.to(dtype) for value in batch(16))
    with pipeline(pipert.split(model, 4), schedule=schedule, **options) as pipe:
        pipe.step(x, target=y)
        sums = float32_loop(reference, x, y)
        assert_same_sums(pipe, sums)
        pipe.step(x, target=y)  # nobody zeroed them
        assert_same_sums(pipe, float32_loop(reference, x, y, sums=sums))
        pipe.zero_main_grads()
        pipe.step(x, target=y)
        assert_same_sums(pipe, float32_loop(reference, x, y))


def test_a_sum_in_bfloat16_would_have_other_bits():
    model, reference = (each.to(torch.bfloat16) for each in twins(mlp, 2))
    x, y = (value.to(torch.bfloat16) for value in batch(64))
    with pipeline(pipert.split(model, 2), num_microbatches=32, main_grads=False) as pipe:
        pipe.step(x, target=y)
        sums = float32_loop(reference, x, y, 32)
        grads = {name: p.grad.to(torch.float32) for name, p in pipe.named_parameters()}
        assert any(not torch.equal(grads[name], sums[name]) for name in grads)


def test_float64_parameters_are_summed_in_float64():
    with pipeline(pipert.split(mlp(2).double(), 2)) as pipe:
        x, y = batch(8)
        pipe.step(x.double(), target=y.double())
        assert {value.dtype for value in main_grads(pipe).values()} == {torch.float64}


def test_sums_are_allocated_once_and_a_given_one_is_used():
    model = mlp(2)
    buffer = torch.ones(8 * 8 + 8)
    first = model[0]
    first.weight.main_grad = buffer[:64].view(8, 8)
    first.bias.main_grad = buffer[64:]
    x, y = batch(8)
    with pipeline(pipert.split(model, 2)) as pipe:
        before = {name: value.data_ptr() for name, value in main_grads(pipe).items()}
        for _ in range(3):
            pipe.step(x, target=y)
        assert {name: value.data_ptr() for name, value in main_grads(pipe).items()} == before
    assert first.weight.main_grad.data_ptr() == buffer.data_ptr()
    assert not torch.equal(buffer, torch.ones_like(buffer))


def test_hooks_of_parameters_see_each_microbatchs_gradient_alone():
    model, reference = twins(mlp, 2)
    seen, expected = [], []
    model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    x, y = batch(8)
    for inputs, targets in zip(x.tensor_split(4), y.tensor_split(4), strict=True):
        mse(reference(inputs), targets).backward(torch.tensor(0.25))
        expected.append(reference[0].weight.grad)
        reference.zero_grad()
    with pipeline(pipert.split(model, 2)) as pipe:
        pipe.step(x, target=y)
        assert len(seen) == MICROBATCHES
        assert all(map(same_bits, seen, expected))
        pipe.step(x, target=y)
        assert len(seen) == 2 * MICROBATCHES


def test_a_hook_that_takes_the_gradient_itself_leaves_nothing_to_add():
    model = mlp(2)

    def take(parameter):
        parameter.grad = None

    handle = model[0].weight.register_post_accumulate_grad_hook(take)
    x, y = batch(8)
    with pipeline(pipert.split(model, 2)) as pipe:
        pipe.step(x, target=y)
        assert model[0].weight.main_grad.abs().sum() == 0
        assert model[0].bias.main_grad.abs().sum() > 0
        handle.remove()
        pipe.step(x, target=y)
        assert model[0].weight.main_grad.abs().sum() > 0


class HooksItself(nn.Module):
    """Gives its weight its first hook while the pass runs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.seen = []
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 2:
            self.linear.weight.register_post_accumulate_grad_hook(
                lambda p: self.seen.append(p.grad is not None)
            )
        return self.linear(x)


def test_no_gradient_is_lost_when_a_parameter_gets_its_first_hook_during_the_step():
    torch.manual_seed(0)
    stages = [HooksItself(), nn.Linear(8, 8)]
    reference = nn.Sequential(*copy.deepcopy(stages))
    x, y = batch(8)
    with pipeline(stages, schedule="gpipe") as pipe:
        pipe.step(x, target=y)
        sums = float32_loop(reference, x, y)
        assert stages[0].seen == [True] * MICROBATCHES
        for name, value in main_grads(pipe).items():  # that one's gradients met in .grad
            torch.testing.assert_close(value, sums[name])
        assert all(p.grad is None for p in pipe.parameters())


def test_frozen_parameters_have_no_sum_until_they_are_trained():
    model, reference = twins(mlp, 2)
    model[0].weight.requires_grad_(False)
    x, y = batch(8)
    with pipeline(pipert.split(model, 2)) as pipe:
        pipe.step(x, target=y)
        assert not hasattr(model[0].weight, "main_grad")
        model[0].weight.requires_grad_(True)
        pipe.zero_main_grads()
        pipe.step(x, target=y)
        assert_same_sums(pipe, float32_loop(reference, x, y))


def test_a_weight_that_stages_share_is_summed_once():
    torch.manual_seed(0)
    shared = nn.Linear(8, 8)
    stages = [nn.Sequential(shared, nn.Tanh()), nn.Sequential(shared)]
    reference = nn.Sequential(*copy.deepcopy(nn.Sequential(*stages)))
    x, y = batch(8)
    with pipeline(stages) as pipe:
        assert len(main_grads(pipe)) == 2
        for _ in range(20):  # two ranks add at once
            pipe.zero_main_grads()
            pipe.step(x, target=y)
            sums = float32_loop(reference, x, y)
            torch.testing.assert_close(shared.weight.main_grad, sums["0.0.weight"])
            torch.testing.assert_close(shared.bias.main_grad, sums["0.0.bias"])


def test_what_was_in_grad_before_the_step_counts():
    model, reference = twins(mlp, 2)
    x, y = batch(8)
    with pipeline(pipert.split(model, 2)) as pipe:
        model[0].bias.grad = torch.ones(8)
        pipe.step(x, target=y)
        sums = {
            name: torch.zeros_like(p, dtype=torch.float32)
            for name, p in reference.named_parameters()
        }
        sums["0.bias"] += 1
        assert_same_sums(pipe, float32_loop(reference, x, y, sums=sums))


def test_outside_of_steps_gradients_go_where_torch_puts_them():
    model = mlp(2)
    x, y = batch(8)
    with pipeline(pipert.split(model, 2)) as pipe:
        pipe.step(x, target=y)
        before = {name: value.clone() for name, value in main_grads(pipe).items()}
        pipe.evaluate(x, target=y)
        mse(model(x), y).backward()
        assert all(p.grad is not None for p in pipe.parameters())
        assert all(same_bits(value, before[name]) for name, value in main_grads(pipe).items())


def test_a_failed_step_leaves_the_parameters_as_they_were():
    model = mlp(2)
    x, y = batch(8)
    fail = threading.Event()

    def loss(output, target):
        if fail.is_set():
            raise RuntimeError("no")
        return mse(output, target)

    with pipeline(pipert.split(model, 2), loss_fn=loss) as pipe:
        fail.set()
        with pytest.raises(pipert.PipelineError):
            pipe.step(x, target=y)
        mse(model(x), y).backward()
        assert all(p.grad is not None for p in model.parameters())
        model.zero_grad()
        fail.clear()
        pipe.zero_main_grads()
        pipe.step(x, target=y)
        reference = mlp(2)
        assert_same_sums(pipe, float32_loop(reference, x, y))


def test_clipping_takes_and_scales_the_sums():
    model, reference = (each.to(torch.bfloat16) for each in twins(mlp, 4))
    x, y = (value.to(torch.bfloat16) for value in batch(8))
    with pipeline(pipert.split(model, 4)) as pipe:
        assert pipe.clip_grad_norm_(1.0) == 0
        pipe.step(x, target=y)
        sums = float32_loop(reference, x, y)
        for name, p in reference.named_parameters():
            p.data = p.data.float()
            p.grad = sums[name]
        norm = pipe.clip_grad_norm_(0.05)
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(reference.parameters(), 0.05))
        for name, p in reference.named_parameters():
            torch.testing.assert_close(main_grads(pipe)[name], p.grad)


def test_the_optimizer_of_the_documentation_trains():
    page = (Path(__file__).resolve().parent.parent / "docs" / "memory.md").read_text()
    [recipe] = re.findall(r"```python\n(trained = .*?)```", page, re.DOTALL)
    model = mlp(2).to(torch.bfloat16)
    model[0].bias.requires_grad_(False)
    x, y = (value.to(torch.bfloat16) for value in batch(8))
    with pipeline(pipert.split(model, 2)) as pipe:
        before = pipe.evaluate(x, target=y).loss
        for _ in range(5):
            exec(recipe, {"torch": torch, "pipe": pipe, "x": x, "y": y})
        assert pipe.evaluate(x, target=y).loss < before
        assert all(value.abs().sum() == 0 for value in main_grads(pipe).values())


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (
            torch.zeros(8, 8, dtype=torch.bfloat16),
            ValueError,
            r"main_grad of 0.weight must be torch.float32 of shape \(8, 8\) on cpu, got "
            r"torch.bfloat16 of shape \(8, 8\) on cpu",
        ),
        (torch.zeros(64), ValueError, r"got torch.float32 of shape \(64,\) on cpu"),
        (3, TypeError, "main_grad of 0.weight must be a tensor, got int"),
    ],
)
def test_a_sum_that_does_not_fit_is_refused(given, error, text):
    model = mlp(2)
    model[0].weight.main_grad = given
    with pytest.raises(error, match=text):
        pipeline(pipert.split(model, 2))


def test_sums_are_refused_where_there_are_none():
    with (
        pipeline(pipert.split(mlp(2), 2), main_grads=False) as pipe,
        pytest.raises(ValueError, match="no main gradients: expected main_grads=True"),
    ):
        pipe.zero_main_grads()


def test_without_sums_gradients_add_up_in_place():
    model = mlp(2)
    x, y = batch(8)
    with pipeline(pipert.split(model, 2), main_grads=False) as pipe:
        pipe.step(x, target=y)
        kept = {name: (p.grad, p.grad.data_ptr()) for name, p in pipe.named_parameters()}
        for zero in (lambda p: p.grad.zero_(), lambda p: None):
            for p in pipe.parameters():
                zero(p)
            pipe.step(x, target=y)
            for name, p in pipe.named_parameters():
                assert p.grad is kept[name][0]
                assert p.grad.data_ptr() == kept[name][1]


def test_main_grad_that_is_given_to_the_optimizer_as_grad_counts_once():
    model = mlp(2)
    x, target = batch(8)
    expected = float32_loop(copy.deepcopy(model), x, target)
    expected = float32_loop(copy.deepcopy(model), x, target, sums=expected)
    with pipeline(pipert.split(model, num_stages=2), schedule="1f1b") as pipe:
        pipe.step(x, target=target)
        for p in pipe.parameters():
            p.grad = p.main_grad
        pipe.step(x, target=target)
        found = main_grads(pipe)
        for name, p in pipe.named_parameters():
            assert p.grad is p.main_grad
            assert same_bits(found[name], expected[name])


class Memory(bytearray):
    """Memory of a tensor that can be watched: it lives as long as any tensor that uses it."""


def failed_step(pipe):
    """A weak reference to the batch of a step that fails before any rank runs, and the message."""
    memory = Memory(4 * 8 * 8)
    x = torch.frombuffer(memory, dtype=torch.float32).view(8, 8)
    try:
        pipe.step(x, target=torch.zeros(8, 8))
    except RuntimeError as error:
        return weakref.ref(memory), str(error)
    return weakref.ref(memory), ""


def test_a_step_that_cannot_begin_lets_go_of_its_batch():
    stage = nn.Linear(8, 8)
    with pipeline([stage]) as pipe:
        stage.weight.main_grad = torch.zeros(1).expand(8, 8)  # can't be added to
        stage.weight.grad = torch.ones(8, 8)
        memory, message = failed_step(pipe)
        assert "single memory location" in message
        gc.collect()
        assert memory() is None


def test_a_gradient_beside_its_sum_in_one_buffer_is_added():
    model, reference = twins(mlp, 1)
    x, target = batch(8)
    expected = float32_loop(reference, x, target)
    flat = torch.zeros(128)
    weight = model[0].weight
    weight.main_grad, weight.grad = flat[:64].view(8, 8), flat[64:].view(8, 8)
    with pipeline([model]) as pipe:
        pipe.step(x, target=target)
        assert same_bits(main_grads(pipe)["0.0.weight"], expected["0.weight"])
