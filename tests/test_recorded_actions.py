"""Captured actions: each action of a rank's pass is a graph, launched in the action's place.

Here with one rank, in a group of its own; tests/distributed has more. Without a CUDA device graphs
are those of recorded_cpu.py.
"""

import pytest
import torch
import torch.distributed as dist
from plain_loop import assert_same_gradients, batch, mlp, plain_loop, same_bits, twins
from recorded_cpu import graphs_on_cpu
from torch import nn

import pipert
from pipert.captured import NUM_WARMUPS

pytestmark = pytest.mark.timeout(120)
mse = nn.functional.mse_loss


@pytest.fixture(scope="module")
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture
def pool(monkeypatch):
    return graphs_on_cpu(monkeypatch)


@pytest.fixture
def pipeline(group, pool):
    pipes = []

    def make(model, *, num_stages=2, schedule="interleaved_1f1b", **options):
        stages = model if isinstance(model, list) else pipert.split(model, num_stages)
        pipe = pipert.Pipeline(
            stages,
            schedule=schedule,
            num_microbatches=4,
            loss_fn=mse,
            stage_kind="captured",
            group=group,
            **options,
        )
        pipes.append(pipe)
        return pipe

    yield make
    for pipe in pipes:
        pipe.close()


class Counts(nn.Module):
    """Knows how often its Python code ran."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.num_calls = 0

    def forward(self, x):
        self.num_calls += 1
        return torch.tanh(self.inner(x))


def steps(pipe, reference, count, *, set_to_none=True, rows=8, seed=0):
    """As many steps of both, compared bit for bit."""
    ours = torch.optim.SGD(pipe.parameters(), lr=0.1)
    theirs = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step in range(count):
        x, y = batch(rows, seed=seed + step)
        result = pipe.step(x, target=y)
        assert same_bits(result.losses, plain_loop(reference, x, y, 4))
        assert_same_gradients(pipe, reference)
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_replayed_actions_have_the_bits_of_the_plain_loop_and_run_no_python(pipeline, set_to_none):
    model, reference = twins(lambda: nn.Sequential(*(Counts() for _ in range(4))))
    pipe = pipeline(model)
    # The first step has no gradients to add to: with zeros in their place the next is another kind.
    steps(pipe, reference, NUM_WARMUPS + 2, set_to_none=set_to_none)
    before = model[0].num_calls
    steps(pipe, reference, 5, set_to_none=set_to_none, seed=50)
    assert pipe.stage_kinds == {0: "captured", 1: "captured"}
    assert model[0].num_calls == before
    assert pipe._captured.num_replays > 0
