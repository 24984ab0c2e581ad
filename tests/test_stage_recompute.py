"""A forward that runs twice: the same bits as one that runs once, and less memory."""

import collections
import copy
import dataclasses
import gc
import weakref
from typing import ClassVar

import pytest
import torch
from plain_loop import batch, same_bits
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(120)
mse = nn.functional.mse_loss
MICROBATCHES = 5
SCHEDULES = ["gpipe", "1f1b", "zb_h1", "zb_h2"]
OPTIONS = ["all", "except_last", [0], [1, 2], lambda stage, i: (stage + i) % 2 == 0]


def run(stages, steps=2, seed=3, loss_fn=mse, rows=10, evaluate=True, **options):
    """Losses, outputs, gradients, buffers and random state after a few steps."""
    stages = copy.deepcopy(stages)
    x, y = batch(rows)
    torch.manual_seed(seed)
    found = []
    options = {"num_microbatches": MICROBATCHES, **options}
    with pipert.Pipeline(stages, loss_fn=loss_fn, **options) as pipe:
        for _ in range(steps):
            result = pipe.step(x.clone(), target=y.clone(), return_outputs=True)
            found += [result.losses, result.outputs]
            if evaluate:
                found.append(pipe.evaluate(x.clone(), target=y.clone()).losses)
        found += [p.grad for p in pipe.parameters()]
        found += list(pipe.state_dict().values())
        found.append(torch.get_rng_state())
    return found


def assert_same(found, expected):
    assert len(found) == len(expected)
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert same_bits(one, other), i


def assert_recompute_changes_nothing(stages, recompute="all", **options):
    assert_same(run(stages, recompute=recompute, **options), run(stages, **options))


def stages_of(*layers):
    torch.manual_seed(0)
    return [layer() if isinstance(layer, type) else layer for layer in layers]


def linear():
    return nn.Linear(8, 8)


def one_rank(schedule, num_stages=3):
    """One rank that runs what the ranks of `schedule` would, in an order that is theirs too."""
    built = pipert.Schedule.build(
        schedule, num_ranks=num_stages, num_microbatches=MICROBATCHES, num_stages=num_stages
    )
    spans = [span for rank in built.simulate().ranks for span in rank]
    return pipert.Schedule([[s.action for s in sorted(spans, key=lambda s: s.start)]])


def mixed():
    """Three stages with dropout and batch norm."""
    torch.manual_seed(0)
    return [
        nn.Sequential(linear(), nn.Dropout(0.3), nn.Tanh()),
        nn.Sequential(nn.BatchNorm1d(8), linear(), nn.ReLU(inplace=True), nn.Dropout(0.3)),
        nn.Sequential(linear(), nn.BatchNorm1d(8, momentum=None)),
    ]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("recompute", OPTIONS)
@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("rng_seed", [None, 5])
def test_recompute_has_the_same_bits(schedule, recompute, num_ranks, rng_seed):
    if num_ranks == 1:
        schedule = one_rank(schedule)
    assert_recompute_changes_nothing(
        mixed(), recompute, schedule=schedule, num_ranks=num_ranks, rng_seed=rng_seed
    )


def test_except_last_leaves_each_stages_last_forward():
    calls = collections.Counter()

    class Count(nn.Linear):
        def forward(self, x):
            now = pipert.current_microbatch()
            calls[now.index, now.is_recomputing] += 1
            return super().forward(x)

    run([Count(8, 8), Count(8, 8)], steps=1, evaluate=False, recompute="except_last")
    once = collections.Counter({(i, False): 2 for i in range(MICROBATCHES)})
    assert calls == once + collections.Counter({(i, True): 2 for i in range(MICROBATCHES - 1)})


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
@pytest.mark.parametrize("cache", [True, False])
def test_recompute_under_autocast_has_the_same_bits(schedule, cache):
    def go(recompute):
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache):
            return run(mixed(), schedule=schedule, recompute=recompute)

    assert_same(go("all"), go("none"))


class Autocast(nn.Linear):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


def test_recompute_of_modules_with_a_context_of_their_own_has_the_same_bits():
    stages = stages_of(nn.Sequential(Autocast(8, 8), Autocast(8, 8)), Autocast(8, 8))
    assert_recompute_changes_nothing(stages)


class Fork(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = linear()

    def forward(self, x):
        y = self.linear(x)
        return {"a": nn.functional.dropout(y, 0.2), "b": (x, [y.detach(), 2]), "c": None}


class Join(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = linear()

    def forward(self, value):
        x, (y, factor) = value["b"]
        return self.linear(value["a"] + x * factor), y


class Sum(nn.Module):
    def forward(self, x, y):
        return x + y


def test_recompute_of_dicts_and_tuples_has_the_same_bits():
    stages = stages_of(nn.Sequential(linear(), nn.Tanh()), Fork, Join, Sum)
    assert_recompute_changes_nothing(stages, loss_fn=mse)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_input_that_is_worked_on_in_place_is_kept_as_it_was(num_ranks):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear()

        def forward(self, x):
            return self.linear(x.mul_(1.5).add_(0.1).clone())

    def loss_fn(output, target):
        return mse(output, target.mul_(0.5).clone())

    stages = stages_of(Scale, nn.Sequential(nn.ReLU(inplace=True), linear()), Scale)
    options = {"loss_fn": loss_fn, "num_ranks": num_ranks, "evaluate": False}
    if num_ranks == 1:
        options["schedule"] = one_rank("1f1b")
    assert_recompute_changes_nothing(stages, **options)


class Extras(nn.Module):
    """Takes its keyword argument apart, and works in place on what is in it."""

    def __init__(self):
        super().__init__()
        self.linear = linear()

    def forward(self, x, extras):
        return self.linear(x) * extras.pop("bias").add_(1.0)


@dataclasses.dataclass
class Held:
    bias: torch.Tensor

    def pop(self, name):
        return getattr(self, name)


@pytest.mark.parametrize("holder", [dict, collections.UserDict, Held])
def test_keyword_arguments_are_kept_as_they_were(holder):
    stages = stages_of(Extras, linear())

    def go(recompute):
        x, y = batch(10)
        options = {"num_microbatches": MICROBATCHES, "loss_fn": mse, "recompute": recompute}
        found = []
        with pipert.Pipeline(copy.deepcopy(stages), **options) as pipe:
            for _ in range(2):
                extras = holder(bias=torch.ones(10, 8))
                found.append(pipe.step(x, target=y, extras=extras).losses)
            return found + [p.grad for p in pipe.parameters()]

    assert_same(go("all"), go("none"))


class Iterate(nn.Module):
    """Its forward changes buffers, and reads them."""

    def __init__(self, size=8):
        super().__init__()
        self.linear = linear()
        self.register_buffer("state", torch.ones(8))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("large", torch.ones(size, 8))

    def forward(self, x):
        with torch.no_grad():
            self.state.mul_(0.9).add_(x.mean(0))  # in place
            self.count = self.count + 1  # another tensor
            self.large.add_(self.state)
        return self.linear(x) * self.state.clone() + self.count + self.large.sum(0)


@pytest.mark.parametrize("size", [8, 8000])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1"])
def test_buffers_change_once_and_are_read_as_they_were(size, schedule):
    stages = stages_of(Iterate(size), nn.Sequential(linear(), Iterate(size)))
    assert_recompute_changes_nothing(stages, schedule=schedule)


def test_large_buffers_that_begin_to_change_late_are_right():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear()
            self.calls = 0
            self.register_buffer("large", torch.ones(8000, 8))

        def forward(self, x):
            now = pipert.current_microbatch()
            if now.step == 1 and now.index > 0:
                with torch.no_grad():
                    self.large.add_(1.0)
            return self.linear(x) + self.large.sum(0) * 1e-4

    assert_recompute_changes_nothing(stages_of(Late, Late), steps=3)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_in_either_mode_has_the_same_bits(training):
    stages = [stage.train(training) for stage in mixed()]
    assert_recompute_changes_nothing(stages, schedule="zb_h1")


def test_spectral_norm_has_the_same_bits():
    torch.manual_seed(0)
    wrap = nn.utils.parametrizations.spectral_norm
    assert_recompute_changes_nothing([wrap(linear()), nn.Sequential(wrap(linear()), nn.Tanh())])


def test_outputs_come_once_and_hooks_run_for_both_forwards():
    calls = []
    stages = stages_of(linear(), linear())
    for stage in stages:
        stage.register_forward_hook(lambda *_: calls.append(pipert.current_microbatch()))
    run_once = collections.Counter()
    x, y = batch(10)
    with pipert.Pipeline(
        stages, num_microbatches=MICROBATCHES, loss_fn=mse, recompute="all"
    ) as pipe:
        result = pipe.step(x, target=y, return_outputs=True)
    assert result.outputs.shape == (10, 8)
    for now in calls:
        run_once[now.stage, now.index, now.is_recomputing] += 1
    assert set(run_once.values()) == {1}
    assert len(run_once) == 2 * 2 * MICROBATCHES


# --- memory ---------------------------------------------------------------------------------------


class Saved(torch.autograd.Function):
    """Square, whose saved tensor can be watched."""

    alive: ClassVar = weakref.WeakSet()
    peak: ClassVar = 0

    @staticmethod
    def forward(ctx, x):
        kept = x.detach().clone()
        holder = Holder(kept)
        ctx.holder = holder
        Saved.alive.add(holder)
        Saved.peak = max(Saved.peak, len(Saved.alive))
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.holder.kept * gradient


class Holder:
    def __init__(self, kept):
        self.kept = kept


class Square(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = linear()

    def forward(self, x):
        return Saved.apply(self.linear(x))


@pytest.mark.parametrize(
    ("recompute", "peak"), [("none", MICROBATCHES), ("all", 1), ("except_last", 1)]
)
def test_activations_of_a_recomputed_microbatch_are_gone(recompute, peak):
    gc.collect()
    Saved.peak = 0
    stages = stages_of(Square)
    run(stages, steps=1, evaluate=False, schedule="gpipe", num_ranks=1, recompute=recompute)
    assert Saved.peak <= peak + (recompute == "except_last")
    assert Saved.peak >= peak
    gc.collect()
    assert not Saved.alive


def test_targets_are_freed_by_the_second_run():
    alive = []  # of the targets, at the end of each backward
    targets = []

    def loss_fn(output, target):
        targets.append(weakref.ref(target))
        return mse(output, target)

    stages = stages_of(linear())
    stages[0].weight.register_post_accumulate_grad_hook(
        lambda _: alive.append(len({id(ref()) for ref in targets if ref() is not None}))
    )
    x, y = batch(10)
    with pipert.Pipeline(
        stages, schedule="gpipe", num_microbatches=MICROBATCHES, loss_fn=loss_fn, recompute="all"
    ) as pipe:
        pipe.step(x, target=y)
    assert alive[-1] < alive[0]
    assert alive == sorted(alive, reverse=True)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recompute", "error", "text"),
    [
        ("some", ValueError, "recompute must be 'none', 'all', 'except_last'"),
        ([2], ValueError, "recompute must list stages from 0 to 1, got 2"),
        ([-1], ValueError, "recompute must list stages from 0 to 1, got -1"),
        ([True], TypeError, "recompute must list stages by number"),
        (b"\x00", TypeError, "recompute must be a word, a list of stages or a function"),
        (3, TypeError, "recompute must be a word, a list of stages or a function"),
    ],
)
def test_bad_recompute_is_refused(recompute, error, text):
    with pytest.raises(error, match=text):
        pipert.Pipeline(stages_of(linear(), linear()), num_microbatches=2, recompute=recompute)


def test_stages_are_counted_in_one_copy_of_the_model():
    seen, asked = collections.Counter(), collections.Counter()

    class Count(nn.Linear):
        def forward(self, x):
            now = pipert.current_microbatch()
            seen[now.stage % 2, now.index, now.is_recomputing] += 1
            return super().forward(x)

    def choose(stage, microbatch):
        asked[stage, microbatch] += 1
        return stage == 1

    expected = collections.Counter({(s, i, False): 1 for s in range(2) for i in range(4)})
    expected += collections.Counter({(1, i, True): 1 for i in range(4)})
    options = {"schedule": "chimera", "num_microbatches": 4}
    for recompute in ([1], choose):
        seen.clear()
        stages = [Count(8, 8), Count(8, 8)]
        run(stages, steps=1, evaluate=False, recompute=recompute, **options)
        assert seen == expected
    assert asked == collections.Counter({(s, i): 1 for s in range(2) for i in range(4)})
    with pytest.raises(ValueError, match="recompute must list stages from 0 to 1, got 2"):
        run([Count(8, 8), Count(8, 8)], recompute=[2], **options)


def test_a_second_run_that_fails_names_its_microbatch():
    class Fails(nn.Linear):
        def forward(self, x):
            if pipert.current_microbatch().is_recomputing:
                raise RuntimeError("not again")
            return super().forward(x)

    with pytest.raises(pipert.PipelineError, match="not again") as error:
        run([Fails(8, 8), linear()], recompute="all")
    assert error.value.stage == 0


def test_a_second_run_with_another_result_is_refused():
    class More(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return (y, y) if pipert.current_microbatch().is_recomputing else (y,)

    class First(nn.Module):
        def forward(self, x):
            return x

    with pytest.raises(pipert.PipelineError, match="must do the same both times"):
        run([More(8, 8), First()], recompute=[0])
