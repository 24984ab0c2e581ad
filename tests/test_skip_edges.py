"""Stages that hand values to any later stage: the gradients are the plain loop's, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_loop import assert_same_gradients, batch, same_bits
from torch import nn
from wired_stages import random_stages, u_net, unpartitioned, wired_loop

import pipert

pytestmark = pytest.mark.timeout(120)
mse = nn.functional.mse_loss


def assert_equals_plain_loop(stages, x, y, steps=2, **options):
    """Two steps of a pipeline, and evaluations between them, bit for bit the plain loop's."""
    reference = unpartitioned(stages)
    with pipert.Pipeline(stages, loss_fn=mse, **options) as pipe:
        for _ in range(steps):
            losses = wired_loop(reference, pipe.schedule, x, y)
            assert same_bits(pipe.step(x=x, target=y).losses, losses)
            assert_same_gradients(pipe, reference)
            assert same_bits(pipe.evaluate(x=x, target=y).losses, losses)
        outputs = [
            reference(piece).detach() for piece in x.tensor_split(options["num_microbatches"])
        ]
        assert same_bits(pipe(x=x), torch.cat(outputs))


@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_neighbours_hand_each_other_any_values(seed, schedule, recompute):
    assert_equals_plain_loop(
        random_stages(seed, 2),
        *batch(9),
        steps=1,
        schedule=schedule,
        num_microbatches=4,
        recompute=recompute,
    )


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_a_value_passes_over_a_stage(schedule):
    assert_equals_plain_loop(u_net(), *batch(9), schedule=schedule, num_microbatches=4)
