"""Captured actions: each action of a rank's pass is a graph, launched in the action's place.

Here with one rank, in a group of its own; tests/distributed has more. Without a CUDA device graphs
are those of recorded_cpu.py.
"""

import traceback

import pytest
import torch
import torch.distributed as dist
from plain_loop import assert_same_gradients, batch, mlp, plain_loop, same_bits, twins
from recorded_cpu import CpuGraph, graphs_on_cpu
from torch import nn
from wired import PlainLoop, ids_and_mask, wired_stages

import pipert
from pipert.captured import MAX_RECORDINGS, NUM_WARMUPS
from pipert.captured.refusals import refusal_of_actions

pytestmark = pytest.mark.timeout(120)
mse = nn.functional.mse_loss


@pytest.fixture(scope="module")
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture
def pool(monkeypatch):
    return graphs_on_cpu(monkeypatch)


@pytest.fixture
def pipeline(group, pool):
    pipes = []

    def make(model, *, num_stages=2, schedule="interleaved_1f1b", **options):
        stages = pipert.split(model, num_stages) if isinstance(model, nn.Module) else model
        pipe = pipert.Pipeline(
            stages,
            schedule=schedule,
            num_microbatches=4,
            stage_kind="captured",
            group=group,
            **{"loss_fn": mse, **options},
        )
        pipes.append(pipe)
        return pipe

    yield make
    for pipe in pipes:
        pipe.close()


class Counts(nn.Module):
    """Knows how often its Python code ran."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.num_calls = 0

    def forward(self, x):
        self.num_calls += 1
        return torch.tanh(self.inner(x))


def steps(pipe, reference, count, *, set_to_none=True, rows=8, seed=0):
    """As many steps of both, compared bit for bit."""
    ours = torch.optim.SGD(pipe.parameters(), lr=0.1)
    theirs = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step in range(count):
        x, y = batch(rows, seed=seed + step)
        result = pipe.step(x, target=y)
        assert same_bits(result.losses, plain_loop(reference, x, y, 4))
        assert_same_gradients(pipe, reference)
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_replayed_actions_have_the_bits_of_the_plain_loop_and_run_no_python(pipeline, set_to_none):
    model, reference = twins(lambda: nn.Sequential(*(Counts() for _ in range(4))))
    pipe = pipeline(model)
    # The first step has no gradients to add to: with zeros in their place the next is another kind.
    steps(pipe, reference, NUM_WARMUPS + 2, set_to_none=set_to_none)
    before = model[0].num_calls
    steps(pipe, reference, 5, set_to_none=set_to_none, seed=50)
    assert pipe.stage_kinds == {0: "captured", 1: "captured"}
    assert model[0].num_calls == before
    assert pipe._captured.num_replays > 0


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "zb_interleaved"])
def test_gradients_add_up_over_replayed_steps(pipeline, schedule):
    model, reference = twins(mlp, 4)
    pipe = pipeline(model, schedule=schedule)
    for step in range(3 * NUM_WARMUPS + 5):
        x, y = batch(9, seed=step)
        result = pipe.step(x, target=y)
        assert same_bits(result.losses, plain_loop(reference, x, y, 4))
        assert_same_gradients(pipe, reference)
    assert pipe._captured.num_replays > 0


def test_dropout_draws_what_modules_would_and_anew_in_each_replay(pipeline):
    model, reference = twins(
        lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.5))
    )
    pipe = pipeline(model, num_stages=1, schedule="1f1b")
    x, y = batch(8)
    losses = []
    for _ in range(NUM_WARMUPS + 4):
        state = torch.get_rng_state()
        losses.append(pipe.step(x, target=y).losses)
        torch.set_rng_state(state)  # the loop draws the same, and leaves other numbers for the next
        assert same_bits(losses[-1], plain_loop(reference, x, y, 4))
        assert_same_gradients(pipe, reference)
        for parameter in (*pipe.parameters(), *reference.parameters()):
            parameter.grad = None
    assert pipe._captured.num_replays == 3
    assert len({tuple(one.tolist()) for one in losses}) == len(losses)


def test_memory_is_used_again_as_in_a_pass_that_runs_as_it_is(pipeline, monkeypatch):
    """With more microbatches in flight at a time it takes more."""
    pools = {}
    for schedule in ("1f1b", "gpipe"):  # one in flight, and all four
        pools[schedule] = graphs_on_cpu(monkeypatch)
        model, reference = twins(mlp, 4)
        pipe = pipeline(model, num_stages=1, schedule=schedule)
        steps(pipe, reference, NUM_WARMUPS + 3)
        assert pipe._captured.num_replays == 2
        assert pools[schedule].num_reused > 0
    assert 0 < pools["1f1b"].num_blocks < pools["gpipe"].num_blocks


@pytest.mark.parametrize("is_cut", [False, True])
def test_outputs_are_the_callers_own(pipeline, is_cut):
    model, reference = twins(mlp, 4)
    pipe = pipeline(model)
    kept = []
    for step in range(NUM_WARMUPS + 4):
        x, y = batch(8, seed=step)
        if is_cut:
            pieces = {"microbatches": list(x.tensor_split(4)), "target": list(y.tensor_split(4))}
            result = pipe.evaluate(return_outputs=True, **pieces)
            outputs = torch.cat(result.outputs)
        else:
            result = pipe.evaluate(x, target=y, return_outputs=True)
            outputs = result.outputs
        kept.append((outputs, result.losses, x, y))
    assert pipe._captured.num_replays == 3
    with torch.no_grad():
        for outputs, losses, x, y in kept:
            pieces = [reference(piece) for piece in x.tensor_split(4)]
            assert same_bits(outputs, torch.cat(pieces))
            expected = [mse(a, b) for a, b in zip(pieces, y.tensor_split(4), strict=True)]
            assert same_bits(losses, torch.stack(expected))


def test_other_shapes_have_recordings_of_their_own_within_a_bound(pipeline):
    model, reference = twins(mlp, 2)
    pipe = pipeline(model)
    for rows in range(8, 8 + 4 * (MAX_RECORDINGS + 2), 4):
        steps(pipe, reference, NUM_WARMUPS + 2, rows=rows)
        assert pipe._captured.reason is None
    assert pipe._captured.num_recordings == MAX_RECORDINGS
    replays = pipe._captured.num_replays
    steps(pipe, reference, 1, rows=rows)
    assert pipe._captured.num_replays == replays + 1
    pipe.forget_captured()
    assert pipe._captured.num_recordings == 0
    steps(pipe, reference, NUM_WARMUPS + 2)


def test_a_module_that_changes_its_mode_is_noticed(pipeline):
    model, reference = twins(
        lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Tanh())
    )
    pipe = pipeline(model)
    for training in (True, False, True):
        pipe.train(training)
        reference.train(training)
        steps(pipe, reference, NUM_WARMUPS + 2, rows=16)
        for name, mine in model.named_buffers():
            assert same_bits(mine, dict(reference.named_buffers())[name]), name


def test_a_checkpoint_in_between_is_seen(pipeline):
    model, reference = twins(mlp, 4)
    pipe = pipeline(model)
    steps(pipe, reference, NUM_WARMUPS + 2)
    for assign in (False, True):
        other = mlp(4, seed=9).state_dict()
        reference.load_state_dict({name: value.clone() for name, value in other.items()})
        if assign:
            model.load_state_dict(other, assign=True)
        else:
            pipe.load_state_dict(other)
        steps(pipe, reference, NUM_WARMUPS + 2)
        assert pipe._captured.reason is None


def test_frozen_parameters_stay_as_they_are(pipeline):
    model, reference = twins(mlp, 4)
    for parameter in (*model[2].parameters(), *reference[2].parameters()):
        parameter.requires_grad_(False)
    pipe = pipeline(model)
    steps(pipe, reference, NUM_WARMUPS + 3)
    assert pipe._captured.reason is None


def test_main_gradients_add_up_over_replayed_steps(pipeline):
    model, reference = twins(mlp, 4)
    pipe = pipeline(model, main_grads=True)
    for step in range(NUM_WARMUPS + 4):
        x, y = batch(8, seed=step)
        pipe.step(x, target=y)
        plain_loop(reference, x, y, 4)
        for (name, ours), theirs in zip(
            pipe.named_parameters(), reference.parameters(), strict=True
        ):
            assert ours.grad is None
            assert same_bits(ours.main_grad, theirs.grad), name
    assert pipe._captured.num_replays > 0


class Syncs(nn.Module):
    def forward(self, x):
        return x * (1 if x.sum().item() < 1e9 else 2)


class SyncsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 if gradient.sum().item() < 1e9 else 2)


class InBackward(nn.Module):
    def forward(self, x):
        return SyncsBackward.apply(x)


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "zb_interleaved"])
@pytest.mark.parametrize("layer", [Syncs, InBackward])
def test_what_cannot_be_recorded_runs_as_it_is_and_says_why(pipeline, layer, schedule):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), layer(), nn.Linear(8, 8))

    model, reference = build(), build()
    pipe = pipeline(pipert.split(model, at=["2"]), schedule=schedule)
    steps(pipe, reference, NUM_WARMUPS + 4)
    assert pipe._captured.num_replays == 0
    assert pipe.stage_kinds[1] == (
        "module: it can't be recorded: RuntimeError: operation not permitted when stream is "
        "capturing (_local_scalar_dense)"
    )
    assert "operation not permitted" in str(pipe.report())


def test_a_weight_half_that_cannot_be_recorded_fails_once_and_then_runs_as_it_is(pipeline):
    """On the first stage, whose whole backward is its weight half."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), InBackward(), nn.Tanh(), nn.Linear(8, 8))
    pipe = pipeline([model[:3], model[3:]], schedule="zb_interleaved")
    x, y = batch(8)
    for _ in range(NUM_WARMUPS):
        losses = pipe.step(x, target=y).losses
        model.zero_grad()
    with pytest.raises(
        pipert.PipelineError, match=r"can't be recorded.*can't be run again"
    ) as failure:
        pipe.step(x, target=y)
    own = failure.value.__cause__.__cause__
    assert "operation not permitted" in str(own)
    assert "in backward" in "".join(traceback.format_tb(own.__traceback__))
    model.zero_grad()
    for _ in range(2):
        assert same_bits(pipe.step(x, target=y).losses, losses)
        model.zero_grad()
    assert "can't be recorded" in pipe._captured.reason


def test_an_output_that_means_other_numbers_than_its_memory_has_is_not_recorded(pipeline):
    class Negates(nn.Module):
        def forward(self, x):
            return torch.complex(x, x).conj().imag  # a view of x with a mark

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), Negates(), nn.Linear(8, 8), nn.Tanh())

    model, reference = build(), build()
    pipe = pipeline(pipert.split(model, at=["2"]))
    steps(pipe, reference, NUM_WARMUPS + 3)
    assert "can't be copied out of a recording" in pipe._captured.reason


def test_weights_that_no_module_has_are_trained_as_ever(pipeline):
    torch.manual_seed(0)
    hidden = nn.Linear(8, 8)

    class Borrows(nn.Module):
        def forward(self, x):
            return hidden(x)

    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), Borrows(), nn.Tanh())
    pipe = pipeline(pipert.split(model, at=["2"]))
    for step in range(NUM_WARMUPS + 3):
        x, y = batch(8, seed=step)
        pipe.step(x, target=y)
        ours = [parameter.grad for parameter in (*model.parameters(), *hidden.parameters())]
        model.zero_grad()
        hidden.zero_grad()
        plain_loop(model, x, y, 4)
        theirs = [parameter.grad for parameter in (*model.parameters(), *hidden.parameters())]
        assert all(same_bits(*pair) for pair in zip(ours, theirs, strict=True))
        model.zero_grad()
        hidden.zero_grad()
    assert "no parameter of a stage's module" in pipe._captured.reason


def test_outputs_of_a_pass_that_gave_up_recording_stay_as_they_are(pipeline):
    class Wide(nn.Module):
        def forward(self, x):
            if torch.is_grad_enabled():
                return x
            return torch.stack([x * i for i in range(8)]).mean(0)  # much memory for others to use

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), Wide(), InBackward(), nn.Linear(8, 8))
    pipe = pipeline(model, num_stages=1, schedule="gpipe")
    x, y = batch(8)
    for _ in range(NUM_WARMUPS + 1):
        pipe.evaluate(x, target=y)
    pieces = {"microbatches": list(x.tensor_split(4)), "target": list(y.tensor_split(4))}
    for _ in range(NUM_WARMUPS + 1):
        outputs = pipe.step(return_outputs=True, **pieces).outputs
        model.zero_grad()
    assert "operation not permitted" in pipe._captured.reason
    before = [output.clone() for output in outputs]
    pipe.evaluate(x + 1, target=y)
    assert pipe._captured.reason is None
    assert all(same_bits(*pair) for pair in zip(outputs, before, strict=True))


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "zb_interleaved"])
def test_a_backward_whose_recording_breaks_at_its_end_fails_once(
    pipeline, monkeypatch, schedule, error
):
    """It has run, and left nothing to begin with; what came of it was never computed."""
    end = CpuGraph.end

    def break_backwards(graph):
        end(graph)
        if any("tanh_backward" in str(call[0]) for call in graph._calls):
            raise error("broken")

    monkeypatch.setattr(CpuGraph, "end", break_backwards)
    model, reference = twins(mlp, 4)
    pipe = pipeline(model, schedule=schedule)
    steps(pipe, reference, NUM_WARMUPS)
    x, y = batch(8)
    with pytest.raises(pipert.PipelineError, match=r"can't be recorded.*can't be run again"):
        pipe.step(x, target=y)
    model.zero_grad()
    steps(pipe, reference, NUM_WARMUPS + 2)
    assert "broken" in pipe._captured.reason


def test_a_buffer_that_is_replaced_keeps_a_pass_from_being_recorded(pipeline):
    class Average(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(8))

        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            return x + self.mean

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), Average(), nn.Linear(8, 8), nn.Tanh())

    model, reference = build(), build()
    pipe = pipeline(model)
    steps(pipe, reference, 2 * NUM_WARMUPS + 2)
    assert pipe._captured.num_recordings == 0
    assert same_bits(model[1].mean, reference[1].mean)


def test_a_failure_of_the_users_code_is_raised_as_ever(pipeline):
    class Fails(nn.Module):
        fails = False

        def forward(self, x):
            if self.fails:
                raise KeyError("mine")
            return x

    model = nn.Sequential(nn.Linear(8, 8), Fails(), nn.Linear(8, 8), nn.Tanh())
    pipe = pipeline(model)
    x, y = batch(8)
    for _ in range(NUM_WARMUPS):
        pipe.step(x, target=y)
        model.zero_grad()
    Fails.fails = True
    with pytest.raises(pipert.PipelineError) as raised:
        pipe.step(x, target=y)
    assert isinstance(raised.value.__cause__, KeyError)
    Fails.fails = False
    model.zero_grad()
    for _ in range(2):
        pipe.step(x, target=y)
        model.zero_grad()
    assert pipe._captured.num_replays == 1  # it says nothing against recording


def test_a_trace_shows_replayed_actions(pipeline):
    model, reference = twins(mlp, 4)
    pipe = pipeline(model)
    steps(pipe, reference, NUM_WARMUPS + 3)
    assert pipe._captured.reason is None
    actions = [str(event.action) for event in pipe.trace().events if event.action is not None]
    assert {"0F0", "1B3"} <= set(actions)


CPU = {0: torch.device("cpu")}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"kinds": ["captured", "native"]}, "some stages are 'native'"),
        ({"devices": {0: torch.device("meta")}}, "only a CUDA device"),
        ({"in_use": {"rng_seed": True}}, "rng_seed"),
        ({"in_use": {"copies": True}}, "copies"),
        ({"in_use": {"ties": True}}, "in several processes share are added up by the host (ties)"),
        ({"in_use": {"device_times": True}}, None),
    ],
)
def test_what_speaks_against_recording_is_known_beforehand(pool, change, reason):
    given = {"kinds": ["captured"], "devices": CPU, "in_use": {}} | change
    found = refusal_of_actions(**given, recording_types=["cpu"])
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize("waits", [False, True])
def test_casts_that_autocast_keeps_are_those_of_the_pass(pipeline, waits):
    """A recording that fails may have left casts that were never computed."""

    def build():
        torch.manual_seed(0)
        last = [Syncs()] if waits else []
        return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), *last)

    model, reference = build(), build()
    pipe = pipeline(pipert.split(model, at=["2"]))
    with torch.autocast("cpu", torch.bfloat16):
        steps(pipe, reference, NUM_WARMUPS + 4)
    assert (pipe._captured.num_replays == 0) == waits


# --- losses and names -----------------------------------------------------------------------------


def test_metrics_are_those_of_the_replayed_actions(pipeline):
    def loss_fn(output, target):
        return mse(output, target), {"worst": (output - target).abs().max(), "rows": len(output)}

    model, reference = twins(mlp, 4)
    pipe = pipeline(model, loss_fn=loss_fn)
    for step in range(NUM_WARMUPS + 4):
        x, y = batch(10, seed=step)
        metrics = pipe.evaluate(x, target=y).metrics
        pieces = zip(x.tensor_split(4), y.tensor_split(4), strict=True)
        worst = [loss_fn(reference(a), b)[1]["worst"].detach() for a, b in pieces]
        assert same_bits(metrics["worst"], torch.stack(worst))
        assert metrics["rows"].tolist() == [3, 3, 2, 2]
    assert pipe._captured.num_replays > 0


def test_weights_of_losses_are_part_of_what_is_recorded(pipeline):
    model, reference = twins(mlp, 4)
    pipe = pipeline(model)
    for step in range(NUM_WARMUPS + 4):
        x, y = batch(8, seed=step)
        for weights in ([1.0, 0.5, 0.25, 2.0], [0.5, 0.0, 1.0, 1.0]):
            for p in (*pipe.parameters(), *reference.parameters()):
                p.grad = None
            pipe.step(x, target=y, loss_weights=weights)
            pieces = zip(x.tensor_split(4), y.tensor_split(4), weights, strict=True)
            for inputs, target, weight in pieces:
                loss = mse(reference(inputs), target)
                if weight:
                    loss.backward(torch.full_like(loss, weight))
            assert_same_gradients(pipe, reference)
    assert pipe._captured.num_replays > 0


@pytest.mark.parametrize("is_cut", [False, True])
def test_actions_of_wired_stages_are_replayed_with_arguments_by_name(group, pool, is_cut):
    stages = wired_stages()
    loop = PlainLoop(stages)
    with pipert.Pipeline(
        stages,
        schedule=pipert.Schedule.build(
            "interleaved_1f1b", num_ranks=1, num_stages=3, num_microbatches=2
        ),
        num_microbatches=2,
        loss_fn=lambda output: output.square().mean(),
        stage_kind="captured",
        group=group,
    ) as pipe:
        for step in range(NUM_WARMUPS + 4):
            ids, mask = ids_and_mask(4, seed=step)
            pieces = list(zip(ids.split(2), mask.split(2), strict=True))
            for stage in (*stages, *loop.stages):
                stage.zero_grad()
            if is_cut:
                pipe.step(microbatches=[pipert.Microbatch((i,), {"mask": m}) for i, m in pieces])
            else:
                pipe.step(ids, mask=mask)
            loop.step([(piece, {}) for piece in pieces], lambda output, _: output.square().mean())
            loop.assert_same_gradients(pipe)
        assert pipe._captured.num_replays > 0, pipe._captured.reason
