"""Stages that hand values to any later stage: the gradients are the plain loop's, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_loop import assert_same_gradients, batch, same_bits
from test_runtime_schedules import SCHEDULES, stages_of
from torch import nn
from wired_stages import Up, random_stages, u_net, unpartitioned, wired_loop

import pipert
from pipert.stages import Stages, StageSpec, Value

pytestmark = pytest.mark.timeout(120)
mse = nn.functional.mse_loss
MICROBATCHES = 4


def pipeline(stages, num_microbatches=MICROBATCHES, **options):
    return pipert.Pipeline(stages, loss_fn=mse, num_microbatches=num_microbatches, **options)


def assert_equals_plain_loop(pipe, reference, x, y, steps=2):
    """Steps of a pipeline, and evaluations between them, bit for bit the plain loop's."""
    for _ in range(steps):
        losses = wired_loop(reference, pipe.schedule, x, y)
        assert same_bits(pipe.step(x=x, target=y).losses, losses)
        assert_same_gradients(pipe, reference)
        assert same_bits(pipe.evaluate(x=x, target=y).losses, losses)
    pieces = x.tensor_split(pipe.schedule.num_microbatches)
    assert same_bits(pipe(x=x), torch.cat([reference(piece).detach() for piece in pieces]))


@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("stage_kind", ["module", "native"])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1"])
def test_a_value_passes_over_a_stage(schedule, stage_kind, recompute):
    stages = u_net()
    reference = unpartitioned(stages)
    with pipeline(stages, schedule=schedule, stage_kind=stage_kind, recompute=recompute) as pipe:
        assert_equals_plain_loop(pipe, reference, *batch(9), steps=3)
        assert set(pipe.report().stage_kinds.values()) == {stage_kind}


@st.composite
def named_schedules(draw):
    """(Name, options, ranks, stages of the model, microbatches)."""
    name, options, _ = draw(st.sampled_from(SCHEDULES))
    ranks = draw(st.sampled_from([2, 4] if name in ("dualpipe", "chimera") else [2, 3, 4]))
    num_stages = draw(st.sampled_from(stages_of(name, ranks)))
    if "num_waves" in options:
        num_stages = 2 * ranks * options["num_waves"]
    microbatches = ranks * draw(st.integers(1, 2)) if "interleaved" in name else 2 * ranks
    return name, options, ranks, num_stages, microbatches


@settings(max_examples=150, deadline=None)
@given(named_schedules(), st.integers(0, 2**20), st.sampled_from(["none", "all"]))
def test_any_stages_run_under_any_schedule(schedule, seed, recompute):
    name, options, ranks, num_stages, microbatches = schedule
    stages = random_stages(seed, num_stages)
    reference = unpartitioned(stages)
    with pipeline(
        stages,
        microbatches,
        schedule=name,
        schedule_options=options,
        num_ranks=ranks,
        recompute=recompute,
    ) as pipe:
        assert_equals_plain_loop(pipe, reference, *batch(2 * microbatches + 1), steps=1)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**20), st.integers(2, 4), st.sampled_from(["1f1b", "zb_h1"]))
def test_any_stages_run_without_python(seed, num_stages, schedule):
    stages = random_stages(seed, num_stages)
    reference = unpartitioned(stages)
    with pipeline(stages, schedule=schedule, stage_kind="native") as pipe:
        assert_equals_plain_loop(pipe, reference, *batch(9))
        assert set(pipe.report().stage_kinds.values()) == {"native"}


# --- what goes wrong ------------------------------------------------------------------------


class Call(nn.Module):
    """A function, and a layer so that there is something to train."""

    def __init__(self, index, call):
        super().__init__()
        self.add_module(f"stage{index}", nn.Linear(8, 8))
        self.name = f"stage{index}"
        self.call = call

    def forward(self, *values, **arguments):
        return self.call(getattr(self, self.name), *values, **arguments)


def three(*calls, readers=(1, 2), differentiable=True):
    """Stage 0 makes `h`, for `readers`; stage 1 makes `g` for stage 2."""
    return Stages(
        [Call(i, call) for i, call in enumerate(calls)],
        specs=[
            StageSpec(outputs=("h",), arguments=("x",)),
            StageSpec(inputs=("h",) if 1 in readers else (), outputs=("g",)),
            StageSpec(inputs=("h", "g") if 2 in readers else ("g",)),
        ],
        values=[Value("h", 0, readers, differentiable), Value("g", 1, (2,))],
        arguments=["x"],
    )


def first(layer, x):
    return (layer(x),)


def middle(layer, h):
    return (layer(h),)


def last(layer, h, g):
    return layer(h + g)


def failure_of(stages, **options):
    x, y = batch(9)
    with pipeline(stages, **options) as pipe, pytest.raises(pipert.PipelineError) as failure:
        pipe.step(x=x, target=y)
    return failure.value


def test_a_failure_in_a_reader_names_the_values_and_who_made_them():
    def fails(layer, h, g):
        raise RuntimeError("no")

    failure = failure_of(three(first, middle, fails))
    assert failure.stage == 2
    assert "stage 2 got h (float32[3, 8]) from stage 0 on rank 0, g (float32[3, 8]) from" in str(
        failure
    )


def test_a_failure_in_a_backward_names_the_gradients():
    def fails(layer, h):
        h.register_hook(lambda gradient: 1 / 0)
        return (layer(h),)

    failure = failure_of(three(first, fails, last))
    assert failure.stage == 1
    assert (
        "stage 1 got the gradient of g (float32[3, 8]) from stage 2 on rank 2, the gradient of h "
        "(float32[3, 8]) from stage 2 on rank 2" in str(failure)
    )


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("writer", [1, 2])
def test_a_reader_that_writes_to_what_others_read_is_told(writer, num_ranks):
    def writes(layer, h, *others):
        h.mul_(2)
        return last(layer, h, *others) if others else middle(layer, h)

    stages = three(first, writes, last) if writer == 1 else three(first, middle, writes)
    schedule = "1f1b" if num_ranks == 3 else "interleaved_1f1b"
    failure = failure_of(stages, num_ranks=num_ranks, schedule=schedule)
    assert failure.stage == writer
    assert isinstance(failure.__cause__, ValueError)
    assert str(failure.__cause__) == (
        f"stage {writer} works in place on h of stage 0, which stage {3 - writer} reads too: "
        "expected a stage that changes a copy of it"
    )


def writes_to_view(layer, h):
    h.view(-1)[:3].zero_()
    return (layer(h),)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_reader_that_writes_is_told_in_inference_mode_too(num_ranks):
    schedule = "1f1b" if num_ranks == 3 else "interleaved_1f1b"
    stages = three(first, writes_to_view, last)
    x, y = batch(9)
    with (
        pipeline(stages, num_ranks=num_ranks, schedule=schedule) as pipe,
        torch.inference_mode(),
    ):
        with pytest.raises(pipert.PipelineError, match="stage 1 works in place on h of stage 0"):
            pipe.evaluate(x=x, target=y)
        stages[1].call = lambda layer, h: writes_to_view(layer, h.clone())
        reference = unpartitioned(stages)
        pieces = x.tensor_split(MICROBATCHES)
        assert same_bits(pipe(x=x), torch.cat([reference(piece) for piece in pieces]))


def test_the_only_reader_may_write_to_it():
    def writes(layer, h):
        return (layer(h.relu_()),)

    stages = three(first, writes, lambda layer, g: layer(g), readers=(1,))
    reference = unpartitioned(stages)
    with pipeline(stages) as pipe:
        assert_equals_plain_loop(pipe, reference, *batch(9))


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
@pytest.mark.parametrize("is_used", [True, False])
def test_a_stage_may_leave_the_gradient_of_its_input_to_other_readers(schedule, is_used):
    """What it makes needs no gradient; `h` gets that of the last stage, or of none."""

    def mask(layer, h):
        return ((h > 0).float(),)

    def masked(layer, h, g):
        return layer((h if is_used else h.detach()) * g)

    stages = three(first, mask, masked)
    stages[1].requires_grad_(False)
    reference = unpartitioned(stages)
    with pipeline(stages, schedule=schedule) as pipe:
        assert_equals_plain_loop(pipe, reference, *batch(9))


def test_a_stage_that_alone_could_bring_a_gradient_must_do_so():
    def detached(layer, h):
        return (h.detach(),)

    def two(layer, g):
        return layer(g)

    stages = three(first, detached, two, readers=(1,))
    stages[1].requires_grad_(False)
    failure = failure_of(stages)
    assert failure.stage == 1
    assert "the stages before it would not train" in str(failure.__cause__)


def test_a_value_that_needs_a_gradient_must_be_differentiable():
    failure = failure_of(three(first, middle, last, differentiable=False))
    assert failure.stage == 0
    assert str(failure.__cause__) == (
        "h of stage 0 requires a gradient, but was declared with differentiable=False: no gradient "
        "would come back for it"
    )


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (lambda h: h, "a tensor"),
        (lambda h: [h], "a list of 1"),
        (lambda h: (h, h), "a tuple of 2"),
        (lambda h: {"g": h}, "a dict of 1"),
        (lambda h: None, "None"),
    ],
)
def test_a_stage_must_return_a_tuple_of_its_values(returned, got):
    failure = failure_of(three(first, lambda layer, h: returned(layer(h)), last))
    assert failure.stage == 1
    assert isinstance(failure.__cause__, ValueError)
    assert str(failure.__cause__) == f"stage 1 must return a tuple of 1 (g), got {got}"


def test_a_reader_in_evaluation_gets_what_one_in_training_gets():
    stages = u_net()
    reference = unpartitioned(stages)
    x, y = batch(9)
    with pipeline(stages) as pipe:
        for _ in range(3):
            evaluated = pipe.evaluate(x=x, target=y).losses
            assert same_bits(evaluated, wired_loop(reference, pipe.schedule, x, y))
            pipe.step(x=x, target=y)
        assert_same_gradients(pipe, reference)


def test_up_uses_what_came_past_more_than_once():
    """What the relay of gradients is for: else the sums would be made in another order."""
    up = Up(8)
    skipped, h = torch.randn(2, 8, requires_grad=True), torch.randn(2, 8)
    node = up(skipped, h).grad_fn
    seen, edges = set(), [node]
    leads = 0
    while edges:
        for child, _ in edges.pop().next_functions:
            if child is not None and getattr(child, "variable", None) is skipped:
                leads += 1
            elif child is not None and child not in seen:
                seen.add(child)
                edges.append(child)
    assert leads > 1
