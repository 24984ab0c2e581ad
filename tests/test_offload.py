"""Activations that spend their wait on the host: the same gradients, and memory that is free."""

import copy

import pytest
import torch
from plain_loop import assert_same_gradients, batch, plain_loop, same_bits
from torch import nn
from torch.utils.checkpoint import checkpoint

import pipert
from pipert import Schedule

pytestmark = pytest.mark.timeout(90)
mse = nn.functional.mse_loss
MICROBATCHES = 8
WIDTH = 16


def pipeline(stages, schedule, **options):
    options = {"num_microbatches": schedule.num_microbatches, "loss_fn": mse, **options}
    return pipert.Pipeline(stages, schedule=schedule, **options)


def one_rank(num_microbatches=4, ahead=0):
    """One stage, all forwards first."""
    schedule = Schedule.build("gpipe", num_ranks=1, num_microbatches=num_microbatches)
    return schedule.with_offload(ahead=ahead)


def blocks(count=4, width=WIDTH):
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.Tanh()) for _ in range(count)
    ]


def assert_equals_plain_loop(stages, schedule, x, y, loss_fn=mse, steps=2):
    reference = nn.Sequential(*copy.deepcopy(stages))
    with pipeline(stages, schedule, loss_fn=loss_fn) as pipe:
        for _ in range(steps):
            result = pipe.step(x, target=y)
            losses = plain_loop(reference, x, y, schedule.num_microbatches, loss_fn)
            assert same_bits(result.losses, losses)
            assert_same_gradients(pipe, reference)


SCHEDULES = [
    ("gpipe", 4, 4),
    ("1f1b", 4, 4),
    ("eager_1f1b", 2, 2),
    ("interleaved_1f1b", 2, 4),
    ("zb_h1", 4, 4),
    ("zb_h2", 2, 2),
    ("zb_interleaved", 2, 4),
    ("zb_v", 2, 4),
]


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize(("name", "ranks", "stages"), SCHEDULES)
def test_gradients_equal_plain_loop_bit_for_bit(name, ranks, stages, ahead):
    schedule = Schedule.build(
        name, num_ranks=ranks, num_stages=stages, num_microbatches=MICROBATCHES
    ).with_offload(ahead=ahead)
    assert_equals_plain_loop(blocks(stages), schedule, *batch(32, WIDTH))


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, x * 2)
        return x * 2 + x.sin()

    @staticmethod
    def backward(ctx, gradient):
        x, twice = ctx.saved_tensors
        return gradient * (2 + x.cos()) + 0 * twice


class Aliases(nn.Module):
    """Saves views of one memory: transposed, strided, and shifted."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = self.linear(x).exp()
        y = x.t() @ x
        z = x[:, ::2] * x[:, 1::2]
        return x + y.sum() * 1e-3 + torch.cat([z, z[:, :].flip(1)], 1)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = nn.functional.relu(self.linear(x), inplace=True)
        x = x * 2
        x[:, 0] += 1
        return x.sigmoid_()


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.complex64))

    def forward(self, x):
        z = x.to(torch.complex64) @ self.weight
        return (z.conj() * z.sin()).real + z.imag.neg()


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.inner = blocks(1)[0]
        self.last = nn.Linear(WIDTH, WIDTH)
        self.use_reentrant = use_reentrant

    def forward(self, x):
        return self.last(checkpoint(self.inner, x, use_reentrant=self.use_reentrant)).tanh()


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return Doubling.apply(self.linear(x))


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mask", torch.eye(WIDTH).to_sparse())

    def forward(self, x):
        return torch.sparse.mm(self.mask, self.linear(x).t()).t().cos()


class OnHostItself(nn.Module):
    """Has hooks of its own for what it saves."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        with torch.autograd.graph.save_on_cpu():
            return self.linear(x).tanh()


@pytest.mark.parametrize("name", ["gpipe", "zb_h1"])
@pytest.mark.parametrize(
    "make",
    [
        Aliases,
        InPlace,
        Complex,
        Custom,
        Sparse,
        OnHostItself,
        lambda: Checkpointed(False),
        lambda: Checkpointed(True),
        lambda: nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(32, WIDTH)),
        lambda: nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0),
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.GELU()),
    ],
)
def test_stages_of_many_kinds_give_the_same_bits(make, name):
    torch.manual_seed(0)
    made = make()
    if isinstance(made, nn.Sequential) and isinstance(made[0], nn.Conv1d):
        made = nn.Sequential(nn.Unflatten(1, (1, WIDTH)), *made)
    stages = [made, *blocks(1)]
    schedule = Schedule.build(name, num_ranks=2, num_microbatches=6).with_offload(ahead=0)
    assert_equals_plain_loop(stages, schedule, *batch(24, WIDTH))


def test_frozen_parameters_and_shared_ones_are_no_harm():
    shared = blocks(1)[0]
    frozen = blocks(1)[0].requires_grad_(False)
    stages = [nn.Sequential(shared, frozen, shared), *blocks(1)]
    schedule = Schedule.build("gpipe", num_ranks=2, num_microbatches=4).with_offload()
    assert_equals_plain_loop(stages, schedule, *batch(16, WIDTH))


# --- what is on the host is not on the device ---------------------------------------------------


def test_memory_is_free_while_it_is_on_the_host():
    width, rows, count = 64, 128, 6
    kept = rows * width * 4
    x, y = batch(rows * count, width)
    held = {}
    for ahead in (None, 0):
        schedule = Schedule.build("gpipe", num_ranks=1, num_microbatches=count)
        if ahead is not None:
            schedule = schedule.with_offload(ahead=ahead)
        with pipeline(
            [nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))],
            schedule,
            measure_memory=True,
        ) as pipe:
            pipe.step(x, target=y)
            pipe.step(x, target=y)
            [rank] = pipe.report().memory
            held[ahead] = rank
    # Each microbatch keeps the middle, and what the loss saved, its input; and two numbers, the
    # loss and its weight. The batch is the user's.
    numbers = count * 2 * 4
    assert held[None].kept_bytes == held[None].predicted_bytes == count * 2 * kept + numbers
    assert held[None].peak_activations == held[None].predicted_activations == count
    assert held[0].peak_activations == held[0].predicted_activations == 1
    assert held[0].kept_bytes == 2 * kept + numbers
    assert held[0].predicted_bytes == 2 * kept + 8


def test_what_somebody_else_holds_stays_where_it_is():
    """Weights, the batch, and what the user's code keeps: nothing would be freed."""
    kept = []

    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            hidden = self.linear(x)
            kept.append((hidden, hidden.data_ptr()))
            return hidden.tanh()

    x, y = batch(16, WIDTH)
    stage = Keeping()
    places = [x.data_ptr(), stage.linear.weight.data_ptr()]
    with pipeline([stage], one_rank()) as pipe:
        pipe.step(x, target=y)
    assert [x.data_ptr(), stage.linear.weight.data_ptr()] == places
    assert all(hidden.data_ptr() == place for hidden, place in kept)


# --- errors -------------------------------------------------------------------------------------


class ChangesLater(nn.Module):
    """Changes what microbatch 0 saved, when microbatch `at` comes."""

    def __init__(self, at, what):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.at, self.what = at, what
        self.calls = 0

    def forward(self, x):
        hidden = self.linear(x)
        output = hidden.exp() * hidden  # saves both, one as an output
        saved = {"input": hidden, "weight": self.linear.weight}[self.what]
        if self.calls == 0:
            self.first = saved
        if self.calls == self.at:
            with torch.no_grad():
                self.first.add_(1.0)
        self.calls += 1
        return output


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("what", ["input", "weight"])
def test_an_in_place_change_of_a_saved_tensor_is_told(at, what):
    x, y = batch(16, WIDTH)
    stages = [*blocks(1), ChangesLater(at, what), *blocks(1)]
    schedule = Schedule.build("gpipe", num_ranks=3, num_microbatches=4).with_offload(ahead=0)
    with (
        pipeline(stages, schedule) as pipe,
        pytest.raises(pipert.PipelineError) as caught,
    ):
        pipe.step(x, target=y)
    assert (caught.value.stage, caught.value.microbatch) == (1, 0)
    assert str(caught.value.action) == "1B0"
    cause = str(caught.value.__cause__)
    assert "modified by an inplace operation: a tensor of shape" in cause
    assert "saved by stage 1, microbatch 0 is at version" in cause


class LooksBack(nn.Module):
    """Runs a backward of its own through microbatch 0 when microbatch 2 comes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.outputs = []

    def forward(self, x):
        self.outputs.append(self.linear(x).exp().sin())
        if len(self.outputs) == 3:
            torch.autograd.grad(self.outputs[0].sum(), self.linear.weight, retain_graph=True)
        return self.outputs[-1]


def test_what_is_needed_while_it_is_on_the_host_is_told():
    x, y = batch(16, WIDTH)
    with (
        pipeline([LooksBack()], one_rank()) as pipe,
        pytest.raises(pipert.PipelineError) as caught,
    ):
        pipe.step(x, target=y)
    assert "saved by stage 0, microbatch 0 is needed while its activations are on the host" in str(
        caught.value.__cause__
    )


def test_hooks_that_are_not_allowed_are_told():
    x, y = batch(16, WIDTH)
    with (
        pipeline(blocks(1), one_rank()) as pipe,
        torch.autograd.graph.disable_saved_tensors_hooks("no hooks here"),
        pytest.raises(pipert.PipelineError, match="no hooks here"),
    ):
        pipe.step(x, target=y)


def test_a_step_after_one_that_failed_is_right():
    stages = blocks(2)
    reference = nn.Sequential(*copy.deepcopy(stages))
    x, y = batch(16, WIDTH)
    calls = []

    def loss(output, target):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no")
        return mse(output, target)

    schedule = Schedule.build("gpipe", num_ranks=2, num_microbatches=4).with_offload()
    with pipeline(stages, schedule, loss_fn=loss) as pipe:
        with pytest.raises(pipert.PipelineError):
            pipe.step(x, target=y)
        for p in pipe.parameters():
            p.grad = None
        pipe.step(x, target=y)
        plain_loop(reference, x, y, 4)
        assert_same_gradients(pipe, reference)
        assert pipe.evaluate(x, target=y).loss > 0


def test_the_hooks_are_off_after_a_forward_that_fails():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    x, y = batch(8, WIDTH)
    with pipeline([Fails()], one_rank()) as pipe, pytest.raises(pipert.PipelineError):
        pipe.step(x, target=y)


# --- looking at it ------------------------------------------------------------------------------


def test_moves_are_in_the_trace():
    x, y = batch(16, WIDTH)
    with pipeline(blocks(1), one_rank()) as pipe:
        pipe.step(x, target=y)
        events = [event for event in pipe.trace().events if event.kind == "move"]
        assert [str(event.action) for event in events[:2]] == ["0OFFLOAD0", "0OFFLOAD1"]
        assert all(event.ended >= event.started >= event.issued for event in events)
        assert pipe.report().ranks[0].transfer_s > 0
        assert "0RELOAD0" in str(pipe.program)


@pytest.mark.parametrize("options", [{"stages": [True]}, {"stages": [0, False]}, {"ahead": True}])
def test_a_bool_is_neither_a_stage_nor_a_count(options):
    schedule = Schedule.build("gpipe", num_ranks=2, num_microbatches=4)
    with pytest.raises(TypeError, match=r"stages: .*int.*ahead: int"):
        schedule.with_offload(**options)
