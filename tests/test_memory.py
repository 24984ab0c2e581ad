"""What a report says of memory: measured on each rank, beside what the schedule predicts."""

import pytest
import torch
from plain_loop import batch, mlp
from torch import nn

import pipert
from pipert import Schedule

pytestmark = pytest.mark.timeout(90)
mse = nn.functional.mse_loss
WIDTH, ROWS = 64, 512
TENSOR = WIDTH * ROWS * 4  # bytes of one microbatch between two layers: no small stage
NUMBER = 4  # bytes of a loss, which stays, and of its weight, which goes with the backward


def linears(num_stages):
    """Each stage keeps its input, and what lies between its two layers; its output is sent."""
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(num_stages)
    ]


def pipeline(schedule, stages=None, **options):
    options = {"loss_fn": mse, "measure_memory": True, **options}
    return pipert.Pipeline(
        stages or linears(schedule.num_stages),
        schedule=schedule,
        num_microbatches=schedule.num_microbatches,
        **options,
    )


def memory_of(schedule, steps=2, **options):
    """Of the last step: in the first, gradients are made that stay."""
    x, y = batch(ROWS * schedule.num_microbatches, WIDTH)
    with pipeline(schedule, **options) as pipe:
        for _ in range(steps):
            pipe.step(x, target=y)
        return pipe.report().memory


@pytest.mark.parametrize(
    ("name", "ranks", "stages"),
    [
        ("gpipe", 2, 2),
        ("1f1b", 4, 4),
        ("eager_1f1b", 3, 3),
        ("interleaved_1f1b", 2, 4),
        ("looped_bfs", 2, 4),
        ("hanayo", 2, 4),
        ("zb_h1", 3, 3),
        ("zb_h2", 3, 3),
        ("zb_interleaved", 2, 4),
        ("zb_v", 2, 4),
        ("v_half", 2, 4),
        ("v_min", 2, 4),
    ],
)
def test_as_many_activations_are_held_as_the_schedule_promises(name, ranks, stages):
    schedule = Schedule.build(name, num_ranks=ranks, num_stages=stages, num_microbatches=6)
    for each in (schedule, schedule.with_offload()):
        x, y = batch(12)
        with pipeline(each, pipert.split(mlp(stages), stages), measure_memory=False) as pipe:
            pipe.step(x, target=y)
            memory = pipe.report().memory
            promised = [program.peak_activations for program in pipe.program]
        assert [rank.peak_activations for rank in memory] == promised
        assert [rank.predicted_activations for rank in memory] == promised
        assert all(rank.peak_bytes is None for rank in memory)


@pytest.mark.parametrize("microbatches", [4, 8])
def test_bytes_of_1f1b_are_those_that_were_predicted_on_every_rank(microbatches):
    schedule = Schedule.build("1f1b", num_ranks=3, num_microbatches=microbatches)
    memory = memory_of(schedule)
    # The first stage's input is the batch, which is the user's. The last one's output is what the
    # loss saved.
    tensors = [3 * 1, 2 * 2, 1 * 3]
    numbers = [0, 0, (microbatches + 1) * NUMBER]
    assert [rank.kept_bytes for rank in memory] == [
        count * TENSOR + number for count, number in zip(tensors, numbers, strict=True)
    ]
    assert [rank.predicted_bytes for rank in memory] == [
        3 * TENSOR,
        2 * 2 * TENSOR,
        3 * TENSOR + 2 * NUMBER,
    ]


@pytest.mark.parametrize(("name", "per_rank"), [("gpipe", 1), ("interleaved_1f1b", 2)])
def test_bytes_of_whole_backwards_are_those_that_were_predicted(name, per_rank):
    schedule = Schedule.build(name, num_ranks=2, num_stages=2 * per_rank, num_microbatches=4)
    memory = memory_of(schedule)
    numbers = 4 * NUMBER  # losses stay until the next step
    for rank in memory:
        assert 0 <= rank.kept_bytes - rank.predicted_bytes <= numbers
        assert rank.kept_bytes < rank.peak_bytes < rank.kept_bytes + 4 * TENSOR


def test_with_offload_as_much_less_is_kept_as_predicted():
    schedule = Schedule.build("gpipe", num_ranks=2, num_microbatches=6)
    before = memory_of(schedule)
    after = memory_of(schedule.with_offload(ahead=0))
    for rank in range(2):
        assert before[rank].kept_bytes >= 6 * TENSOR
        # One that is being made or used, and what is on its way to the other rank.
        assert after[rank].kept_bytes <= 4 * TENSOR
        assert after[rank].predicted_bytes <= 3 * TENSOR + 12 * NUMBER


def test_split_backwards_free_what_only_inputs_need():
    """From I to W nothing is left of functions between two layers with weights."""
    between = 6
    torch.manual_seed(0)
    stages = [
        nn.Linear(WIDTH, WIDTH),
        nn.Sequential(
            nn.Linear(WIDTH, WIDTH),
            *(nn.Tanh() for _ in range(between)),
            nn.Linear(WIDTH, WIDTH),
        ),
    ]
    microbatches = 4
    schedule = Schedule(
        [
            [f"0{kind}{m}" for kind in "FIW" for m in range(microbatches)],
            [f"1{kind}{m}" for m in range(microbatches) for kind in "FI"]
            + [f"1W{m}" for m in range(microbatches)],
        ]
    )
    last = memory_of(schedule, stages=stages)[1]
    forward = 1 + between + 1  # the input, what each function gave, and what the loss saved
    waiting = 2 + 2  # each layer's input and gradient
    tensors = (microbatches - 1) * waiting + forward
    assert 0 <= last.kept_bytes - tensors * TENSOR <= (microbatches + 1) * NUMBER
    assert 0 <= last.predicted_bytes - tensors * TENSOR <= (microbatches + 1) * NUMBER


def test_messages_on_their_way_take_what_the_slots_allow():
    schedule = Schedule.build("gpipe", num_ranks=2, num_microbatches=6)
    for slots, most in [(None, 6), (4, 4), (1, 1)]:
        first, last = memory_of(schedule, send_slots=slots, measure_memory=False)
        # No gradient comes back before the last activation has left.
        assert first.transfer_bytes == most * TENSOR
        assert TENSOR <= last.transfer_bytes <= most * TENSOR
        for rank in (first, last):
            assert 0 < rank.predicted_transfer_bytes <= 6 * TENSOR


@pytest.mark.parametrize(
    ("name", "ranks", "stages"),
    [
        ("1f1b", 3, 3),
        ("zb_h1", 3, 3),
        ("zb_v", 2, 4),
        ("dualpipe", 2, 4),
        ("dualpipe_v", 2, 4),
        ("chimera", 2, 4),
    ],
)
def test_messages_are_gone_no_sooner_than_they_can_be(name, ranks, stages):
    """And where stages wait for nothing else, in a prediction, each is read at once."""
    schedule = Schedule.build(name, num_ranks=ranks, num_stages=stages, num_microbatches=4)
    x, y = batch(12)
    modules = pipert.split(mlp(stages), stages // schedule.placement.num_copies)
    with pipeline(schedule, modules, measure_memory=False) as pipe:
        pipe.step(x, target=y)
        trace, report = pipe.trace(), pipe.report()
    message = next(event.bytes for event in trace.events if event.kind == "send")
    for rank in report.memory:
        assert rank.transfer_bytes % message == 0
        assert rank.predicted_transfer_bytes % message == 0
        assert message <= rank.transfer_bytes <= 4 * ranks * message
    lines = str(report).splitlines()
    [at] = [i for i, line in enumerate(lines) if line.startswith("rank  activations")]
    assert lines[at].split("  ")[-2:] == ["transfer MB", "predicted MB"]
    assert len(lines[at + 1].split()) == 5


def test_what_is_kept_does_not_grow_with_the_number_of_microbatches():
    def kept(microbatches):
        schedule = Schedule.build("1f1b", num_ranks=2, num_microbatches=microbatches)
        memory = memory_of(schedule, loss_fn=lambda output, _: output.sum())
        return [rank.kept_bytes - (rank.rank == 1) * microbatches * NUMBER for rank in memory]

    assert kept(4) == kept(16)


def test_gradients_that_a_step_makes_count():
    schedule = Schedule.build("gpipe", num_ranks=1, num_microbatches=1)
    first, second = (memory_of(schedule, steps)[0] for steps in (1, 2))
    weights = 2 * (WIDTH * WIDTH + WIDTH) * 4
    assert first.peak_bytes >= second.peak_bytes
    assert first.kept_bytes >= weights
    assert second.kept_bytes == 2 * TENSOR + 2 * NUMBER


def test_a_profiler_takes_the_place_of_the_measurement():
    schedule = Schedule.build("gpipe", num_ranks=2, num_microbatches=2)
    x, y = batch(8, WIDTH)
    with pipeline(schedule) as pipe:
        with torch.profiler.profile(profile_memory=True):
            pipe.step(x, target=y)
        for rank in pipe.report().memory:
            assert rank.peak_bytes is rank.kept_bytes is rank.predicted_bytes is None
            assert rank.peak_activations == 2
        pipe.step(x, target=y)
        assert all(rank.peak_bytes > 0 for rank in pipe.report().memory)


class Profiled(nn.Module):
    """Asks for a profiler, and may use one, while memory is measured."""

    def __init__(self, use):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.use = use
        self.enabled = []

    def forward(self, x):
        self.enabled.append(torch.autograd._profiler_enabled())
        with torch.profiler.record_function("mine"):
            x = self.linear(x)
        if self.use:
            with torch.autograd.profiler.profile():
                x = x * 2
        return x


def test_a_stage_sees_no_profiler_and_is_told_that_it_can_not_start_one():
    schedule = Schedule.build("gpipe", num_ranks=1, num_microbatches=2)
    x, y = batch(8, WIDTH)
    stage = Profiled(use=False)
    with pipeline(schedule, [stage]) as pipe:
        pipe.step(x, target=y)
        assert pipe.report().memory[0].peak_bytes > 0
        assert stage.enabled == [False] * 2
        stage.use = True
        with pytest.raises(pipert.PipelineError, match="Profiler is already enabled"):
            pipe.step(x, target=y)
    with pipeline(schedule, [stage], measure_memory=False) as pipe:
        pipe.step(x, target=y)


def test_a_report_prints_what_was_measured_beside_what_was_predicted():
    schedule = Schedule.build("1f1b", num_ranks=2, num_microbatches=4)
    x, y = batch(ROWS * 4, WIDTH)
    with pipeline(schedule) as pipe:
        pipe.step(x, target=y)
        pipe.step(x, target=y)
        report = pipe.report()
    lines = str(report).splitlines()[-4:-1]
    assert lines[0].split("  ") == [
        *("rank", "activations", "predicted", "transfer MB", "predicted MB"),
        *("peak MB", "kept MB", "activations predicted MB"),
    ]
    first = report.memory[0]
    sizes = [first.transfer_bytes, first.predicted_transfer_bytes, first.peak_bytes]
    assert lines[1].split() == [
        *("0", "2", "2"),
        *(f"{size / 1e6:.3f}" for size in (*sizes, 2 * TENSOR, 2 * TENSOR)),
    ]
    assert len({len(line) for line in lines}) == 1


def test_an_evaluation_has_no_memory_to_report():
    schedule = Schedule.build("1f1b", num_ranks=2, num_microbatches=2)
    x, y = batch(8, WIDTH)
    with pipeline(schedule) as pipe:
        pipe.evaluate(x, target=y)
        assert pipe.report().memory == []


def test_a_report_says_that_its_prediction_knows_nothing_of_recompute():
    x, y = batch(12)
    schedule = Schedule.build("gpipe", num_ranks=2, num_microbatches=6)
    with pipeline(schedule, pipert.split(mlp(2), 2), recompute=[1]) as pipe:
        pipe.step(x, target=y)
        report = pipe.report()
    assert report.recomputed == [1]
    assert [rank.predicted_activations for rank in report.memory] == [6, 6]
    assert report.memory[1].peak_activations < 6
    note = "recompute of stages 1: activations are predicted as if nothing were recomputed"
    assert str(report).splitlines()[-1] == note
