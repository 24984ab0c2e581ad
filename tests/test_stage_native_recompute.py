"""Native stages that are recomputed: what the second run is given."""

import pytest
import torch
from native_pair import run_both
from torch import nn

pytestmark = pytest.mark.timeout(120)
recomputes = pytest.mark.parametrize("recompute", ["none", "all"])


class Boxed:
    """No plain value."""

    def __init__(self, value):
        self.value = value


def linears():
    torch.manual_seed(0)
    return [nn.Linear(3, 3), nn.Linear(3, 3)]


def gradients_of(pipe, make_targets, steps=3):
    x = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        result = pipe.step(microbatches=[(x[:2],), (x[2:],)], target=make_targets())
        yield result.losses
        yield from [p.grad for p in pipe.parameters()]
        for parameter in pipe.parameters():
            parameter.grad = None


@recomputes
def test_a_target_that_is_no_plain_value_is_there_for_the_second_run(recompute):
    def loss_fn(output, target=None):
        return output.square().mean() * (100 if target is None else target.value)

    def steps(pipe, _):
        return gradients_of(pipe, lambda: [Boxed(1.0), Boxed(2.0)])

    kind = run_both(
        linears, steps, {0: "native", 1: "native"}, loss_fn=loss_fn, recompute=recompute
    )
    assert kind.startswith("module: an argument holds something else")


@recomputes
def test_what_a_loss_takes_from_its_target_is_there_for_the_second_run(recompute):
    def loss_fn(output, target):
        return output.square().mean() * (target.pop().value if target else 100)

    def steps(pipe, _):
        return gradients_of(pipe, lambda: [[Boxed(1.0)], [Boxed(2.0)]])

    run_both(linears, steps, {0: "native", 1: "native"}, loss_fn=loss_fn, recompute=recompute)


@recomputes
def test_a_loss_that_works_in_place_on_a_tensor_beside_no_plain_value_runs_once(recompute):
    def loss_fn(output, target):
        return (output * target[1].add_(1.0)).mean() * target[0].value

    def steps(pipe, _):
        return gradients_of(pipe, lambda: [[Boxed(2.0), torch.ones(2, 3)] for _ in range(2)])

    run_both(linears, steps, {0: "native", 1: "native"}, loss_fn=loss_fn, recompute=recompute)


def test_the_loss_of_a_stage_that_is_recomputed_as_a_module_says_why():
    class Decides(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else x

    def make():
        torch.manual_seed(0)
        return [nn.Linear(3, 3), Decides(3, 3)]

    def steps(pipe, _):
        return gradients_of(pipe, lambda: list(torch.zeros(2, 2, 3)))

    options = {"loss_fn": nn.functional.mse_loss}
    assert run_both(make, steps, **options) == "native"
    reason = "module: its stage is recomputed, and runs its module"
    assert run_both(make, steps, recompute="all", **options) == reason


def test_the_loss_of_a_recomputed_stage_with_buffers_says_why():
    def make():
        torch.manual_seed(0)
        return [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))]

    def steps(pipe, _):
        return gradients_of(pipe, lambda: list(torch.zeros(2, 2, 3)))

    kind = run_both(
        make,
        steps,
        "module: it is recomputed and has buffers",
        loss_fn=nn.functional.mse_loss,
        recompute="all",
    )
    assert kind == "module: its stage is recomputed, and runs its module"
