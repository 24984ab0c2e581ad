"""An emulated network: messages take the time that the simulation gives them."""

import time

import pytest
import torch
from plain_loop import batch, mlp, same_bits, twins
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss


def pipeline(stages, **options):
    options = {"num_microbatches": 4, "loss_fn": mse, "schedule": "1f1b", **options}
    return pipert.Pipeline(pipert.split(stages, num_stages=2), **options)


def gradients(module, **options):
    x, target = batch(8)
    with pipeline(module, **options) as pipe:
        pipe.step(x, target=target)
        return torch.cat([p.grad.flatten() for p in pipe.parameters()])


def test_gradients_are_the_same_bits_over_a_slow_network():
    one, other = twins(mlp, 4)
    slow = pipert.Costs(latency=1e-3, bandwidth=1e6)
    assert same_bits(gradients(one), gradients(other, network=slow))


def test_no_message_is_read_before_the_simulation_has_it_there():
    latency, bandwidth = 5e-3, 1e5
    x, target = batch(8)
    with pipeline(mlp(4), network=pipert.Costs(latency=latency, bandwidth=bandwidth)) as pipe:
        pipe.step(x, target=target)
        events = {str(e.action): e for e in pipe.trace().events if e.action is not None}
    at_least = latency + 2 * 8 * 4 / bandwidth  # rows, width, bytes
    free = 0.0
    for microbatch in range(4):
        sent = events[f"0F{microbatch}"].ended
        read = events[f"1F{microbatch}"].started
        assert read - sent >= at_least
        free = max(free, sent) + 2 * 8 * 4 / bandwidth
        assert read >= free + latency - 1e-6  # they queue on the link


def test_links_of_single_edges_have_times_of_their_own():
    one_way = pipert.Costs(latency={(0, 1): 20e-3, None: 0.0})
    x, target = batch(8)
    with pipeline(mlp(4), network=one_way) as pipe:
        pipe.step(x, target=target)
        events = {str(e.action): e for e in pipe.trace().events if e.action is not None}
    forward = events["1F0"].started - events["0F0"].ended
    assert forward >= 20e-3


class FailsLater(nn.Module):
    """The second microbatch fails, when the other rank has begun to wait for the first."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 2:
            time.sleep(0.05)
            raise RuntimeError("no")
        return x * 1


def test_a_wait_for_the_network_ends_when_another_rank_fails():
    x, target = batch(8)
    with pipert.Pipeline(
        [FailsLater(), nn.Linear(8, 8)],
        num_microbatches=4,
        loss_fn=mse,
        schedule="gpipe",
        network=pipert.Costs(latency=3600.0),
    ) as pipe:
        start = time.monotonic()
        with pytest.raises(pipert.PipelineError, match="0F1"):
            pipe.step(x, target=target)
        assert time.monotonic() - start < 30


def test_what_is_no_network_is_told():
    with pytest.raises(TypeError, match=r"network must be pipert\.Costs, got float"):
        pipeline(mlp(4), network=2e-3)
    with pytest.raises(ValueError, match="latency"):
        pipeline(mlp(4), network=pipert.Costs(latency={(0, 5): 1e-3}))
    with pytest.raises(ValueError, match="forward"):
        pipeline(mlp(4), network=pipert.Costs(forward=[1.0, 1.0, 1.0]))
