"""The reference of every gradient test: a plain loop with gradient accumulation, no pipeline."""

import copy

import torch
from torch import nn


def plain_loop(
    model,
    x,
    target,
    num_microbatches,
    loss_fn=nn.functional.mse_loss,
    *,
    backwards=False,
    share=1.0,
):
    """Forward and backward of the batch, microbatch by microbatch; returns their losses.

    The gradients are those of the mean of the losses, weighted by the microbatches' rows.
    `backwards`: the last microbatch first. `share`: of the whole batch, if this is a part of one.
    """
    losses = []
    pieces = list(
        zip(x.tensor_split(num_microbatches), target.tensor_split(num_microbatches), strict=True)
    )
    for inputs, targets in reversed(pieces) if backwards else pieces:
        loss = loss_fn(model(inputs), targets)
        loss.backward(torch.full_like(loss, inputs.shape[0] / x.shape[0] * share))
        losses.append(loss.detach())
    return torch.stack(losses[::-1] if backwards else losses)


def accumulation_order(schedule):
    """By stage: the microbatches in the order in which their weight gradients are added up."""
    order = {}
    for actions in schedule.actions:
        halves = [half for a in actions for half in ((a, a.paired) if a.paired else (a,))]
        for action in halves:
            if action.kind in ("B", "W"):
                order.setdefault(action.stage, []).append(action.microbatch)
    return order


def scheduled_loop(model, stages, schedule, x, target, loss_fn=nn.functional.mse_loss):
    """As plain_loop, with each stage's gradients added up in the order of `schedule`.

    Where the schedule runs two copies of the model, each adds up those of its microbatches, the
    second from nothing, and the sums are added. `stages`: what `pipert.split` makes of `model`.
    """
    num_microbatches, num_stages = schedule.num_microbatches, len(stages)
    pieces = zip(
        x.tensor_split(num_microbatches), target.tensor_split(num_microbatches), strict=True
    )
    before = [p.grad for p in model.parameters()]
    losses, single = [], []
    for inputs, targets in pieces:
        model.zero_grad()
        losses.append(plain_loop(model, inputs, targets, 1, loss_fn, share=len(inputs) / len(x))[0])
        single.append({p: p.grad for p in model.parameters()})
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        parameter.grad = gradient
    order = accumulation_order(schedule)
    for stage, module in enumerate(stages):
        for parameter in module.parameters():
            sums = [parameter.grad] + [None] * (schedule.placement.num_copies - 1)
            for index in range(len(sums)):
                for microbatch in order.get(stage + index * num_stages, []):
                    sums[index] = _sum(sums[index], single[microbatch][parameter])
            parameter.grad = sums[0] if len(sums) == 1 else _sum(*sums)
    return torch.stack(losses)


def _sum(one, other):
    """Of gradients; None is one that isn't there."""
    if one is None or other is None:
        return other if one is None else one
    return one + other


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
