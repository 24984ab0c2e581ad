"""Who sends an output keeps none of it, and an input dies with its backward."""

import weakref

import pytest
import torch
from plain_loop import batch
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(60)
WIDTH, ROWS = 64, 512  # no small stage: its graph dies with its backward


class Memory(bytearray):
    """Memory of a tensor that can be watched: it lives as long as any tensor that uses it."""


class ToWatched(torch.autograd.Function):
    """Copies into watched memory; saves nothing."""

    @staticmethod
    def forward(ctx, x, born):
        memory = Memory(x.numel() * x.element_size())
        born.append(weakref.ref(memory))
        return torch.frombuffer(memory, dtype=x.dtype).view(x.shape).copy_(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Sends(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.born = []
        self.alive = []  # at the start of each forward: the outputs of earlier ones

    def forward(self, x):
        self.alive.append([i for i, memory in enumerate(self.born) if memory() is not None])
        return ToWatched.apply(self.linear(x), self.born)


class Receives(nn.Module):
    """`saves`: whether its backward needs its input."""

    def __init__(self, sender, *, saves):
        super().__init__()
        self.sender, self.saves = sender, saves
        self.weight = nn.Parameter(torch.ones(()))
        self.alive = []

    def forward(self, x):
        born = self.sender.born
        self.alive.append(
            [i for i, memory in enumerate(born[: len(self.alive)]) if memory() is not None]
        )
        return x * self.weight if self.saves else x + self.weight


def run(schedule, *, saves, num_microbatches=6, between=()):
    torch.manual_seed(0)
    sender = Sends()
    receiver = Receives(sender, saves=saves)
    stages = [sender, *between, receiver]
    x, y = batch(ROWS * num_microbatches, WIDTH)
    with pipert.Pipeline(
        stages,
        schedule=schedule,
        num_microbatches=num_microbatches,
        loss_fn=lambda output, target: (output - target).sum(),
    ) as pipe:
        pipe.step(x, target=y)
        after = [i for i, memory in enumerate(sender.born) if memory() is not None]
    assert len(sender.born) == num_microbatches
    return sender, receiver, after


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1"])
def test_an_output_that_nobody_saves_is_gone_when_it_was_read(schedule):
    _, receiver, after = run(schedule, saves=False)
    assert receiver.alive == [[]] * 6
    assert after == []


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
def test_an_input_that_is_saved_is_gone_after_its_backward(schedule):
    """The last rank of these runs each backward before the next forward."""
    _, receiver, after = run(schedule, saves=True)
    live = {"1f1b": 0, "zb_h1": 2}[schedule]  # zb_h1 puts its W off
    assert all(len(alive) <= live for alive in receiver.alive)
    assert after == []


def test_an_input_that_is_saved_lives_until_its_backward():
    """Or the other claims would hold of a test that watches nothing."""
    _, receiver, after = run("gpipe", saves=True)
    assert receiver.alive == [list(range(i)) for i in range(6)]
    assert after == []


def test_an_output_that_stays_on_its_rank_is_gone_when_it_was_read():
    schedule = pipert.Schedule(
        [["0F0", "1F0", "0F1", "1F1", "1B0", "0B0", "1B1", "0B1"]],
        placement=pipert.Placement(1, [0, 0]),
    )
    sender, receiver, after = run(schedule, saves=False, num_microbatches=2)
    assert sender.alive == receiver.alive == [[], []]
    assert after == []


def test_outputs_of_a_step_that_failed_are_gone():
    sender = Sends()
    x, y = batch(ROWS * 4, WIDTH)

    def fail(output, target):
        raise RuntimeError("no")

    with pipert.Pipeline(
        [sender, Receives(sender, saves=True)],
        schedule="gpipe",
        num_microbatches=4,
        loss_fn=fail,
    ) as pipe:
        with pytest.raises(pipert.PipelineError) as caught:
            pipe.step(x, target=y)
        del caught  # its traceback holds the frames
        assert all(memory() is None for memory in sender.born)
        assert pipe.stages[0] is sender


def test_a_kept_loss_is_one_number():
    """torch's mse_loss hands it out in memory as large as its input."""
    x, y = batch(ROWS * 2, WIDTH)
    with pipert.Pipeline(
        [nn.Linear(WIDTH, WIDTH)],
        schedule="gpipe",
        num_microbatches=2,
        loss_fn=nn.functional.mse_loss,
        measure_memory=True,
    ) as pipe:
        for _ in range(2):
            losses = pipe.step(x, target=y).losses
        [rank] = pipe.report().memory
    assert rank.kept_bytes == 2 * (ROWS * WIDTH * 4 + 8)
    assert losses.untyped_storage().nbytes() == 8
