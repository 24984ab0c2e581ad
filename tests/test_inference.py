"""Passes without backward: nothing is kept, nothing runs twice, and training doesn't notice."""

import copy
import weakref
from collections import Counter

import pytest
import torch
from plain_loop import batch, plain_loop, same_bits
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(90)
mse = nn.functional.mse_loss
MICROBATCHES = 8
WIDTH, ROWS = 64, 512
TENSOR = WIDTH * ROWS * 4  # bytes of one microbatch between two layers
LOSS = 4

SCHEDULES = [
    ("gpipe", 3, 3),
    ("1f1b", 3, 3),
    ("zb_h1", 3, 3),
    ("interleaved_1f1b", 2, 4),
    ("zb_v", 2, 4),
    ("dualpipe_v", 2, 4),
    ("dualpipe", 2, 2),
]


def linears(num_stages, width=8):
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(width, width), nn.Linear(width, width)) for _ in range(num_stages)
    ]


def make_pipe(stages, schedule, num_ranks, **options):
    default = {"num_microbatches": MICROBATCHES, "loss_fn": mse}
    return pipert.Pipeline(stages, schedule=schedule, num_ranks=num_ranks, **{**default, **options})


def all_passes(pipe, x, y):
    """A round of training and of both ways to run without it, as many as there are."""
    pipe.step(x, target=y)
    pipe.evaluate(x, target=y)
    pipe.evaluate(x, target=y, return_outputs=True)
    pipe(x)


@pytest.mark.parametrize(("schedule", "ranks", "num_stages"), SCHEDULES)
def test_each_pass_calls_each_stage_once_for_each_microbatch(schedule, ranks, num_stages):
    stages = linears(num_stages)
    x, y = batch(2 * MICROBATCHES)
    calls = Counter()
    for index, stage in enumerate(stages):
        stage.register_forward_hook(lambda *_, index=index: calls.update([index]))
    with make_pipe(stages, schedule, ranks) as pipe:
        for _ in range(2):
            for run in (
                lambda: pipe.step(x, target=y),
                lambda: pipe.evaluate(x, target=y),
                lambda: pipe(x),
                lambda: pipe.evaluate(x, target=y, return_outputs=True),
            ):
                calls.clear()
                run()
                assert calls == dict.fromkeys(range(num_stages), MICROBATCHES)


def test_recomputation_runs_no_forward_of_an_evaluation_again():
    stages = linears(2)
    x, y = batch(2 * MICROBATCHES)
    calls = []
    stages[0].register_forward_hook(lambda *_: calls.append(None))
    with make_pipe(stages, "1f1b", 2, recompute="all") as pipe:
        pipe.evaluate(x, target=y)
        assert len(calls) == MICROBATCHES
        pipe.step(x, target=y)
        assert len(calls) == 3 * MICROBATCHES


# --- what is held -------------------------------------------------------------------------------


def memory(pipe):
    """Of the last pass, by rank: activations, peak bytes, and bytes that it left behind."""
    return [
        (activations, peak, held[-1])
        for _, activations, peak, held in pipe._ranks.last_passes().memory()
    ]


def memory_of(run, schedule, ranks, num_stages, microbatches):
    x, y = batch(ROWS * microbatches, WIDTH)
    options = {"num_microbatches": microbatches, "measure_memory": True}
    with make_pipe(linears(num_stages, WIDTH), schedule, ranks, **options) as pipe:
        run(pipe, x, y)
        return memory(pipe)


def evaluate(pipe, x, y):
    pipe.evaluate(x, target=y)


def call(pipe, x, y):
    pipe(x)


@pytest.mark.parametrize(("schedule", "ranks", "num_stages"), SCHEDULES)
def test_an_evaluation_keeps_losses_alone(schedule, ranks, num_stages):
    few, many = (memory_of(evaluate, schedule, ranks, num_stages, m) for m in (8, 16))
    for microbatches, ranks_memory in ((8, few), (16, many)):
        assert all(activations == 0 for activations, _, _ in ranks_memory)
        assert sum(left for _, _, left in ranks_memory) == LOSS * microbatches
    for (_, one, left), (_, other, left_by_more) in zip(few, many, strict=True):
        assert other - left_by_more == one - left  # not with the number of microbatches
        # An input, an output, what lies between, and on the last stage what the loss takes.
        assert one - left < 4 * TENSOR + 100


@pytest.mark.parametrize(("schedule", "ranks", "num_stages"), SCHEDULES)
def test_a_call_keeps_outputs_alone(schedule, ranks, num_stages):
    for activations, peak, left in (found := memory_of(call, schedule, ranks, num_stages, 8)):
        assert activations == 0
        assert peak <= left + 3 * TENSOR
    assert sum(left for _, _, left in found) == 8 * TENSOR


@pytest.mark.parametrize("run", [evaluate, call], ids=["evaluate", "call"])
def test_nothing_of_it_is_alive_afterwards(run):
    stages = linears(3)
    x, y = batch(2 * MICROBATCHES)
    seen = []
    for stage in stages:
        for layer in stage:
            layer.register_forward_hook(lambda _m, _args, out: seen.append(weakref.ref(out)))
    with make_pipe(stages, "1f1b", 3) as pipe:
        run(pipe, x, y)
        assert len(seen) == 6 * MICROBATCHES
        assert [tensor for tensor in seen if tensor() is not None] == []
        assert pipe._ranks._runtime.num_in_flight() == 0


def test_no_graph_is_made_and_no_gradient():
    stages = linears(2)
    x, y = batch(2 * MICROBATCHES)
    needed = []
    stages[1].register_forward_hook(lambda _m, args, out: needed.append(out.requires_grad))
    with make_pipe(stages, "1f1b", 2) as pipe:
        result = pipe.evaluate(x, target=y, return_outputs=True)
        assert not pipe(x).requires_grad
        assert not result.outputs.requires_grad
        assert not result.losses.requires_grad
        assert not any(needed)
        assert all(p.grad is None for p in pipe.parameters())


# --- beside training ----------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "ranks", "num_stages"), SCHEDULES)
def test_rounds_of_training_and_evaluation_take_the_same_memory(schedule, ranks, num_stages):
    x, y = batch(ROWS * MICROBATCHES, WIDTH)
    stages = linears(num_stages, WIDTH)
    with make_pipe(stages, schedule, ranks, measure_memory=True) as pipe:
        rounds = []
        for _ in range(4):
            found = []
            for run in (
                lambda: pipe.step(x, target=y),
                lambda: pipe.evaluate(x, target=y),
                lambda: pipe(x),
            ):
                run()
                found.append(memory(pipe))
            rounds.append(found)
    assert rounds[1] == rounds[2] == rounds[3]  # in the first, gradients are made that stay


@pytest.mark.parametrize("stage_kind", ["module", "native"])
@pytest.mark.parametrize(("schedule", "ranks", "num_stages"), SCHEDULES)
def test_training_does_not_notice_what_runs_between(schedule, ranks, num_stages, stage_kind):
    stages = linears(num_stages)
    alone = copy.deepcopy(stages)
    x, y = batch(2 * MICROBATCHES)
    options = {"stage_kind": stage_kind}
    with (
        make_pipe(stages, schedule, ranks, **options) as pipe,
        make_pipe(alone, schedule, ranks, **options) as other,
    ):
        for _ in range(2):
            all_passes(pipe, x, y)
            losses = other.step(x, target=y).losses
        assert same_bits(pipe.evaluate(x, target=y).losses, losses)
        for ours, theirs in zip(pipe.parameters(), other.parameters(), strict=True):
            assert same_bits(ours.grad, theirs.grad)
        assert pipe.step_index == other.step_index == 2


def test_outputs_are_the_plain_models():
    stages = linears(3)
    model = nn.Sequential(*stages)
    x, y = batch(2 * MICROBATCHES + 3)
    expected = torch.cat([model(piece) for piece in x.tensor_split(MICROBATCHES)]).detach()
    losses = plain_loop(copy.deepcopy(model), x, y, MICROBATCHES)
    with make_pipe(stages, "1f1b", 3) as pipe:
        assert same_bits(pipe(x), expected)
        result = pipe.evaluate(x, target=y, return_outputs=True)
        assert same_bits(result.outputs, expected)
        assert same_bits(result.losses, losses)
