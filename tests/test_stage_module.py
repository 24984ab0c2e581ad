"""Stages may be any module or function that torch can run: what they exchange, what they hook."""

import copy
import threading
from collections import Counter

import pytest
import torch
from plain_loop import assert_same_gradients, batch, gradients, mlp, plain_loop, same_bits
from split_schedule import in_halves
from torch import nn
from torch.utils.checkpoint import checkpoint

import pipert

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss
MICROBATCHES = 3


@pytest.fixture(autouse=True, params=["whole", "split"])
def backward_form(request):
    """Everything here holds for backward in one piece, and for I and W."""
    pipeline.form = request.param
    return request.param


def pipeline(stages, loss_fn=mse, num_microbatches=MICROBATCHES, **options):
    schedule = pipert.Schedule.build(
        "1f1b", num_ranks=len(stages), num_microbatches=num_microbatches
    )
    if pipeline.form == "split":
        schedule = in_halves(schedule)
    return pipert.Pipeline(
        stages, schedule=schedule, num_microbatches=num_microbatches, loss_fn=loss_fn, **options
    )


class Chain(nn.Module):
    """The stages one after the other, as the pipeline runs them, and named as it names them."""

    def __init__(self, stages):
        super().__init__()
        for i, stage in enumerate(stages):
            if isinstance(stage, nn.Module):
                self.add_module(str(i), stage)
        self.calls = stages

    def forward(self, *values):
        for i, call in enumerate(self.calls):
            stage = getattr(self, str(i), call)
            value = stage(*values)
            is_spread = isinstance(value, tuple) and i + 1 < len(self.calls)
            next_is_sequential = is_spread and isinstance(self.calls[i + 1], nn.Sequential)
            values = value if is_spread and not next_is_sequential else (value,)
        return values[0]


def assert_equals_plain_loop(stages, x, y, loss_fn=mse, steps=2, **options):
    """Two steps of a pipeline, bit for bit those of the plain loop over the same stages."""
    reference = Chain(copy.deepcopy(stages))
    with pipeline(stages, loss_fn, **options) as pipe:
        for _ in range(steps):
            result = pipe.step(x, target=y)
            assert same_bits(result.losses, plain_loop(reference, x, y, MICROBATCHES, loss_fn))
            assert_same_gradients(pipe, reference)
        named = dict(reference.named_buffers())
        for name, buffer in named.items():
            assert same_bits(pipe.state_dict()[name], buffer), name
    return reference


# --- what stages exchange -----------------------------------------------------------------------


class TwoOutputs(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return self.a(x), self.b(x).tanh()


class TwoInputs(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.c = nn.Linear(width, width)

    def forward(self, a, b):
        return self.c(a * b) + a


def test_several_outputs_become_several_positional_arguments():
    assert_equals_plain_loop([TwoOutputs(), TwoInputs()], *batch(7))


def test_several_arguments_of_the_first_stage_are_each_cut():
    x, y = batch(6)
    z, _ = batch(6, seed=5)
    stages = [TwoInputs(), nn.Linear(8, 8)]
    reference = Chain(copy.deepcopy(stages))
    with pipeline(stages) as pipe:
        result = pipe.step(x, z, target=y)
        losses = []
        for xm, zm, ym in zip(x.chunk(3), z.chunk(3), y.chunk(3), strict=True):
            loss = mse(reference(xm, zm), ym)
            loss.backward(torch.full_like(loss, 1 / 3))
            losses.append(loss.detach())
        assert same_bits(result.losses, torch.stack(losses))
        assert_same_gradients(pipe, reference)


class Nested(nn.Module):
    """Tensors of several dtypes, numbers, strings and None, in every container."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        h = self.linear(x)
        return {
            "pair": (h, [h * 2, {"ids": torch.arange(len(x)), 7: x > 0}]),
            "constants": [True, 3, 2.5, "word", None, ()],
            "frozen": x * 2,
        }


class Unnested(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(16, 8)

    def forward(self, value):
        h, (double, more) = value["pair"]
        assert type(value["pair"]) is tuple
        assert type(value["pair"][1]) is list
        assert value["constants"] == [True, 3, 2.5, "word", None, ()]
        assert [type(c) for c in value["constants"][:3]] == [bool, int, float]
        assert more["ids"].dtype == torch.int64
        assert more[7].dtype == torch.bool
        assert not value["frozen"].requires_grad
        return (h + double + value["frozen"] + self.table(more["ids"])) * more[7]


def test_nested_containers_cross_with_all_their_types():
    assert_equals_plain_loop([Nested(), Unnested()], *batch(7))


class PassMask(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, mask=None):
        mask = (x > 0).int() if mask is None else mask
        return self.linear(x * mask), mask


def test_an_integer_tensor_travels_beside_a_float_one_through_middle_stages():
    class Last(nn.Module):
        def forward(self, x, mask):
            return x * mask

    assert_equals_plain_loop([PassMask(), PassMask(), PassMask(), Last()], *batch(7))


def test_an_integer_batch_feeds_an_embedding():
    stages = [nn.Embedding(11, 8), nn.Linear(8, 11)]
    x = torch.arange(18).reshape(6, 3) % 11
    y = (x + 1) % 11

    def loss_fn(output, target):
        return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())

    assert_equals_plain_loop(stages, x, y, loss_fn)


def test_an_output_that_the_loss_does_not_use_gets_no_gradient():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.used(x), self.unused(x)

    reference = assert_equals_plain_loop([First(), lambda a, b: a.tanh()], *batch(6))
    assert gradients(reference)["0.unused.weight"] is None


def test_an_input_that_the_stage_only_passes_on_keeps_its_gradient():
    class Pass(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, a, b):
            return self.linear(a), b

    assert_equals_plain_loop([TwoOutputs(), Pass(), Pass(), TwoInputs()], *batch(6))


def test_a_stage_may_return_its_input_itself():
    stages = [nn.Linear(8, 8), nn.Identity(), lambda h: h, nn.Linear(8, 8)]
    assert_equals_plain_loop(stages, *batch(6))


def test_one_tensor_may_be_returned_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            h = self.linear(x)
            return h, h

    assert_equals_plain_loop([Twice(), lambda a, b: a + b], *batch(6))


def test_zero_dimensional_tensors_cross_and_keep_their_gradient():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            h = self.linear(x)
            return h, h.sum(), torch.tensor(3)

    assert_equals_plain_loop([Scaled(), lambda h, s, n: h * s.sigmoid() / n], *batch(6))


def test_expanded_and_transposed_outputs_cross():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            h = self.linear(x)
            return h.t(), h[:, :1].expand(-1, 8), h[::2]

    class Join(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, t, e, s):
            assert e.stride() == (8, 0)
            return self.linear(t.t()) * e + s.sum()

    assert_equals_plain_loop([Views(), Join()], *batch(6))


def test_complex_tensors_cross():
    class ToComplex(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return torch.fft.fft(self.linear(x))

    class FromComplex(nn.Module):
        def __init__(self):
            super().__init__()
            self.phase = nn.Parameter(torch.randn(8, dtype=torch.complex64))

        def forward(self, z):
            return torch.fft.ifft(z * self.phase).real

    assert_equals_plain_loop([ToComplex(), FromComplex()], *batch(6))


def test_an_empty_tensor_crosses():
    assert_equals_plain_loop(
        [nn.Linear(8, 8), lambda h: (h, h[:0]), lambda h, e: h + e.sum()], *batch(6)
    )


# --- arguments ----------------------------------------------------------------------------------


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, gate=None, *, power=1):
        h = self.linear(x)
        return h if gate is None else h * gate**power


def test_keyword_arguments_go_to_every_stage_that_takes_one_of_that_name():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(x)

    stages = [Plain(), Gated(), Plain(), Gated()]
    reference = copy.deepcopy(stages)
    x, y = batch(7)
    gate, _ = batch(7, seed=9)
    with pipeline(stages) as pipe:
        result = pipe.step(x, gate=gate, power=2, target=y)
    losses = []
    for xm, gm, ym in zip(*(t.tensor_split(3) for t in (x, gate, y)), strict=True):
        h = reference[1](reference[0](xm), gm, power=2)
        h = reference[3](reference[2](h), gm, power=2)
        losses.append(mse(h, ym).detach())
    assert same_bits(result.losses, torch.stack(losses))


def test_a_stage_with_any_keywords_gets_all_of_them():
    seen = []

    def stage(x, **kwargs):
        seen.append(sorted(kwargs))
        return x

    with pipeline([lambda x: x, stage], None, num_microbatches=2) as pipe:
        pipe(torch.zeros(2, 1), a=1, b="two")
    assert seen == [["a", "b"], ["a", "b"]]


def test_arguments_that_are_not_tensors_go_to_every_microbatch_whole():
    seen = []
    thing = object()

    def stage(x, flag, nested, other):
        seen.append((flag, nested["list"][0].shape[0], nested["name"], other is thing))
        return x

    with pipeline([stage], None, num_microbatches=2) as pipe:
        pipe(torch.zeros(4, 1), True, {"list": [torch.zeros(4)], "name": "n"}, thing)
    assert seen == [(True, 2, "n", True)] * 2


def test_tensors_without_dimensions_go_to_every_microbatch_whole():
    with pipeline([lambda x, scale: x * scale], None, num_microbatches=2) as pipe:
        assert pipe(torch.ones(4), torch.tensor(3.0)).tolist() == [3, 3, 3, 3]


def test_a_nested_target_reaches_the_loss_in_its_shape():
    seen = []

    def loss_fn(output, target):
        seen.append((type(target["a"]), target["a"][0].shape, target["weight"]))
        return output.sum()

    x, y = batch(6)
    with pipeline([nn.Linear(8, 8)], loss_fn, num_microbatches=2) as pipe:
        pipe.step(x, target={"a": (y, y), "weight": 0.5})
    assert seen == [(tuple, (3, 8), 0.5)] * 2


def test_a_loss_module_is_called_like_a_function():
    stages = [nn.Linear(8, 8), nn.Linear(8, 8)]
    x, y = batch(6)
    reference = Chain(copy.deepcopy(stages))
    with pipeline(stages, nn.MSELoss()) as pipe:
        result = pipe.step(x, target=y)
        assert same_bits(result.losses, plain_loop(reference, x, y, 3))


# --- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [0, 1, 2], ids=["first", "middle", "last"])
def test_a_frozen_stage_changes_no_bit_of_the_others(frozen):
    stages = [nn.Linear(8, 8) for _ in range(3)]
    stages[frozen].requires_grad_(False)
    reference = assert_equals_plain_loop(stages, *batch(6))
    assert gradients(reference)[f"{frozen}.weight"] is None


def test_single_frozen_parameters_are_left_alone():
    stages = [nn.Linear(8, 8) for _ in range(3)]
    for stage in stages:
        stage.bias.requires_grad_(False)
    assert_equals_plain_loop(stages, *batch(6))


def test_functions_without_parameters_are_stages():
    assert_equals_plain_loop([torch.tanh, nn.Linear(8, 8), lambda h: h * 2, torch.sin], *batch(6))


def test_a_parameter_used_twice_in_a_stage_gets_both_gradients():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(8, 8)
            self.two = nn.Linear(8, 8)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x).tanh())

    assert_equals_plain_loop([Tied(), Tied()], *batch(6))


def test_batch_norm_buffers_follow_the_microbatches():
    stages = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)) for _ in range(2)]
    x, y = batch(9)
    with pipeline(stages) as pipe:
        pipe.step(x, target=y)
        assert pipe.stages[1][1].num_batches_tracked == 3
    assert_equals_plain_loop([nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8)], x, y)


# --- autograd -----------------------------------------------------------------------------------


def test_a_stage_may_work_in_place_on_its_input():
    stages = [nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True)]
    assert_equals_plain_loop(stages, *batch(6))


class Changes(nn.Module):
    """Changes its second argument after it has used the first."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.were_one = []

    def forward(self, a, b):
        self.were_one.append(a is b)
        h = self.linear(a)
        b.mul_(2)
        return h


def test_a_tensor_that_is_given_twice_is_one_in_each_microbatch():
    x, y = batch(6)
    stage = Changes()
    with (
        pipeline([stage, nn.Linear(8, 8)]) as pipe,
        pytest.raises(pipert.PipelineError, match="modified by an inplace operation"),
    ):
        pipe.step(x, x, target=y)
    assert stage.were_one
    assert all(stage.were_one)


@pytest.mark.parametrize(
    "make_rows",
    [
        lambda: torch.randn(1, 8).expand(MICROBATCHES, 8),
        lambda: torch.randn(4 * MICROBATCHES + 4).unfold(0, 8, 4),
    ],
    ids=["expanded", "sliding"],
)
def test_an_in_place_change_of_rows_that_are_one_memory_is_told(make_rows):
    _, y = batch(MICROBATCHES)
    stage = Changes()
    rows = make_rows()
    with (
        pipeline([stage, nn.Linear(8, 8)]) as pipe,
        pytest.raises(pipert.PipelineError, match="modified by an inplace operation"),
    ):
        pipe.step(rows, rows.detach(), target=y)
    assert not any(stage.were_one)


def test_hooks_on_tensors_modules_and_parameters_fire_once_a_microbatch():
    calls = Counter()

    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            h = self.linear(x)
            h.register_hook(lambda g: calls.update(["tensor"]))
            return h.tanh()

    stages = [Hooked(), Hooked()]
    for stage in stages:
        stage.register_forward_hook(lambda *_: calls.update(["forward"]))
        stage.linear.register_full_backward_hook(lambda *_: calls.update(["module"]))
        stage.linear.weight.register_hook(lambda g: calls.update(["parameter"]))
        stage.linear.weight.register_post_accumulate_grad_hook(
            lambda p: calls.update(["accumulated"])
        )
    x, y = batch(6)
    with pipeline(stages) as pipe:
        pipe.step(x, target=y)
    names = ("tensor", "forward", "module", "parameter", "accumulated")
    assert calls == dict.fromkeys(names, 2 * MICROBATCHES)


def test_hooks_that_change_gradients_change_the_same_bits():
    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            h = self.linear(x)
            h.register_hook(lambda g: g * 0.3)
            return h.tanh()

    assert_equals_plain_loop([Halved(), Halved()], *batch(6))


def test_a_custom_autograd_function_is_differentiated_as_it_says():
    class Clipped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, bound):
            ctx.save_for_backward(x)
            ctx.bound = bound
            return x.clamp(-bound, bound)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * 0.7 * (x.abs() < 2 * ctx.bound), None

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return Clipped.apply(self.linear(x), 0.2)

    assert_equals_plain_loop([Stage(), Stage(), Stage()], *batch(6))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved-tensors", "reentrant"])
def test_checkpointed_blocks_are_recomputed_in_backward(use_reentrant, backward_form):
    calls = Counter()

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

        def block(self, h):
            calls["forward"] += 1
            return self.inner(h)

        def forward(self, x):
            return checkpoint(self.block, self.first(x), use_reentrant=use_reentrant)

    assert_equals_plain_loop([Block(), Block()], *batch(6), steps=1)
    # Two stages, three microbatches, once forward and once again, in the pipeline and outside.
    # A stage whose two halves would each compute it again is found out by its first weight half;
    # by then the second input half has run.
    twice = 2 if backward_form == "split" and not use_reentrant else 0
    assert calls["forward"] == 2 * MICROBATCHES * 2 * 2 + twice


def test_dropout_inside_checkpointed_blocks_is_the_same_in_both_runs():
    """One stage draws at a time here, so the seed decides every mask."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return checkpoint(
                lambda h: nn.functional.dropout(self.linear(h), 0.5), x, use_reentrant=False
            )

    stages = [Block()]
    reference = Chain(copy.deepcopy(stages))
    x, y = batch(6)
    with pipeline(stages) as pipe:
        torch.manual_seed(3)
        result = pipe.step(x, target=y)
        torch.manual_seed(3)
        assert same_bits(result.losses, plain_loop(reference, x, y, 3))
        assert_same_gradients(pipe, reference)


def test_dropout_on_several_ranks_runs_and_drops():
    stages = [nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)) for _ in range(3)]
    x, y = batch(6)
    torch.manual_seed(0)
    with pipeline(stages) as pipe:
        outputs = pipe.step(x, target=y, return_outputs=True).outputs
        assert (outputs == 0).any()
        pipe.eval()
        assert not (pipe(x) == 0).any()
        assert all(not stage.training for stage in pipe.stages.values())


# --- what torch keeps for each thread -----------------------------------------------------------


def test_autocast_reaches_the_ranks_and_gives_the_plain_loops_bits():
    stages = [mlp(1, seed=i) for i in range(3)]
    reference = Chain(copy.deepcopy(stages))
    x, y = batch(6)
    with pipeline(stages, loss_fn=lambda o, t: mse(o.float(), t)) as pipe:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = pipe.step(x, target=y, return_outputs=True)
            losses = plain_loop(reference, x, y, 3, lambda o, t: mse(o.float(), t))
        assert result.outputs.dtype == torch.bfloat16
        assert same_bits(result.losses, losses)
        for (name, p), q in zip(pipe.named_parameters(), reference.parameters(), strict=True):
            assert same_bits(p.grad, q.grad), name
        assert pipe(x).dtype == torch.float32  # and ends with its context


def test_the_dtype_of_autocast_is_the_callers():
    dtypes = []

    def stage(x):
        dtypes.append((x @ x.t()).dtype)
        return x

    with pipeline([stage, stage], None, num_microbatches=1) as pipe:
        with torch.autocast("cpu", dtype=torch.float16):
            pipe(torch.ones(2, 2))
        pipe(torch.ones(2, 2))
    assert dtypes == [torch.float16] * 2 + [torch.float32] * 2


def test_the_default_device_reaches_the_ranks():
    devices = []

    def stage(x):
        devices.append(torch.empty(1).device.type)
        return x

    with pipeline([stage, stage], None, num_microbatches=1) as pipe:
        x = torch.ones(1, 1)
        with torch.device("meta"):
            pipe(x)
        assert devices == ["meta"] * 2
        torch.set_default_device("meta")
        try:
            pipe(x)
        finally:
            torch.set_default_device(None)
        pipe(x)
        assert devices == ["meta"] * 4 + ["cpu"] * 2


def test_a_step_under_a_default_device_of_another_kind_makes_cpu_gradients():
    stages = [nn.Linear(8, 8), nn.Linear(8, 8)]
    reference = Chain(copy.deepcopy(stages))
    x, y = batch(7)
    with pipeline(stages) as pipe:
        with torch.device("meta"):
            result = pipe.step(x, target=y)
        assert result.loss.device.type == "cpu"
        assert same_bits(result.losses, plain_loop(reference, x, y, 3))


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_evaluation_is_without_gradients_in_every_mode_of_the_caller(context):
    modes = []

    def stage(x):
        modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return x

    x, _ = batch(4)
    with pipeline([nn.Linear(8, 8), stage], None, num_microbatches=2) as pipe, context():
        output = pipe(x)
        assert torch.is_grad_enabled() is (context is torch.enable_grad)
    assert modes == [(False, context is torch.inference_mode)] * 2
    assert not output.requires_grad
    assert output.is_inference() is (context is torch.inference_mode)


def test_a_training_step_computes_gradients_under_no_grad_too():
    stages = [nn.Linear(8, 8), nn.Linear(8, 8)]
    x, y = batch(6)
    with pipeline(stages) as pipe:
        with torch.no_grad():
            pipe.step(x, target=y)
            assert not torch.is_grad_enabled()
        assert all(p.grad is not None for p in pipe.parameters())


def test_a_stage_that_changes_the_grad_mode_does_not_change_it_for_the_next_pass():
    modes = []

    def stage(x):
        modes.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)
        return x

    weight = torch.ones(1, requires_grad=True)
    with pipeline([stage], lambda o: (o * weight).sum(), num_microbatches=1) as pipe:
        for _ in range(2):
            with pytest.raises(pipert.PipelineError, match="does not require a gradient"):
                pipe.step(torch.ones(1, 1))
    assert modes == [True, True]


def test_each_rank_has_one_thread_that_stays():
    threads = {0: set(), 1: set()}

    def stage_of(rank):
        def stage(x):
            threads[rank].add(threading.get_ident())
            return x

        return stage

    with pipeline([stage_of(0), stage_of(1)], None, num_microbatches=4) as pipe:
        for _ in range(3):
            pipe(torch.zeros(4, 1))
    assert len(threads[0]) == len(threads[1]) == 1
    assert threads[0] != threads[1]
    assert threading.get_ident() not in threads[0] | threads[1]
