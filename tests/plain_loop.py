"""The reference of every gradient test: a plain loop with gradient accumulation, no pipeline."""

import copy

import torch
from torch import nn


def plain_loop(
    model, x, target, num_microbatches, loss_fn=nn.functional.mse_loss, *, backwards=False
):
    """Forward and backward of the batch, microbatch by microbatch; returns their losses.

    The gradients are those of the mean of the losses, weighted by the microbatches' rows.
    `backwards`: the last microbatch first.
    """
    losses = []
    pieces = list(
        zip(x.tensor_split(num_microbatches), target.tensor_split(num_microbatches), strict=True)
    )
    for inputs, targets in reversed(pieces) if backwards else pieces:
        loss = loss_fn(model(inputs), targets)
        loss.backward(torch.full_like(loss, inputs.shape[0] / x.shape[0]))
        losses.append(loss.detach())
    return torch.stack(losses[::-1] if backwards else losses)


def gradients(module):
    """By name; None where there is none."""
    return {name: p.grad for name, p in module.named_parameters()}


def same_bits(a, b):
    """Whether two tensors (or two Nones) are the same, NaN included."""
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def assert_same_gradients(pipe, model):
    """Bit for bit, name by name."""
    expected = gradients(model)
    found = gradients(pipe)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert same_bits(gradient, expected[name]), name


def mlp(num_layers, width=8, seed=0):
    """Linear layers with tanh between, the same for the same seed."""
    torch.manual_seed(seed)
    layers = []
    for _ in range(num_layers):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers)


def batch(rows, width=8, seed=1):
    """An input and a target."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, width, generator=generator),
        torch.randn(rows, width, generator=generator),
    )


def twins(build, *args, **kwargs):
    """Two models with the same weights: one for the pipeline, one for the plain loop."""
    model = build(*args, **kwargs)
    return model, copy.deepcopy(model)
