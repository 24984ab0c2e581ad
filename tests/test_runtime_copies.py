"""Two copies of the model in one process: to whoever holds the model they are one."""

import copy
import threading

import pytest
import torch
from plain_loop import batch, mlp, same_bits, scheduled_loop, twins
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss


def make_pipe(stages, schedule="chimera", microbatches=4, **options):
    return pipert.Pipeline(
        stages,
        schedule=schedule,
        num_microbatches=microbatches,
        loss_fn=options.pop("loss_fn", mse),
        **options,
    )


def test_parameters_and_state_are_those_of_one_model():
    model = mlp(2)
    with make_pipe(pipert.split(model, 2)) as pipe:
        assert list(pipe.parameters()) == list(model.parameters())
        assert dict(pipe.named_parameters()).keys() == dict(model.named_parameters()).keys()
        assert pipe.state_dict().keys() == model.state_dict().keys()
        assert list(pipe.stages) == [0, 1, 2, 3]
        for first, second in ((0, 2), (1, 3)):
            for p, q in zip(
                pipe.stages[first].parameters(), pipe.stages[second].parameters(), strict=True
            ):
                assert p is not q
                assert p.data_ptr() == q.data_ptr()


def test_the_copies_take_no_memory_for_weights():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with make_pipe(list(model)) as pipe:
        storages = {
            p.untyped_storage().data_ptr() for s in pipe.stages.values() for p in s.parameters()
        }
        assert len(storages) == 4


def test_gradients_of_the_second_copy_are_gone_after_a_step():
    x, y = batch(8)
    with make_pipe(pipert.split(mlp(2), 2)) as pipe:
        pipe.step(x, target=y)
        assert all(p.grad is not None for p in pipe.parameters())
        assert all(p.grad is None for s in (2, 3) for p in pipe.stages[s].parameters())


def test_a_gradient_that_was_there_stays_the_same_tensor():
    x, y = batch(8)
    with make_pipe(pipert.split(mlp(2), 2)) as pipe:
        pipe.step(x, target=y)
        before = [p.grad for p in pipe.parameters()]
        pipe.step(x, target=y)
        assert all(p.grad is g for p, g in zip(pipe.parameters(), before, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda module: setattr(module, "weight", nn.Parameter(torch.ones(8, 8))),
        lambda module: setattr(module.weight, "data", torch.ones(8, 8)),
        lambda module: module.load_state_dict(nn.Linear(8, 8).state_dict(), assign=True),
        lambda module: module.weight.requires_grad_(False),
        lambda module: module.weight.register_hook(lambda gradient: gradient * 2),
        lambda module: module.register_forward_hook(lambda _, args, output: output * 2),
        lambda module: module.register_forward_pre_hook(
            lambda _, args, kwargs: ((args[0] * 2,), kwargs), with_kwargs=True
        ),
        lambda module: module.double().float(),
        lambda module: module.eval(),
    ],
    ids=[
        "parameter",
        "data",
        "assign",
        "frozen",
        "hook",
        "forward hook",
        "pre hook",
        "dtype",
        "mode",
    ],
)
def test_what_the_user_changes_in_the_model_changes_in_both_copies(change):
    layers = [nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.0))]
    reference = copy.deepcopy(layers)
    x, y = batch(8)
    with make_pipe(layers) as pipe:
        pipe.step(x, target=y)
        pipe.step(x, target=y)
        torch.manual_seed(5)
        change(layers[0])
        torch.manual_seed(5)
        change(reference[0])
        for p in pipe.parameters():
            p.grad = None
        result = pipe.step(x, target=y)
        whole = nn.Sequential(*reference)
        assert same_bits(result.losses, scheduled_loop(whole, reference, pipe.schedule, x, y))
        for p, q in zip(pipe.parameters(), whole.parameters(), strict=True):
            assert same_bits(p.grad, q.grad)
        assert pipe.stages[2].training == pipe.stages[0].training


def test_post_accumulate_hooks_fire_once_for_each_microbatch():
    model, seen = mlp(2), []
    lock = threading.Lock()

    def hook(parameter):
        with lock:
            seen.append(parameter.shape)

    x, y = batch(8)
    with make_pipe(pipert.split(model, 2)) as pipe:
        model[0].weight.register_post_accumulate_grad_hook(hook)
        pipe.step(x, target=y)
        assert len(seen) == 4


def test_weights_that_stages_share_are_shared_in_each_copy():
    tied = nn.Linear(8, 8)
    first, last = nn.Sequential(tied, nn.Tanh()), nn.Sequential(nn.Tanh(), tied)
    reference = copy.deepcopy(nn.Sequential(first, last))
    x, y = batch(8)
    with make_pipe([first, last]) as pipe:
        assert pipe.stages[2][0].weight is pipe.stages[3][1].weight
        assert len(list(pipe.parameters())) == 2
        result = pipe.step(x, target=y)
        for loss, piece, target in zip(result.losses, x.split(2), y.split(2), strict=True):
            expected = mse(reference(piece), target)
            (expected / 4).backward()
            torch.testing.assert_close(loss, expected)
        for p, q in zip(pipe.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 8)

    def forward(self, x):
        return self.lstm(x)[0]


def test_a_module_that_keeps_lists_of_its_weights_follows_new_ones():
    layers = [Recurrent(), nn.Linear(8, 8)]
    reference = copy.deepcopy(layers)
    x, y = batch(8)
    with make_pipe(layers) as pipe:
        pipe.step(x, target=y)
        for lstm in (layers[0].lstm, reference[0].lstm):
            torch.manual_seed(7)
            lstm.weight_ih_l0 = nn.Parameter(torch.randn(32, 8))
        pipe.step(x, target=y)
        for p in pipe.parameters():
            p.grad = None
        result = pipe.step(x, target=y)
        whole = nn.Sequential(*reference)
        assert same_bits(result.losses, scheduled_loop(whole, reference, pipe.schedule, x, y))
        for p, q in zip(pipe.parameters(), whole.parameters(), strict=True):
            assert same_bits(p.grad, q.grad)


def test_batch_norms_statistics_are_those_of_the_first_copys_microbatches():
    def build():
        torch.manual_seed(3)
        return [nn.Linear(8, 8), nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8))]

    stages, reference = build(), nn.Sequential(*build())
    x, y = batch(16)
    with make_pipe(stages) as pipe:
        pipe.step(x, target=y)
        first = [m for m in range(4) if pipert.Action("F", 0, m) in pipe.schedule.actions[0]]
        assert first == [0, 2]
        for microbatch in first:
            reference(x.split(4)[microbatch])
        expected = reference.state_dict()
        for name, value in pipe.state_dict().items():
            assert same_bits(value, expected[name]), name
        reference.eval()
        pipe.eval()
        assert same_bits(pipe(x), torch.cat([reference(piece).detach() for piece in x.split(4)]))


def test_what_is_loaded_is_in_both_copies():
    stages = [nn.Linear(8, 8), nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8))]
    other = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8)))
    other(torch.randn(4, 8))
    other.eval()
    x, _ = batch(8)
    with make_pipe(stages) as pipe:
        pipe.load_state_dict(other.state_dict())
        pipe.eval()
        assert same_bits(pipe(x), torch.cat([other(piece).detach() for piece in x.split(2)]))


def test_clipping_counts_each_weight_once():
    model, reference = twins(mlp, 2)
    x, y = batch(8)
    with make_pipe(pipert.split(model, 2)) as pipe:
        pipe.step(x, target=y)
        stages = pipert.split(reference, 2)
        scheduled_loop(reference, stages, pipe.schedule, x, y)
        norm = pipe.clip_grad_norm_(0.01)
        assert same_bits(norm, nn.utils.clip_grad_norm_(reference.parameters(), 0.01))


def test_a_failed_step_leaves_no_gradient_in_the_second_copy():
    calls = []

    def loss(output, target):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("mistake")
        return mse(output, target)

    x, y = batch(8)
    with make_pipe(pipert.split(mlp(2), 2), loss_fn=loss) as pipe:
        with pytest.raises(pipert.PipelineError, match="mistake"):
            pipe.step(x, target=y)
        assert all(p.grad is None for s in (2, 3) for p in pipe.stages[s].parameters())
        pipe.step(x, target=y)


def test_functions_serve_as_both_copies_and_sparse_gradients_add_up():
    embedding = nn.Embedding(10, 8, sparse=True)
    with make_pipe([embedding, torch.tanh], loss_fn=lambda output: output.square().mean()) as pipe:
        assert pipe.stages[3] is torch.tanh
        pipe.step(torch.arange(8))
        dense = embedding.weight.grad.to_dense()
        assert dense[:8].abs().sum(1).gt(0).all()
        assert dense[8:].abs().sum() == 0


def test_both_copies_on_one_rank_run_as_well():
    """A placement of one's own."""
    schedule = pipert.Schedule(
        [["0F0", "2F1", "1F0", "3F1", "1B0", "3B1", "0B0", "2B1"]],
        placement=pipert.Placement(1, [0, 0, 0, 0], num_copies=2),
    )
    model, reference = twins(mlp, 2)
    x, y = batch(4)
    with make_pipe(pipert.split(model, 2), schedule=schedule, microbatches=2) as pipe:
        result = pipe.step(x, target=y)
        stages = pipert.split(reference, 2)
        assert same_bits(result.losses, scheduled_loop(reference, stages, schedule, x, y))
        for p, q in zip(pipe.parameters(), reference.parameters(), strict=True):
            assert same_bits(p.grad, q.grad)


def test_what_a_stage_gets_is_said_of_the_second_copys_first_stage_too():
    x, y = batch(8, width=4)
    with (
        make_pipe([nn.Linear(8, 8), nn.Linear(8, 8)], microbatches=2) as pipe,
        pytest.raises(pipert.PipelineError) as caught,
    ):
        pipe.step(x, target=y)
    assert caught.value.stage in (0, 2)
    assert "got input: float32[4, 4]" in str(caught.value)
    assert "from stage" not in str(caught.value)


class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("stages", "options", "error", "text"),
    [
        ([nn.Linear(8, 8)] * 3, {"num_ranks": 2}, ValueError, "num_stages must be 2.*got 3"),
        ([Stubborn(), Stubborn()], {}, TypeError, r"stages\[0\] can't be copied.*two copies"),
        ([nn.LazyLinear(8), nn.Linear(8, 8)], {}, ValueError, "its first call makes, weight"),
        ([nn.Linear(8, 8)] * 2, {"microbatches": 3}, ValueError, "must be even"),
    ],
    ids=["stages", "lock", "lazy", "odd"],
)
def test_what_two_copies_cannot_be_made_of_is_refused(stages, options, error, text):
    with pytest.raises(error, match=text):
        make_pipe(stages, **options)


def test_three_copies_are_refused():
    schedule = pipert.Schedule(
        [["0F0", "0B0", "1F1", "1B1", "2F2", "2B2"]],
        placement=pipert.Placement(1, [0, 0, 0], num_copies=3),
    )
    with pytest.raises(ValueError, match="one or two copies of the model"):
        make_pipe([nn.Linear(8, 8)], schedule=schedule, microbatches=3)
