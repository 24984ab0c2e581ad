"""Every named schedule runs: the right bits, and as many activations as it promises.

Gradients are compared with a plain loop that adds up in the schedule's own order.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_loop import (
    assert_same_gradients,
    batch,
    mlp,
    plain_loop,
    same_bits,
    scheduled_loop,
    twins,
)
from schedule_strategies import good_schedules, with_pairs
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(120)
mse = nn.functional.mse_loss


def stages_of(name, ranks):
    """How many stages of the model the schedule takes, the fewest and more where it can."""
    if name in ("zb_v", "v_half", "v_min", "dualpipe_v", "hanayo"):
        return [2 * ranks]
    if name in ("zb_interleaved", "interleaved_1f1b", "looped_bfs"):
        return [2 * ranks, 3 * ranks]
    return [ranks]


# name, {options}, the peak of activations on rank r of p with v stages a rank and m microbatches
SCHEDULES = [
    ("gpipe", {}, lambda p, v, m, r: m),
    ("1f1b", {}, lambda p, v, m, r: min(m, p - r)),
    ("eager_1f1b", {}, lambda p, v, m, r: min(m, 2 * (p - r) - 1)),
    ("interleaved_1f1b", {}, lambda p, v, m, r: min(m * v, (v - 1) * p + 2 * (p - 1 - r) + 1)),
    ("looped_bfs", {}, lambda p, v, m, r: m * v),
    ("hanayo", {}, lambda p, v, m, r: p + r + 1),
    ("hanayo", {"num_waves": 2}, lambda p, v, m, r: 3 * p + r + 1),
    ("zb_h1", {}, lambda p, v, m, r: min(m, p)),
    ("zb_h2", {}, lambda p, v, m, r: 2 * p - 1),
    ("zb_auto", {}, None),
    ("zb_auto", {"memory_limit": 6, "forward": 2, "weight": 3}, None),
    ("zb_interleaved", {}, lambda p, v, m, r: min(m * v, (v - 1) * p + p)),
    ("zb_v", {}, lambda p, v, m, r: 2 * p),
    ("v_half", {}, None),
    ("v_min", {}, None),
    ("dualpipe_v", {}, lambda p, v, m, r: 2 * p + 1),
    ("dualpipe", {}, lambda p, v, m, r: p + 1),
    ("chimera", {}, None),
]
# Where the peak isn't the same for all sizes: the most that docs/schedules.md says.
BOUNDS = {
    "zb_auto": lambda p, m, options: min(m, options.get("memory_limit", p)),
    "v_half": lambda p, m, options: 2 * ((p + 2) // 2),
    "v_min": lambda p, m, options: 2 * ((p + 4) // 3),
    "chimera": lambda p, m, options: p,
}


def microbatches_of(name, ranks):
    uneven = 3 * ranks if "interleaved" in name else 2 * ranks + 2
    return [2 * ranks, uneven, 4 * ranks]


def configurations():
    for name, options, peak in SCHEDULES:
        for ranks in (2, 3, 4):
            if name in ("dualpipe", "chimera") and ranks % 2 != 0:
                continue
            counts = stages_of(name, ranks)
            if "num_waves" in options:
                counts = [2 * ranks * options["num_waves"]]
            for num_stages in counts:
                for microbatches in microbatches_of(name, ranks):
                    yield name, options, peak, ranks, num_stages, microbatches


def name_of(configuration):
    name, options, _, ranks, num_stages, microbatches = configuration
    return "-".join(map(str, [name, *options.values(), ranks, num_stages, microbatches]))


@pytest.mark.parametrize("configuration", list(configurations()), ids=name_of)
def test_gradients_losses_outputs_and_activations_are_what_the_schedule_says(configuration):
    name, options, peak, ranks, num_stages, microbatches = configuration
    model, reference = twins(mlp, num_stages)
    x, y = batch(2 * microbatches + 3)  # of different sizes
    with pipert.Pipeline(
        pipert.split(model, num_stages),
        schedule=name,
        schedule_options=options,
        num_ranks=ranks,
        num_microbatches=microbatches,
        loss_fn=mse,
    ) as pipe:
        stages = pipert.split(reference, num_stages)
        for _ in range(2):  # gradients add up over steps
            result = pipe.step(x, target=y, return_outputs=True)
            losses = scheduled_loop(reference, stages, pipe.schedule, x, y)
            assert same_bits(result.losses, losses)
            assert_same_gradients(pipe, reference)
            expected = [reference(piece).detach() for piece in x.tensor_split(microbatches)]
            assert same_bits(result.outputs, torch.cat(expected))
        measured = pipe.trace().peak_activations
        assert measured == {program.rank: program.peak_activations for program in pipe.program}
        per_rank = num_stages // ranks
        for rank, count in measured.items():
            if peak is not None:
                assert count == peak(ranks, per_rank, microbatches, rank)
            else:
                assert count <= BOUNDS[name](ranks, microbatches, options)
        assert same_bits(pipe.evaluate(x, target=y).losses, losses)


def test_all_synchronous_schedules_are_in_the_list():
    named = {name for name, *_ in SCHEDULES}
    asynchronous = {"pipedream", "pipedream_vertical_sync", "pipedream_2bw"}
    assert named == set(pipert.schedules()) - asynchronous


def check_any(schedule, overlap_fn=None):
    num_stages = schedule.placement.stages_per_copy
    model, reference = twins(mlp, num_stages, width=4)
    x, y = batch(2 * schedule.num_microbatches + 1, width=4)
    with pipert.Pipeline(
        pipert.split(model, num_stages),
        schedule=schedule,
        num_microbatches=schedule.num_microbatches,
        loss_fn=mse,
        overlap_fn=overlap_fn,
    ) as pipe:
        stages = pipert.split(reference, num_stages)
        for _ in range(2):
            result = pipe.step(x, target=y)
            assert same_bits(result.losses, scheduled_loop(reference, stages, schedule, x, y))
            assert_same_gradients(pipe, reference)
        promised = {program.rank: program.peak_activations for program in pipe.program}
        if overlap_fn is None:
            assert pipe.trace().peak_activations == promised


@settings(max_examples=150, deadline=None)
@given(good_schedules(max_microbatches=5))
def test_any_valid_schedule_runs_with_the_right_bits(schedule):
    check_any(schedule)


@settings(max_examples=150, deadline=None)
@given(good_schedules(num_copies=2, max_stages=8, max_microbatches=6))
def test_any_valid_schedule_of_two_copies_runs_with_the_right_bits(schedule):
    assert schedule.verify()
    check_any(schedule)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 2).flatmap(lambda copies: good_schedules(num_copies=copies)), st.randoms())
def test_any_overlapped_pairs_that_verify_accepts_run_with_the_right_bits(schedule, random):
    schedule = with_pairs(schedule, random)
    has_pairs = any(a.paired for actions in schedule.actions for a in actions)
    if not has_pairs or not schedule.verify(joint_pairs=True):
        return

    def overlap_fn(forward, backward):
        for half in (backward, forward) if random.random() < 0.5 else (forward, backward):
            half()

    check_any(schedule, overlap_fn)


@pytest.mark.parametrize("name", ["zb_h1", "dualpipe", "chimera"])
def test_ten_optimizer_steps_follow_a_loop_in_the_schedules_order(name):
    model, reference = twins(mlp, 4)
    stages = pipert.split(reference, 4)
    with pipert.Pipeline(
        pipert.split(model, 4), schedule=name, num_ranks=4, num_microbatches=8, loss_fn=mse
    ) as pipe:
        ours = torch.optim.AdamW(pipe.parameters(), lr=0.01)
        theirs = torch.optim.AdamW(reference.parameters(), lr=0.01)
        for step in range(10):
            x, y = batch(17, seed=step)
            result = pipe.step(x, target=y)
            assert same_bits(result.losses, scheduled_loop(reference, stages, pipe.schedule, x, y))
            for optimizer in (ours, theirs):
                optimizer.step()
                optimizer.zero_grad()
        for p, q in zip(pipe.parameters(), reference.parameters(), strict=True):
            assert same_bits(p.detach(), q.detach())


@pytest.mark.parametrize("name", ["zb_h1", "dualpipe"])
def test_microbatches_that_come_cut_run_under_every_kind_of_schedule(name):
    model, reference = twins(mlp, 2)
    pieces = [batch(n, seed=n) for n in (1, 4, 2, 3)]
    with pipert.Pipeline(
        pipert.split(model, 2), schedule=name, num_ranks=2, num_microbatches=4, loss_fn=mse
    ) as pipe:
        result = pipe.step(
            microbatches=[x for x, _ in pieces], target=[y for _, y in pieces], return_outputs=True
        )
    losses = torch.stack([plain_loop(reference, x, y, 1)[0] for x, y in pieces])
    assert same_bits(result.losses, losses)
    assert same_bits(result.loss, losses.mean())
    for output, (x, _) in zip(result.outputs, pieces, strict=True):
        assert same_bits(output, reference(x).detach())
