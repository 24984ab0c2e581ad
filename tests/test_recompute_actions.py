"""R in a schedule: the forward runs again where it says so, and ranks hold what it promises."""

import copy

import pytest
import torch
from plain_loop import assert_same_gradients, batch, plain_loop, same_bits
from torch import nn

import pipert
from pipert import Action, Schedule

pytestmark = pytest.mark.timeout(90)
mse = nn.functional.mse_loss
WIDTH, ROWS = 64, 512  # no small stage
TENSOR = WIDTH * ROWS * 4


def with_recompute(schedule, stages=None, ahead=0):
    """R so many actions before each backward, but not before its forward."""
    ranks = []
    for actions in schedule.actions:
        made = []
        for action in actions:
            if action.kind in "BI" and (stages is None or action.stage in stages):
                at = max(0, len(made) - ahead)
                forward = made.index(Action("F", action.stage, action.microbatch))
                made.insert(max(at, forward + 1), Action("R", action.stage, action.microbatch))
            made.append(action)
        ranks.append(made)
    return Schedule(ranks, placement=schedule.placement, num_microbatches=schedule.num_microbatches)


class Counting(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layers(x)


def stages_of(count, width=8):
    torch.manual_seed(0)
    return [Counting(width) for _ in range(count)]


@pytest.mark.parametrize("offload", [None, 0, 1])
@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize(
    ("name", "ranks", "stages"),
    [("gpipe", 3, 3), ("1f1b", 3, 3), ("zb_h1", 3, 3), ("interleaved_1f1b", 2, 4)],
)
def test_gradients_equal_plain_loop_bit_for_bit(name, ranks, stages, ahead, offload):
    schedule = Schedule.build(name, num_ranks=ranks, num_stages=stages, num_microbatches=6)
    schedule = with_recompute(schedule, {0, 1}, ahead)
    if offload is not None:
        schedule = schedule.with_offload(ahead=offload)
    assert schedule.verify().ok, schedule.verify().message
    made = stages_of(stages)
    reference = nn.Sequential(*copy.deepcopy(made))
    x, y = batch(18)
    with pipert.Pipeline(made, schedule=schedule, num_microbatches=6, loss_fn=mse) as pipe:
        for _ in range(2):
            result = pipe.step(x, target=y)
            assert same_bits(result.losses, plain_loop(reference, x, y, 6))
            assert_same_gradients(pipe, reference)
        promised = [program.peak_activations for program in pipe.program]
        assert [rank.peak_activations for rank in pipe.report().memory] == promised
    assert [stage.calls for stage in made] == [24, 24, *[12] * (stages - 2)]


def test_only_inputs_are_kept_until_activations_are_computed_again():
    schedule = Schedule.build("gpipe", num_ranks=2, num_microbatches=4)
    kept = {}
    for again in (False, True):
        chosen = with_recompute(schedule) if again else schedule
        with pipert.Pipeline(
            stages_of(2, WIDTH),
            schedule=chosen,
            num_microbatches=4,
            loss_fn=lambda output, _: output.sum(),
            measure_memory=True,
        ) as pipe:
            x, y = batch(ROWS * 4, WIDTH)
            pipe.step(x, target=y)
            pipe.step(x, target=y)
            kept[again] = pipe.report().memory
    # tanh saves its output, and so does the layer behind it: one tensor. The second stage's input
    # is the rank's own, that of the first is the batch.
    assert [rank.kept_bytes // TENSOR for rank in kept[False]] == [4, 8]
    assert [rank.kept_bytes // TENSOR for rank in kept[True]] == [1, 5]
    assert [rank.predicted_bytes // TENSOR for rank in kept[True]] == [1, 5]
    assert [rank.peak_activations for rank in kept[True]] == [1, 1]


def test_inputs_that_are_kept_alone_go_to_the_host_too():
    schedule = with_recompute(Schedule.build("gpipe", num_ranks=2, num_microbatches=4))
    with pipert.Pipeline(
        stages_of(2, WIDTH),
        schedule=schedule.with_offload(ahead=0),
        num_microbatches=4,
        loss_fn=lambda output, _: output.sum(),
        measure_memory=True,
    ) as pipe:
        x, y = batch(ROWS * 4, WIDTH)
        pipe.step(x, target=y)
        pipe.step(x, target=y)
        memory = pipe.report().memory
    assert memory[1].kept_bytes // TENSOR <= 2
