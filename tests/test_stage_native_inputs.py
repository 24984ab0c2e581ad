"""A graph serves inputs that Python can't tell from those that it was exported for."""

import math

import pytest
import torch
from native_pair import run_both
from torch import nn

import pipert
from pipert import native

pytestmark = pytest.mark.timeout(120)
NATIVE = {0: "native", 1: "native"}


def linears():
    torch.manual_seed(0)
    return [nn.Linear(3, 3), nn.Linear(3, 3)]


def squares(output, target):
    return (output - target).square().mean()


# --- which tensors are one ----------------------------------------------------------------------


class TellsOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, a, b):
        return self.linear(a) * (2.0 if a is b else 3.0)


def with_tells_one():
    torch.manual_seed(0)
    return [TellsOne(), nn.Linear(3, 3)]


def test_two_arguments_that_are_one_tensor_have_a_graph_of_their_own():
    def steps(pipe, _):
        x, other = torch.rand(2, 4, 3)
        for second in (x, x, other, other, x, other):
            pieces = list(zip(x.split(2), second.split(2), strict=True))
            if second is x:
                pieces = [(piece, piece) for piece, _ in pieces]
            yield pipe.step(microbatches=pieces, target=[torch.zeros(2, 3)] * 2).losses

    run_both(with_tells_one, steps, NATIVE, loss_fn=squares)


def test_one_tensor_three_times_crosses_to_an_attention():
    class Thrice(nn.Linear):
        def forward(self, x):
            h = super().forward(x)
            return h, h, h

    class Attends(nn.MultiheadAttention):
        def forward(self, query, key, value):  # projects once where they are one
            return super().forward(query, key, value, need_weights=False)[0]

    def make():
        torch.manual_seed(0)
        return [Thrice(8, 8), Attends(8, 2, batch_first=True)]

    def steps(pipe, _):
        pipe.eval()
        for _ in range(3):
            yield pipe(torch.rand(4, 5, 8, generator=torch.Generator().manual_seed(1)))

    run_both(make, steps, NATIVE)


def test_a_target_that_is_the_output_is_told_by_a_native_loss():
    def loss_fn(output, target):
        return output.mean() * (2.0 if output is target else 3.0)

    def steps(pipe, _):
        x, other = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(1))
        for target in (x, x, other, other, x, other):
            yield pipe.evaluate(microbatches=[(x,)], target=[target]).losses

    kind = run_both(
        lambda: [nn.Identity()], steps, {0: "native"}, loss_fn=loss_fn, num_microbatches=1
    )
    assert kind == "native"


def test_an_input_that_is_a_parameter_runs_the_module():
    class Tied(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2.0 if x is self.weight else 3.0)

    def steps(pipe, stages):
        weight = stages[0].weight.data
        for _ in range(2):
            yield pipe(weight.clone())
        stages[0].weight = nn.Parameter(weight, requires_grad=False)
        for _ in range(3):
            yield pipe.evaluate(microbatches=[(stages[0].weight,)], return_outputs=True).outputs[0]

    def make():
        torch.manual_seed(0)
        return [Tied(3, 3).requires_grad_(False)]

    run_both(make, steps, "module: an input is", num_microbatches=1)


def test_a_buffer_that_is_given_as_input_runs_the_module():
    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("held", torch.ones(2, 3))

        def forward(self, x):
            return x * (2.0 if x is self.held else 3.0) + self.held

    def steps(pipe, stages):
        for given in (torch.ones(2, 3), torch.ones(2, 3), stages[0].held, stages[0].held):
            yield pipe.evaluate(microbatches=[(given,)], return_outputs=True).outputs[0]

    reason = "module: an input is also one of its parameters or buffers"
    run_both(lambda: [Holds()], steps, reason, num_microbatches=1)


# --- which types they have ----------------------------------------------------------------------


class Doubles(torch.Tensor):
    """Whose linear layers give twice as much."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.detach:  # as Parameter wants it
            return result.as_subclass(Doubles)
        return result * 2 if func is nn.functional.linear else result


def test_a_parameter_of_a_subclass_is_not_run_by_a_graph_of_a_plain_one():
    def steps(pipe, stages):
        for step in range(6):
            if step == 3:
                doubled = stages[0].weight.detach().as_subclass(Doubles)
                stages[0].weight = nn.Parameter(doubled)
            yield pipe.step(torch.ones(4, 3), target=torch.zeros(4, 3)).losses

    run_both(linears, steps, "module: weight is a Doubles", loss_fn=squares)


def test_a_batch_of_a_subclass_is_not_run_by_a_graph_of_a_plain_one():
    def steps(pipe, _):
        for kind in (torch.Tensor, torch.Tensor, Doubles, Doubles):
            pieces = [(torch.ones(2, 3).as_subclass(kind),) for _ in range(2)]
            yield pipe.step(microbatches=pieces, target=[torch.zeros(2, 3)] * 2).losses

    run_both(linears, steps, "module: an input is a Doubles", loss_fn=squares)


def test_what_the_stage_before_returns_may_be_of_a_subclass():
    def make():
        torch.manual_seed(0)
        return [lambda x, cls=None: x.as_subclass(Doubles) if cls else x * 1, nn.Linear(3, 3)]

    def steps(pipe, _):
        for cls in ("", "", "d", "d"):
            yield pipe(torch.ones(4, 3), cls=cls)

    run_both(make, steps)


def test_an_output_of_a_subclass_runs_the_loss_in_python():
    class Mean(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            with torch._C.DisableTorchFunctionSubclass():
                result = func(*args, **(kwargs or {}))
            return result * 2 if func is torch.Tensor.mean else result

    def steps(pipe, _):
        for _ in range(4):
            yield pipe.evaluate(torch.ones(4, 3)).losses

    kind = run_both(
        lambda: [lambda x: x.as_subclass(Mean)],
        steps,
        loss_fn=lambda output: output.mean(),
    )
    assert kind == "module: an input is a Mean"


def test_a_conjugate_is_not_taken_for_what_it_is_the_conjugate_of():
    def stage(x):
        return torch.view_as_real(x * (2.0 if x.is_conj() else 3.0))

    def steps(pipe, _):
        x = torch.tensor([[1.0 + 2.0j], [3.0 - 1.0j]])
        for given in (x, x, x.conj(), x.conj()):
            yield pipe.evaluate(microbatches=[(given,)], return_outputs=True).outputs[0]

    run_both(lambda: [stage], steps, "module: an input is conjugated", num_microbatches=1)


# --- where they lie, and how they were made -----------------------------------------------------

READS = {
    "storage_offset": (lambda x: x.storage_offset() + 1, "where a tensor lies in memory"),
    "as_strided": (
        lambda x: x.as_strided(x.shape, x.stride(), x.storage_offset()),
        "where a tensor lies in memory",
    ),
    "storage": (lambda x: x.untyped_storage().nbytes(), "where a tensor lies in memory"),
    "version": (lambda x: x._version + 1, "how a tensor was made"),
    "leaf": (lambda x: 2.0 if x.is_leaf else 3.0, "how a tensor was made"),
    "view": (lambda x: 2.0 if x._is_view() else 3.0, "how a tensor was made"),
    "base": (lambda x: 2.0 if x._base is None else 3.0, "how a tensor was made"),
    "grad_fn": (lambda x: 2.0 if x.grad_fn is None else 3.0, "how a tensor was made"),
    "inference": (lambda x: 2.0 if x.is_inference() else 3.0, "how a tensor was made"),
}


@pytest.mark.parametrize(("reads", "reason"), READS.values(), ids=READS.keys())
def test_what_an_example_has_differently_is_not_read_of_it(reads, reason):
    def steps(pipe, _):
        x = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
        for _ in range(4):
            yield pipe(x)

    run_both(lambda: [lambda x: x * reads(x)], steps, f"module: it reads {reason}")


def test_numbers_of_an_input_are_still_the_inputs():
    def steps(pipe, _):
        for value in (2.0, 2.0, 3.0, 4.0):
            yield pipe(torch.full((4, 1), value), torch.tensor(value))

    run_both(lambda: [lambda x, scale: x * scale.tolist()], steps, {0: "native"})


# --- constants ----------------------------------------------------------------------------------


def test_constants_are_told_apart_by_their_bits():
    class Signs(nn.Linear):
        def forward(self, x, f):
            return super().forward(x) * (2.0 + math.copysign(1.0, f))

    def steps(pipe, _):
        x, y = torch.ones(4, 3), torch.zeros(4, 3)
        for f in (0.0, 0.0, -0.0, -0.0, 0.0, -0.0):
            yield pipe.step(x, target=y, f=f).losses

    def make():
        torch.manual_seed(0)
        return [Signs(3, 3), nn.Linear(3, 3)]

    run_both(make, steps, NATIVE, loss_fn=squares)


def test_nan_is_one_constant(monkeypatch):
    exports = []

    def counted(call, args, kwargs):
        exports.append(args)
        return export(call, args, kwargs)

    export = native.export
    monkeypatch.setattr(native, "export", counted)
    with pipert.Pipeline(
        [lambda x, f: x * 2 if math.isnan(f) else x], num_microbatches=1, stage_kind="native"
    ) as pipe:
        for _ in range(4):
            assert pipe(torch.ones(2, 1), float("nan")).tolist() == [[2.0], [2.0]]
        assert pipe.stage_kinds == {0: "native"}
    assert len(exports) == 1
