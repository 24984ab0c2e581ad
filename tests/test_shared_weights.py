"""A module that stages on two ranks of one process share gets the gradients of both."""

import pytest
import torch
from plain_loop import batch, plain_loop, same_bits, twins
from split_schedule import in_halves
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(60)
MICROBATCHES = 4


def tied_model():
    """The first and the last linear layer are one."""
    torch.manual_seed(0)
    tied = nn.Linear(8, 8)
    return nn.Sequential(tied, nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), tied)


@pytest.mark.parametrize("halves", [False, True], ids=["whole", "halves"])
def test_gradients_of_both_stages_add_up(halves):
    schedule = pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=MICROBATCHES)
    if halves:
        schedule = in_halves(schedule)
    model, reference = twins(tied_model)
    x, y = batch(8)
    with pipert.Pipeline(
        pipert.Stages([model[:2], model[2:]]),
        schedule=schedule,
        num_microbatches=MICROBATCHES,
        loss_fn=nn.functional.mse_loss,
    ) as pipe:
        assert pipe.stages[0][0] is pipe.stages[1][2]
        for _ in range(2):
            losses = pipe.step(x, target=y).losses
            assert same_bits(losses, plain_loop(reference, x, y, MICROBATCHES))
        assert len(list(pipe.parameters())) == 4
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        # Which rank adds first is not settled, so the shared sums are equal to rounding.
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert same_bits(model[2].weight.grad, reference[2].weight.grad)
