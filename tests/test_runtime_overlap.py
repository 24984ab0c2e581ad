"""Overlapped pairs that the user's function runs: in any order, on any thread."""

import itertools
import random
import threading

import pytest
import torch
from plain_loop import assert_same_gradients, batch, mlp, same_bits, scheduled_loop, twins
from program_interpreter import run_by_lanes, run_in_issue_order
from schedule_mutations import batch as mutated
from schedule_strategies import with_pairs
from torch import nn

import pipert
from pipert._C import lower_blindly, rehearse

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss


def make_pipe(model, overlap_fn, schedule="dualpipe_v", ranks=2, microbatches=6, **options):
    stages = ranks if schedule == "dualpipe" else 2 * ranks
    if not isinstance(schedule, str):
        stages = schedule.num_stages
    return pipert.Pipeline(
        pipert.split(model, stages),
        schedule=schedule,
        num_ranks=ranks,
        num_microbatches=microbatches,
        loss_fn=mse,
        overlap_fn=overlap_fn,
        **options,
    )


def forward_first(forward, backward):
    forward()
    backward()


def backward_first(forward, backward):
    backward()
    forward()


def on_threads(forward, backward):
    threads = [threading.Thread(target=half) for half in (forward, backward)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("overlap_fn", [forward_first, backward_first, on_threads])
@pytest.mark.parametrize(("schedule", "ranks"), [("dualpipe_v", 2), ("dualpipe", 4)])
def test_any_way_to_run_the_halves_gives_the_same_bits(overlap_fn, schedule, ranks):
    torch.set_num_threads(1)
    model, reference = twins(mlp, 2 * ranks)
    x, y = batch(17)
    with make_pipe(model, overlap_fn, schedule, ranks, 8) as pipe:
        stages = pipert.split(reference, pipe.schedule.placement.stages_per_copy)
        for _ in range(2):
            result = pipe.step(x, target=y)
            losses = scheduled_loop(reference, stages, pipe.schedule, x, y)
            assert same_bits(result.losses, losses)
            assert_same_gradients(pipe, reference)
        for program in pipe.program:
            assert pipe.trace().peak_activations[program.rank] <= program.peak_activations
        assert same_bits(pipe.evaluate(x, target=y).losses, losses)


@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("rng_seed", [None, 7])
def test_halves_on_other_threads_draw_the_ranks_random_numbers(recompute, rng_seed):
    def steps(overlap_fn):
        torch.manual_seed(3)
        model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)) for _ in range(4)))
        x, y = batch(12)
        options = {"recompute": recompute, "rng_seed": rng_seed}
        with make_pipe(model, overlap_fn, **options) as pipe:
            losses = [pipe.step(x, target=y).losses for _ in range(2)]
            return torch.stack(losses), [p.grad for p in pipe.parameters()]

    losses, gradients = steps(forward_first)
    for overlap_fn in (on_threads, backward_first):
        others, found = steps(overlap_fn)
        assert same_bits(others, losses)
        assert all(same_bits(a, b) for a, b in zip(found, gradients, strict=True))


def test_every_pair_of_the_schedule_comes_once_with_its_halves():
    seen = []
    lock = threading.Lock()

    def overlap_fn(forward, backward):
        assert forward.action.kind == "F"
        assert backward.action.kind in ("B", "I")
        assert forward.module is pipe.stages[forward.stage]
        assert backward.module is pipe.stages[backward.stage]
        with lock:
            seen.append((forward.stage, forward.microbatch, backward.stage, backward.microbatch))
        forward_first(forward, backward)

    x, y = batch(12)
    with make_pipe(mlp(4), overlap_fn) as pipe:
        pipe.step(x, target=y)
        expected = [
            (a.stage, a.microbatch, a.paired.stage, a.paired.microbatch)
            for actions in pipe.schedule.actions
            for a in actions
            if a.paired
        ]
    assert sorted(seen) == sorted(expected)
    assert expected


def test_a_half_runs_under_the_callers_modes_on_any_thread():
    class Stage(nn.Linear):
        def forward(self, x):
            modes.add((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
            return super().forward(x)

    modes = set()
    model = nn.Sequential(*[Stage(8, 8) for _ in range(4)])
    x, y = batch(12)
    with make_pipe(model, on_threads) as pipe, torch.autocast("cpu", dtype=torch.bfloat16):
        pipe.step(x, target=y)
    assert modes == {(True, True)}


def test_the_trace_of_a_pair_fills_the_time_that_it_took():
    x, y = batch(12)
    with make_pipe(mlp(4), backward_first) as pipe:
        pipe.step(x, target=y)
        events = pipe.trace().events
        assert len(events) == sum(len(program) for program in pipe.program)
        for before, after in itertools.pairwise(events):
            if before.rank == after.rank:
                assert before.ended == after.issued
        assert str(pipe.report())


# --- mistakes -----------------------------------------------------------------------------------

NAME = r"\(\dF\d;\d[BI]\d\)OVERLAP_F_B"


def twice(forward, backward):
    forward()
    forward()
    backward()


def twice_in_secret(forward, backward):
    forward()
    backward()
    with pytest.raises(ValueError, match="was called already"):
        backward()


@pytest.mark.parametrize(
    ("overlap_fn", "text"),
    [
        (lambda forward, backward: None, f"the forward of {NAME} was not called"),
        (lambda forward, backward: forward(), f"the backward of {NAME} was not called"),
        (twice, f"the forward of {NAME} was called already"),
        (twice_in_secret, f"the backward of {NAME} was called twice"),
    ],
)
def test_a_half_that_is_not_called_once_is_an_error_that_names_the_pair(overlap_fn, text):
    x, y = batch(12)
    with (
        make_pipe(mlp(4), overlap_fn) as pipe,
        pytest.raises(pipert.PipelineError, match=text) as caught,
    ):
        pipe.step(x, target=y)
    assert caught.value.action.endswith("OVERLAP_F_B")
    assert "(overlapped pair)" in str(caught.value)


def test_a_half_that_is_kept_is_over_after_the_pair():
    kept = []

    def overlap_fn(forward, backward):
        forward_first(forward, backward)
        kept.append(forward)

    x, y = batch(12)
    with make_pipe(mlp(4), overlap_fn) as pipe:
        pipe.step(x, target=y)
        with pytest.raises(ValueError, match="is over"):
            kept[0]()


class Fails(nn.Linear):
    fails = False

    def forward(self, x):
        if Fails.fails:
            raise KeyError("mistake")
        return super().forward(x)


@pytest.mark.parametrize("swallow", [False, True])
def test_what_a_half_raises_comes_out_even_if_the_function_swallows_it(swallow):
    def overlap_fn(forward, backward):
        Fails.fails = True
        try:
            forward()
        except KeyError:
            if not swallow:
                raise
        finally:
            Fails.fails = False
        backward()

    x, y = batch(12)
    model = nn.Sequential(*[Fails(8, 8) for _ in range(4)])
    with make_pipe(model, overlap_fn) as pipe:
        with pytest.raises(pipert.PipelineError, match="mistake") as caught:
            pipe.step(x, target=y)
        assert isinstance(caught.value.__cause__, KeyError)
        assert "F" in caught.value.action
        assert "OVERLAP" not in caught.value.action


def test_what_the_function_raises_names_the_pair():
    def overlap_fn(forward, backward):
        forward_first(forward, backward)
        raise KeyError("of the function")

    x, y = batch(12)
    with (
        make_pipe(mlp(4), overlap_fn) as pipe,
        pytest.raises(pipert.PipelineError, match="of the function") as caught,
    ):
        pipe.step(x, target=y)
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.action.endswith("OVERLAP_F_B")


def test_a_schedule_without_pairs_needs_no_function():
    with pytest.raises(ValueError, match="overlap_fn needs a schedule with overlapped pairs"):
        make_pipe(mlp(4), forward_first, "zb_v")
    with pytest.raises(TypeError, match="overlap_fn must be a function of two halves, got int"):
        make_pipe(mlp(4), 7)


# --- pairs that stay together -------------------------------------------------------------------


def test_a_pair_whose_ranks_would_wait_for_each_other_is_refused():
    """Rank 0 sends 0F1 only after it has 1B0, which rank 1 makes after it has 0F1."""
    schedule = pipert.Schedule(
        [
            ["0F0", "(0F1;0B0)OVERLAP_F_B", "0B1"],
            ["1F0", "1F1", "1B0", "1B1"],
        ]
    )
    assert schedule.verify()
    verdict = schedule.verify(joint_pairs=True)
    assert verdict.defect == "deadlock"
    assert verdict.message == (
        "deadlock: rank 0 at 0B0 waits for 1B0 on rank 1, which at 1F1 waits for 0F1 on rank 0"
    )
    with pytest.raises(ValueError, match="deadlock"):
        pipert.lower(schedule, joint_pairs=True)
    with pytest.raises(ValueError, match="deadlock"):
        make_pipe(mlp(2), forward_first, schedule, microbatches=2)
    with make_pipe(mlp(2), None, schedule, microbatches=2) as pipe:
        x, y = batch(4)
        pipe.step(x, target=y)


def test_a_backward_of_the_pairs_own_forward_runs_after_it():
    schedule = pipert.Schedule([["(0F0;0B0)OVERLAP_F_B", "(0F1;0B1)OVERLAP_F_B"]])
    (program,) = pipert.lower(schedule, joint_pairs=True)
    assert program.joint_pairs == []


@pytest.mark.parametrize("receive_slots", [1, 3])
@pytest.mark.parametrize("name", ["dualpipe", "dualpipe_v"])
def test_programs_keep_the_halves_together_and_send_after_both(name, receive_slots):
    schedule = pipert.Schedule.build(name, num_ranks=4, num_microbatches=8)
    programs = pipert.lower(schedule, joint_pairs=True, receive_slots=receive_slots)
    assert pipert.lower(schedule)[0].joint_pairs == []
    for program, actions in zip(programs, schedule.actions, strict=True):
        pairs = [a for a in actions if a.paired]
        found = [
            tuple(program.instructions[i + half]["action"] for half in (0, 1))
            for i in program.joint_pairs
        ]
        assert [str(a.paired) for a in pairs] == [str(second) for _, second in found]
        for i in program.joint_pairs:
            assert f"jointly with %{i + 1}" in str(program)
    rehearsal = rehearse(programs, schedule.placement, limit_ms=10_000)
    assert rehearsal.ending == "completed", rehearsal.message
    num_copies = schedule.placement.num_copies
    for seed in range(20):  # marks and slots hold whatever the lanes' speeds
        assert run_by_lanes(programs, seed, num_copies=num_copies) == rehearsal.actions
        assert run_in_issue_order(programs, seed, num_copies=num_copies) == rehearsal.actions


@pytest.mark.parametrize("capacity", [None, 0, 1, 2])
def test_verify_knows_what_becomes_of_joint_pairs(capacity):
    chance = random.Random(capacity)
    outcomes = []
    for _, plain in mutated(f"joint {capacity}", 500, most_mutations=1):
        if not plain.verify():
            continue
        schedule = with_pairs(plain, chance)
        verdict = schedule.verify(capacity=capacity, joint_pairs=True)
        programs = lower_blindly(schedule, joint_pairs=True)
        for limit_ms in (4, 300, 10_000):
            ending = rehearse(
                programs, schedule.placement, capacity=capacity, limit_ms=limit_ms
            ).ending
            if (ending == "completed") == bool(verdict) or ending != "stalled":
                break
        told = f"{verdict.message}: {ending}\n" + "\n".join(
            " ".join(map(str, actions)) for actions in schedule.actions
        )
        assert (ending == "completed") == bool(verdict), told
        outcomes.append((bool(schedule.verify(capacity=capacity)), bool(verdict)))
    assert outcomes.count((True, True)) > 20
    assert outcomes.count((True, False)) > 5  # a deadlock that only the pairs make
