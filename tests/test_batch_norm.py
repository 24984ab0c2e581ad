"""Batch norm's running statistics: microbatch by microbatch, or deferred to the whole batch."""

import copy

import pytest
import torch
from plain_loop import batch, plain_loop, same_bits
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(60)
MICROBATCHES = 4
mse = nn.functional.mse_loss

SCHEDULES = [
    ("gpipe", 2, {}),
    ("1f1b", 2, {}),
    ("zb_h1", 2, {}),
    ("interleaved_1f1b", 4, {"num_ranks": 2}),
    ("looped_bfs", 4, {"num_ranks": 2}),
    ("zb_v", 4, {"num_ranks": 2}),
    ("dualpipe_v", 4, {"num_ranks": 2}),
]
COPIES = [("dualpipe", 2, {}), ("chimera", 2, {})]


def layers(count=4, **options):
    torch.manual_seed(0)
    pairs = [m for _ in range(count) for m in (nn.Linear(8, 8), nn.BatchNorm1d(8, **options))]
    return nn.Sequential(*pairs)


def make_pipe(stages, schedule="1f1b", **options):
    default = {"deferred_batch_norm": True, "num_microbatches": MICROBATCHES, "loss_fn": mse}
    return pipert.Pipeline(stages, schedule=schedule, **{**default, **options})


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def inputs_of_norms(model, x):
    """What each norm is given in forwards of the model, microbatch by microbatch."""
    seen = {norm: [] for norm in norms(model)}
    handles = [
        norm.register_forward_pre_hook(lambda norm, args: seen[norm].append(args[0].detach()))
        for norm in seen
    ]
    for piece in x.tensor_split(MICROBATCHES):
        model(piece)
    for handle in handles:
        handle.remove()
    return seen


def whole_batch_loop(model, x, passes=1):
    """The model's norms as a plain forward of the same values in one batch leaves each of them.

    Each is given what its microbatches bring: those are normalised by statistics of their own.
    """
    seen = inputs_of_norms(copy.deepcopy(model), x)
    for norm, pieces in zip(norms(model), seen.values(), strict=True):
        for _ in range(passes):
            norm(torch.cat(pieces))


def assert_close_statistics(model, reference):
    for ours, theirs in zip(norms(model), norms(reference), strict=True):
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)
        assert torch.equal(ours.num_batches_tracked, theirs.num_batches_tracked)


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


# --- deferred -----------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", ["none", "all", "except_last"])
@pytest.mark.parametrize(("schedule", "num_stages", "options"), SCHEDULES + COPIES)
def test_running_statistics_are_those_of_the_whole_batch(schedule, num_stages, options, recompute):
    model = layers()
    reference, loop = copy.deepcopy(model), copy.deepcopy(model)
    x, y = batch(12)
    stages = pipert.split(model, num_stages)
    with make_pipe(stages, schedule, recompute=recompute, **options) as pipe:
        for _ in range(2):
            result = pipe.step(x, target=y)
            losses = plain_loop(loop, x, y, MICROBATCHES)
    assert same_bits(result.losses, losses)
    if schedule != "looped_bfs" and pipe.schedule.placement.num_copies == 1:
        for ours, theirs in zip(model.parameters(), loop.parameters(), strict=True):
            assert same_bits(ours.grad, theirs.grad)
    whole_batch_loop(reference, x, passes=2)
    assert_close_statistics(model, reference)


@pytest.mark.parametrize("momentum", [0.1, 0.9, 1.0, None])
def test_any_momentum_and_none(momentum):
    model = layers(2, momentum=momentum)
    reference = copy.deepcopy(model)
    x, y = batch(12)
    with make_pipe(pipert.split(model, 2)) as pipe:
        for _ in range(3):
            pipe.step(x, target=y)
    whole_batch_loop(reference, x, passes=3)
    assert_close_statistics(model, reference)
    assert [norm.momentum for norm in norms(model)] == [momentum] * 2


def test_the_first_norm_is_the_plain_models_on_the_whole_batch():
    """Only of the first layer is the input the same as that of the whole batch."""
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 8))
    reference = copy.deepcopy(model)
    x, y = batch(13)
    with make_pipe(pipert.split(model, 2)) as pipe:
        pipe.step(x, target=y)
    reference(x)
    assert_close_statistics(model, reference)


def test_images_of_uneven_microbatches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten())
    reference = copy.deepcopy(model)
    x = torch.randn(10, 3, 6, 6) * 3 + 1000.0  # large means: sums of squares would lose digits
    with make_pipe([model[:2], model[2:]], loss_fn=None) as pipe:
        pipe(x)
    reference(x)
    mean, variance = model[1].running_mean, model[1].running_var
    torch.testing.assert_close(mean, reference[1].running_mean)
    torch.testing.assert_close(variance, reference[1].running_var, rtol=1e-4, atol=1e-5)


def test_float16_batches_have_statistics_in_float32():
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8))
    reference = copy.deepcopy(model)
    x, y = batch(12)
    with torch.autocast("cpu", dtype=torch.bfloat16), make_pipe([model[0], model[1]]) as pipe:
        pipe.step(x, target=y)
        reference(x)
    assert model[0].running_mean.dtype == torch.float32
    assert_close_statistics(model, reference)


def test_evaluation_mode_uses_the_statistics_and_keeps_them():
    model = layers(2)
    x, y = batch(12)
    with make_pipe(pipert.split(model, 2)) as pipe:
        pipe.step(x, target=y)
        before = statistics(model)
        pipe.eval()
        output = pipe(x)
        assert same_bits(output, torch.cat([model(p) for p in x.tensor_split(4)]).detach())
        pipe.step(x, target=y)
    assert all(same_bits(now, before[name]) for name, now in model.named_buffers())


def test_a_norm_without_running_statistics_has_none():
    model = layers(2, track_running_stats=False)
    loop = copy.deepcopy(model)
    x, y = batch(12)
    with make_pipe(pipert.split(model, 2)) as pipe:
        losses = pipe.step(x, target=y).losses
    assert same_bits(losses, plain_loop(loop, x, y, MICROBATCHES))
    assert list(model.buffers()) == []


class Twice(nn.Module):
    """Calls its norm twice."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(self.norm(x) * 3 + 1)


def test_a_norm_that_is_called_twice_is_updated_twice():
    model = nn.Sequential(Twice(), nn.Linear(8, 8))
    reference = copy.deepcopy(model[0].norm)
    x, y = batch(12)
    plain = copy.deepcopy(model)
    seen = []
    plain[0].norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for piece in x.tensor_split(MICROBATCHES):
        plain(piece)
    reference(torch.cat(seen[0::2]))
    reference(torch.cat(seen[1::2]))
    with make_pipe([model[0], model[1]]) as pipe:
        pipe.step(x, target=y)
    assert_close_statistics(model[0], nn.Sequential(reference))


@pytest.mark.filterwarnings("error:Dynamo does not know")
def test_a_compiled_stage_defers_what_it_holds():
    model = layers(2)
    reference = copy.deepcopy(model)
    x, y = batch(12)
    compiled = torch.compile(model[:2], backend="eager")
    with make_pipe([compiled, model[2:]]) as pipe:
        pipe.step(x, target=y)
    whole_batch_loop(reference, x)
    assert_close_statistics(model, reference)


def test_a_lazy_norm_is_made_by_its_first_microbatch():
    model = nn.Sequential(nn.LazyBatchNorm1d(), nn.Linear(8, 8))
    x, y = batch(12)
    with make_pipe([model[0], model[1]]) as pipe:
        pipe.step(x, target=y)
    reference = nn.BatchNorm1d(8)
    reference(x)
    assert_close_statistics(model[0], reference)


def test_a_step_that_fails_leaves_the_statistics_as_they_were():
    model = layers(2)
    reference = copy.deepcopy(model)
    x, y = batch(12)
    calls = []

    def fail_once(_module, _args):
        calls.append(None)
        if len(calls) == 3:
            raise RuntimeError("not today")

    with make_pipe(pipert.split(model, 2)) as pipe:
        handle = model[3].register_forward_pre_hook(fail_once)
        before = statistics(model)
        with pytest.raises(RuntimeError, match="not today"):
            pipe.step(x, target=y)
        assert all(same_bits(now, before[name]) for name, now in model.named_buffers())
        handle.remove()
        pipe.step(x, target=y)
    whole_batch_loop(reference, x)
    assert_close_statistics(model, reference)


def test_outside_of_passes_and_after_it_is_closed_norms_are_as_ever():
    model = layers(2)
    reference = copy.deepcopy(model)
    x, y = batch(12)
    with make_pipe(pipert.split(model, 2)) as pipe:
        model(x)
        reference(x)
        assert_close_statistics(model, reference)
        pipe.step(x, target=y)
    assert not any(norm._forward_hooks or norm._forward_pre_hooks for norm in norms(model))
    assert model.state_dict().keys() == layers(2).state_dict().keys()


def test_hooks_go_with_a_pipeline_that_nobody_closed():
    model = layers(2)
    pipe = make_pipe(pipert.split(model, 2))
    assert all(norm._forward_hooks for norm in norms(model))
    del pipe
    assert not any(norm._forward_hooks for norm in norms(model))


def test_statistics_are_saved_and_loaded_between_steps():
    model, other = layers(2), layers(2)
    x, y = batch(12)
    with make_pipe(pipert.split(model, 2)) as pipe:
        pipe.step(x, target=y)
        state = {name: value.clone() for name, value in pipe.state_dict().items()}
        pipe.step(x, target=y)
    with make_pipe(pipert.split(other, 2)) as pipe:
        pipe.load_state_dict(state)
        pipe.step(x, target=y)
    for ours, theirs in zip(model.buffers(), other.buffers(), strict=True):
        assert same_bits(ours, theirs)


def shared_norm():
    norm = nn.BatchNorm1d(8)
    return [nn.Sequential(nn.Linear(8, 8), norm), nn.Sequential(norm, nn.Linear(8, 8))]


@pytest.mark.parametrize(
    ("stages", "options", "error", "message"),
    [
        (
            lambda: [nn.SyncBatchNorm(8), nn.Linear(8, 8)],
            {},
            ValueError,
            "stage 0 has a SyncBatchNorm, whose statistics are those of several processes",
        ),
        (shared_norm, {}, ValueError, "stages 0 and 1 share a BatchNorm1d, and run on threads"),
        (
            lambda: [nn.Linear(8, 8), nn.BatchNorm1d(8)],
            {"stage_kind": ["native", "native"]},
            ValueError,
            "stage 1 has a BatchNorm1d and is of kind 'native'",
        ),
        (
            lambda: [nn.Linear(8, 8), nn.BatchNorm1d(8)],
            {"deferred_batch_norm": 1},
            TypeError,
            "deferred_batch_norm must be True or False, got 1",
        ),
    ],
    ids=["sync", "shared", "native", "type"],
)
def test_what_can_not_be_deferred_is_refused(stages, options, error, message):
    with pytest.raises(error, match=message):
        make_pipe(stages(), **options)


def test_a_norm_that_stages_of_one_rank_share_is_updated_for_each():
    stages = shared_norm()
    x, y = batch(12)
    with make_pipe(stages, "looped_bfs", num_ranks=1) as pipe:
        pipe.step(x, target=y)
    assert int(stages[0][1].num_batches_tracked) == 2


# --- as the plain loop has them -----------------------------------------------------------------


@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize(("schedule", "num_stages", "options"), SCHEDULES)
def test_without_it_statistics_are_the_plain_loops(schedule, num_stages, options, recompute):
    model = layers()
    loop = copy.deepcopy(model)
    x, y = batch(12)
    options = {"recompute": recompute, "deferred_batch_norm": False, **options}
    with make_pipe(pipert.split(model, num_stages), schedule, **options) as pipe:
        for _ in range(2):
            pipe.step(x, target=y)
            plain_loop(loop, x, y, MICROBATCHES)
    for (name, ours), theirs in zip(model.named_buffers(), loop.buffers(), strict=True):
        assert same_bits(ours, theirs), name
    assert int(norms(model)[0].num_batches_tracked) == 2 * MICROBATCHES
