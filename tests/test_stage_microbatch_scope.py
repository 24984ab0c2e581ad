"""The microbatch that a thread is at: for any code, and for modules that ask for it by name."""

import threading

import pytest
import torch
from plain_loop import batch, same_bits
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss
MICROBATCHES = 4


def pipeline(stages, **options):
    options = {"num_microbatches": MICROBATCHES, "loss_fn": mse, **options}
    return pipert.Pipeline(stages, **options)


class Record(nn.Linear):
    """Notes where it is."""

    def __init__(self, log):
        super().__init__(8, 8)
        self.log = log

    def forward(self, x):
        self.log.append(pipert.current_microbatch())
        return super().forward(x)


def test_none_outside_of_a_stage():
    assert pipert.current_microbatch() is None
    log = []
    stages = [Record(log), nn.Linear(8, 8)]
    with pipeline(stages) as pipe:
        pipe.step(*batch(8)[:1], target=batch(8)[1])
    assert pipert.current_microbatch() is None
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(pipert.current_microbatch()))
    thread.start()
    thread.join()
    assert elsewhere == [None]


def test_forward_loss_and_backward_hooks_know_their_microbatch():
    logs = [[], []]
    losses, hooks = [], []

    def loss_fn(output, target):
        losses.append(pipert.current_microbatch())
        return mse(output, target)

    stages = [Record(log) for log in logs]
    for stage in stages:
        stage.weight.register_post_accumulate_grad_hook(
            lambda _: hooks.append(pipert.current_microbatch())
        )
    x, y = batch(8)
    with pipeline(stages, loss_fn=loss_fn) as pipe:
        pipe.step_index = 6
        pipe.step(x, target=y)
        pipe.evaluate(x, target=y)
    for stage, log in enumerate(logs):
        assert [(m.index, m.stage, m.step, m.training) for m in log] == [
            *((i, stage, 6, True) for i in range(4)),
            *((i, stage, 7, False) for i in range(4)),
        ]
        assert [m.is_first for m in log] == 2 * [True, False, False, False]
        assert [m.is_last for m in log] == 2 * [False, False, False, True]
        assert {m.num_microbatches for m in log} == {4}
        assert not any(m.is_recomputing for m in log)
    assert [(m.index, m.stage) for m in losses[:4]] == [(i, 1) for i in range(4)]
    assert sorted((m.stage, m.index) for m in hooks) == [(s, i) for s in (0, 1) for i in range(4)]
    assert repr(logs[1][2]) == "<CurrentMicrobatch 2 of 4 on stage 1>"


def test_recomputing_says_so():
    log = []
    x, y = batch(8)
    with pipeline([Record(log), nn.Linear(8, 8)], recompute=[0], schedule="gpipe") as pipe:
        pipe.step(x, target=y)
    assert [(m.index, m.is_recomputing) for m in log] == [
        (i, again) for again in (False, True) for i in range(4)
    ]


def test_modules_get_what_their_forward_names():
    got = []

    class All(nn.Linear):
        def forward(self, x, is_first_microbatch=5, *, is_last_microbatch, microbatch_index):
            got.append((microbatch_index, is_first_microbatch, is_last_microbatch))
            return super().forward(x)

    class Any(nn.Linear):
        def forward(self, x, **kwargs):
            got.append(kwargs)
            return super().forward(x)

    x, y = batch(8)
    expected = [(0, True, False), (1, False, False), (2, False, False), (3, False, True)]

    class Named(nn.Sequential):
        pass

    # As a stage, and as a layer of a stage.
    for stage in (All(8, 8), *(kind(nn.Tanh(), All(8, 8)) for kind in (nn.Sequential, Named))):
        got.clear()
        with pipeline([stage, nn.Linear(8, 8)]) as pipe:
            pipe.step(x, target=y)
            assert got == expected
            pipe(x)
            assert got == 2 * expected
        for module in stage.modules():
            assert not module._forward_pre_hooks  # gone with the pipeline
    got.clear()
    with pipeline([Any(8, 8), nn.Linear(8, 8)]) as pipe:
        pipe.step(x, target=y)
    assert got == 4 * [{}]


def test_a_keyword_that_the_user_gives_is_the_users():
    got = []

    class Ask(nn.Linear):
        def forward(self, x, is_first_microbatch=None, microbatch_index=None):
            got.append((is_first_microbatch, microbatch_index))
            return super().forward(x)

    x, y = batch(8)
    with pipeline([Ask(8, 8), nn.Linear(8, 8)]) as pipe:
        pipe.step(x, target=y, is_first_microbatch="mine")
    assert got == [("mine", i) for i in range(4)]


# --- modules that overwrite on the first microbatch -----------------------------------------------


class CachedLinear(torch.autograd.Function):
    """Adds to main_grad itself: over what was there on the first microbatch, else to it."""

    @staticmethod
    def forward(ctx, x, weight, module, is_first):
        ctx.save_for_backward(x)
        ctx.module, ctx.is_first = module, is_first
        if is_first is None:
            cast = weight.detach().clone()
        elif is_first:
            cast = module.cast = weight.detach().clone()
        else:
            cast = module.cast
        ctx.cast = cast
        return x @ cast.t()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        own = gradient.t() @ x
        if ctx.is_first:
            ctx.module.main_grad.copy_(own)
        else:
            ctx.module.main_grad.add_(own)
        return gradient @ ctx.cast, None, None, None


class FakeEngine(nn.Module):
    """What Transformer Engine's layers do with is_first_microbatch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.main_grad = torch.full((8, 8), float("nan"))
        self.cast = None
        self.told = []

    def forward(self, x, is_first_microbatch=None):
        self.told.append(is_first_microbatch)
        if is_first_microbatch is None and self.told.count(None) % MICROBATCHES == 1:
            self.main_grad.zero_()  # the user's part, where nothing overwrites
        return CachedLinear.apply(x, self.weight, self, is_first_microbatch)


def reordered(first):
    """Two stages on two ranks; on each, forwards in order and a backward that begins elsewhere."""
    order = [first, *(i for i in range(MICROBATCHES) if i != first)]
    rows = []
    for stage in range(2):
        row = [f"{stage}F{i}" for i in range(MICROBATCHES)]
        rows.append(row + [f"{stage}B{i}" for i in order])
    return pipert.Schedule(rows)


@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1", reordered(0), reordered(2)])
def test_overwriting_on_the_first_microbatch_loses_no_gradient(schedule, recompute):
    torch.manual_seed(0)
    stages = [FakeEngine(), FakeEngine()]
    reference = [nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)]
    for stage, plain in zip(stages, reference, strict=True):
        plain.weight.data.copy_(stage.weight)
    x, y = batch(8)
    with (
        pipeline(stages, schedule=schedule, recompute=recompute) as pipe,
        pipeline(reference, schedule=schedule) as plain_pipe,
    ):
        for _ in range(2):
            plain_pipe.step(x, target=y)
            pipe.step(x, target=y)
            for stage, plain in zip(stages, reference, strict=True):
                torch.testing.assert_close(stage.main_grad, plain.weight.grad)
                plain.weight.grad = None
    forwards = [told for stage in stages for told in stage.told]
    if schedule == reordered(2):
        assert set(forwards) == {None}
    else:
        assert set(forwards) == {True, False}


def test_only_stages_whose_backwards_begin_elsewhere_are_told_none():
    rows = [[*(f"0F{i}" for i in range(4)), "0B1", "0B0", "0B2", "0B3"]]
    rows.append([w for i in (1, 0, 2, 3) for w in (f"1F{i}", f"1B{i}")])
    told = {}

    class Ask(nn.Linear):
        def forward(self, x, is_first_microbatch=5):
            now = pipert.current_microbatch()
            told[now.stage, now.index] = is_first_microbatch
            return super().forward(x)

    x, y = batch(8)
    with pipeline([Ask(8, 8), Ask(8, 8)], schedule=pipert.Schedule(rows)) as pipe:
        pipe.step(x, target=y)
    assert [told[0, i] for i in range(4)] == [None] * 4
    assert [told[1, i] for i in range(4)] == [False, True, False, False]  # 1 comes first there


def test_results_do_not_depend_on_asking():
    class Ask(nn.Linear):
        def forward(self, x, microbatch_index):
            assert microbatch_index == pipert.current_microbatch().index
            return super().forward(x)

    torch.manual_seed(0)
    ask, plain = Ask(8, 8), nn.Linear(8, 8)
    plain.load_state_dict(ask.state_dict())
    x, y = batch(8)
    losses = []
    for first in (ask, plain):
        with pipeline([first, nn.Identity()]) as pipe:
            losses.append(pipe.step(x, target=y).losses)
    assert same_bits(*losses)
