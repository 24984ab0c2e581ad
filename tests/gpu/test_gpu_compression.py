"""Compressed edges between ranks on one GPU, bit for bit against stages with a rounding between."""

import pytest
from plain_loop import batch, mlp, plain_loop, same_bits, twins
from rounded_edges import with_edges
from torch import nn

import pipert

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(60)]
mse = nn.functional.mse_loss


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
@pytest.mark.parametrize("compression", ["bfloat16", "float16", "fp8_block"])
def test_losses_and_gradients_are_those_of_stages_with_a_rounding_between(compression, schedule):
    model, reference = twins(mlp, 6, width=64)
    model.cuda(), reference.cuda()
    x, y = (tensor.cuda() for tensor in batch(32, width=64))
    with pipert.Pipeline(
        pipert.split(model, 3),
        schedule=schedule,
        devices=["cuda:0"] * 3,
        num_microbatches=4,
        loss_fn=mse,
        compression=compression,
    ) as pipe:
        for _ in range(3):
            losses = plain_loop(with_edges(pipert.split(reference, 3), compression), x, y, 4)
            assert same_bits(pipe.step(x, target=y).losses, losses)
            found = dict(pipe.named_parameters())
            for name, parameter in reference.named_parameters():
                assert same_bits(found[name].grad, parameter.grad), name
