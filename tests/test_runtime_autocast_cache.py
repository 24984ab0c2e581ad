"""Autocast casts each weight once a step, whatever contexts come and go; with the same bits."""

import copy

import pytest
import torch
from plain_loop import batch, same_bits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import pipert

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss
MICROBATCHES = 4


class Context(nn.Linear):
    """Enters autocast in its own forward, as models do that bring their precision along."""

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


class CountCasts(TorchDispatchMode):
    """Counts casts of matrices of one shape, which only weights have here."""

    casts = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.bfloat16:
            self.casts += args[0].shape == (16, 16)
        return func(*args, **kwargs)


def stages(layer=Context):
    torch.manual_seed(0)
    return [nn.Sequential(layer(16, 16), nn.Tanh(), layer(16, 16)), layer(16, 16)]


def pipeline(given, **options):
    options = {"num_microbatches": MICROBATCHES, "loss_fn": mse, **options}
    return pipert.Pipeline(given, **options)


def casts_of(run):
    with CountCasts() as count:
        run()
    return count.casts


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1"])
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_each_weight_is_cast_once_a_step(schedule, recompute):
    x, y = batch(8, 16)
    with pipeline(stages(), schedule=schedule, recompute=recompute) as pipe:
        for _ in range(2):
            assert casts_of(lambda: pipe.step(x, target=y)) == 3
            assert casts_of(lambda: pipe.evaluate(x, target=y)) == 3


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1"])
@pytest.mark.parametrize("layer", [Context, nn.Linear])
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_bits_are_those_without_a_cache(schedule, layer, recompute):
    x, y = batch(8, 16)

    def train(cache):
        own = stages(layer)
        found = []
        with pipeline(own, schedule=schedule, recompute=recompute) as pipe:
            optimizer = torch.optim.SGD(pipe.parameters(), lr=0.1)
            # One context around several steps: no stale weights after the optimizer.
            with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache):
                for _ in range(3):
                    pipe.evaluate(x, target=y)
                    found.append(pipe.step(x, target=y).losses)
                    optimizer.step()
        return found + list(pipe.parameters())

    if layer is Context:
        # Contexts inside of the modules have caches of their own: switch them off there.
        forward = Context.forward
        with pytest.MonkeyPatch.context() as patch:
            cached = train(True)
            patch.setattr(Context, "forward", _without_cache)
            plain = train(False)
        assert Context.forward is forward
    else:
        cached, plain = train(True), train(False)
    assert all(map(same_bits, cached, plain))
    assert not torch.equal(cached[0], cached[1])


def _without_cache(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        return nn.functional.linear(x, self.weight, self.bias).float()


def test_casts_made_without_gradients_are_not_used_to_train():
    x, y = batch(8, 16)
    one, other = stages(nn.Linear), stages(nn.Linear)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pipeline(one) as pipe:
            expected = pipe.step(x, target=y).losses
        with pipeline(other) as pipe:
            with torch.no_grad():
                nn.Sequential(*other)(x)  # outside of the pipeline, in the same context
            pipe(x)
            assert same_bits(pipe.step(x, target=y).losses, expected)
    for a, b in zip(one, other, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert p.grad is not None
            assert same_bits(p.grad, q.grad)


def test_nothing_is_left_in_the_cache_of_the_process():
    own = stages(nn.Linear)
    x, y = batch(8, 16)
    with pipeline(own) as pipe, torch.autocast("cpu", dtype=torch.bfloat16):
        pipe.step(x, target=y)
        with torch.no_grad():
            for p in pipe.parameters():
                p.zero_()
        assert nn.Sequential(*copy.deepcopy(own))(x).abs().sum() == 0
        assert nn.Sequential(*own)(x).abs().sum() == 0
