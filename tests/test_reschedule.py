"""Another schedule between two steps: the same weights, the same bits, or nothing changed."""

import copy
import threading

import pytest
import torch
from plain_loop import assert_same_gradients, batch, mlp, plain_loop, same_bits, twins
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss


def make_pipe(model, schedule="1f1b", num_stages=2, **options):
    return pipert.Pipeline(
        pipert.split(model, num_stages),
        schedule=schedule,
        num_microbatches=4,
        loss_fn=mse,
        **options,
    )


@pytest.mark.parametrize("stage_kind", ["module", "native"])
def test_training_goes_on_bit_for_bit_through_every_schedule_of_the_placement(stage_kind):
    model, reference = twins(mlp, 4)
    x, y = batch(8)
    with make_pipe(model, stage_kind=stage_kind) as pipe:
        optimizer = torch.optim.AdamW(pipe.parameters())
        expected = torch.optim.AdamW(reference.parameters())
        for step, schedule in enumerate(("gpipe", "zb_h1", "eager_1f1b", "zb_h2", "1f1b")):
            state = copy.deepcopy(optimizer.state_dict())
            pipe.reschedule(schedule)
            assert pipe.schedule.name == schedule
            assert str(state) == str(optimizer.state_dict())
            assert pipe.step_index == step
            assert [p.rank for p in pipe.program] == [0, 1]
            pipe.step(x, target=y)
            plain_loop(reference, x, y, 4)
            assert_same_gradients(pipe, reference)
            ran = [e.action for e in pipe.trace().events_of(0) if e.kind == "run"]
            assert ran == pipe.schedule.actions[0]
            for each in (optimizer, expected):
                each.step()
                each.zero_grad()


def test_a_schedule_found_by_search_with_measured_costs_can_be_put_in_place():
    model, reference = twins(mlp, 4)
    x, y = batch(8)
    with make_pipe(model) as pipe:
        pipe.step(x, target=y)
        found = pipert.Schedule.search(
            pipe.costs(), 2, 4, placements=[pipe.schedule.placement], iterations=50
        ).schedule
        pipe.reschedule(found)
        for _ in range(2):
            plain_loop(reference, x, y, 4)
        pipe.step(x, target=y)
        assert_same_gradients(pipe, reference)
        assert same_bits(pipe.step(x, target=y).losses, pipe.evaluate(x, target=y).losses)


def test_random_numbers_go_on_as_without_another_schedule():
    def model():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 8), nn.Dropout())

    x, y = batch(8)
    losses = []
    for again in (False, True):
        with make_pipe(model(), rng_seed=7) as pipe:
            first = pipe.step(x, target=y).losses
            if again:
                pipe.reschedule("gpipe")
            losses.append(torch.stack([first, pipe.step(x, target=y).losses]))
    assert same_bits(*losses)


def test_recomputation_follows_the_schedule():
    model, reference = twins(mlp, 4)
    x, y = batch(8)
    with make_pipe(model, "gpipe", recompute="except_last") as pipe:
        pipe.reschedule("1f1b")
        pipe.step(x, target=y)
        plain_loop(reference, x, y, 4)
        assert_same_gradients(pipe, reference)


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        ("dualpipe", {}, "puts its stages on ranks"),
        (pipert.Schedule.build("gpipe", num_ranks=2, num_microbatches=8), {}, "num_microbatches=8"),
        (pipert.Schedule.build("gpipe", num_ranks=4, num_microbatches=4), {}, "num_ranks=4"),
        ("pipedream", {}, "must be synchronous"),
        ("nothing", {}, "nothing"),
        ("gpipe", {"group_size": 2}, "group_size"),
    ],
)
def test_a_schedule_that_does_not_fit_is_a_value_error_and_the_old_one_stays(
    schedule, options, message
):
    model, reference = twins(mlp, 4)
    x, y = batch(8)
    with make_pipe(model) as pipe:
        before = pipe.program
        with pytest.raises(ValueError, match=message):
            pipe.reschedule(schedule, schedule_options=options or None)
        assert pipe.schedule.name == "1f1b"
        assert pipe.program is before
        pipe.step(x, target=y)
        plain_loop(reference, x, y, 4)
        assert_same_gradients(pipe, reference)


def test_stages_must_stay_on_their_ranks():
    with make_pipe(mlp(4), "interleaved_1f1b", 4, num_ranks=2) as pipe:
        with pytest.raises(ValueError, match=r"puts its stages on ranks \[0, 1, 1, 0\], .*\[0, 1"):
            pipe.reschedule("zb_v")
        pipe.reschedule("looped_bfs")
        x, y = batch(8)
        pipe.step(x, target=y)


def test_it_works_after_a_step_that_failed():
    model, reference = twins(mlp, 4)
    x, y = batch(8)
    with make_pipe(model) as pipe:
        with pytest.raises(pipert.PipelineError):
            pipe.step(x[:, :3], target=y)
        pipe.reschedule("gpipe")
        with pytest.raises(ValueError, match="no pass has run yet"):
            pipe.trace()
        pipe.step(x, target=y)
        plain_loop(reference, x, y, 4)
        assert_same_gradients(pipe, reference)


def test_it_leaves_no_threads():
    with make_pipe(mlp(4)) as pipe:
        x, y = batch(8)
        pipe.step(x, target=y)
        before = threading.active_count()
        for schedule in ("gpipe", "1f1b") * 3:
            pipe.reschedule(schedule)
            pipe.step(x, target=y)
        assert threading.active_count() == before


def test_a_closed_pipeline_and_one_in_a_step_refuse():
    refusals = []

    def loss(output, target):
        if not refusals:
            with pytest.raises(ValueError, match="is running a step"):
                pipe.reschedule("gpipe")
            refusals.append(True)
        return mse(output, target)

    x, y = batch(8)
    with pipert.Pipeline(pipert.split(mlp(4), 2), num_microbatches=4, loss_fn=loss) as pipe:
        pipe.step(x, target=y)
        assert refusals
        assert pipe.schedule.name == "1f1b"
    with pytest.raises(ValueError, match="closed"):
        pipe.reschedule("gpipe")
