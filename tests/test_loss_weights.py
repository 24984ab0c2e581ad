"""Losses count by tokens, or as the caller says, and not by rows alone."""

import pytest
import torch
from plain_loop import assert_same_gradients, batch, mlp, plain_loop, same_bits, twins
from torch import nn
from torch.nn import functional
from wired import PlainLoop

import pipert
from pipert.batches.loss_weights import LossWeights
from pipert.stages import StageSpec, Value

pytestmark = pytest.mark.timeout(120)
mse = functional.mse_loss
SCHEDULES = [("gpipe", 2), ("1f1b", 2), ("interleaved_1f1b", 4), ("zb_h1", 2), ("zb_v", 4)]
WORDS = 8  # classes
IGNORED = -100


def make_pipe(model, num_stages=2, schedule="1f1b", loss_fn=mse, num_microbatches=4, **options):
    return pipert.Pipeline(
        pipert.split(model, num_stages),
        schedule=schedule,
        num_ranks=2,
        num_microbatches=num_microbatches,
        loss_fn=loss_fn,
        **options,
    )


def token_loss(output, target):
    """The mean over the tokens that count."""
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def tokens(rows, length=6, seed=3):
    """Inputs, and targets of which some don't count: more in later rows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, length, WORDS, generator=generator)
    target = torch.randint(0, WORDS, (rows, length), generator=generator)
    for row in range(rows):
        target[row, length - row % length :] = IGNORED
    return x, target


def weighted_loop(model, x, y, weights, loss_fn):
    """Gradient accumulation with a weight for each microbatch; returns their losses."""
    losses = []
    entries = zip(x.tensor_split(len(weights)), y.tensor_split(len(weights)), strict=True)
    for (inputs, targets), weight in zip(entries, weights, strict=True):
        loss = loss_fn(model(inputs), targets)
        losses.append(loss.detach())
        if weight:
            loss.backward(torch.full_like(loss, weight))
    return torch.stack(losses)


def assert_is_of_the_whole_batch(result, pipe, reference, loss):
    """To rounding: loss and gradients are those of the reference's loss over all rows at once."""
    loss.backward()
    torch.testing.assert_close(result.loss, loss.detach())
    for p, q in zip(pipe.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


# --- given by microbatch --------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "num_stages"), SCHEDULES)
@pytest.mark.parametrize("kind", ["module", "native"])
def test_gradients_equal_a_weighted_plain_loop_bit_for_bit(schedule, num_stages, kind):
    model, reference = twins(mlp, 4)
    x, y = batch(10)
    weights = [0.5, 0.25, 2.0, 0.3]
    with make_pipe(model, num_stages, schedule, stage_kind=kind) as pipe:
        for _ in range(2):
            result = pipe.step(x, target=y, loss_weights=weights)
            losses = weighted_loop(reference, x, y, weights, mse)
            assert torch.equal(result.losses, losses)
            assert torch.equal(result.loss, (losses * torch.tensor(weights)).sum())
            assert_same_gradients(pipe, reference)


def test_weights_of_one_each_give_the_sum():
    model, reference = twins(mlp, 2)
    x, y = batch(8)
    with make_pipe(model) as pipe:
        result = pipe.step(x, target=y, loss_weights=torch.ones(4))
        losses = weighted_loop(reference, x, y, [1.0] * 4, mse)
        assert torch.equal(result.loss, losses.sum())
        assert_same_gradients(pipe, reference)


def test_weights_hold_for_one_pass():
    model, reference = twins(mlp, 2)
    x, y = batch(8)
    with make_pipe(model) as pipe:
        pipe.step(x, target=y, loss_weights=[1, 2, 3, 4])
        for p in pipe.parameters():
            p.grad = None
        pipe.step(x, target=y)
        plain_loop(reference, x, y, 4)
        assert_same_gradients(pipe, reference)


@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
def test_microbatches_of_a_batch_that_is_cut_have_weights_too(schedule, recompute):
    model, reference = twins(mlp, 2)
    cut = [batch(rows, seed=rows) for rows in (5, 1, 3, 1)]
    weights = [0.4, 0.1, 0.3, 0.2]
    with make_pipe(model, schedule=schedule, recompute=recompute) as pipe:
        result = pipe.step(
            microbatches=[x for x, _ in cut], target=[y for _, y in cut], loss_weights=weights
        )
        for (x, y), weight in zip(cut, weights, strict=True):
            weighted_loop(reference, x, y, [weight], mse)
        assert_same_gradients(pipe, reference)
        assert torch.equal(result.loss, (result.losses * torch.tensor(weights)).sum())


def test_an_evaluation_is_weighted_as_a_step_is():
    x, y = batch(8)
    with make_pipe(mlp(2)) as pipe:
        weights = [0.5, 0.25, 2.0, 0.3]
        step = pipe.step(x, target=y, loss_weights=weights)
        evaluation = pipe.evaluate(x, target=y, loss_weights=weights)
        assert same_bits(step.loss, evaluation.loss)


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_a_microbatch_that_counts_nothing_gives_no_gradient(schedule, recompute):
    """Not even where its loss is NaN."""
    model, reference = twins(mlp, 2)
    x, y = batch(8)
    y[2:4] = torch.nan
    weights = [0.5, 0.0, 0.3, 0.2]
    with make_pipe(model, schedule=schedule, recompute=recompute) as pipe:
        result = pipe.step(x, target=y, loss_weights=weights)
        weighted_loop(reference, x, y, weights, mse)
        assert_same_gradients(pipe, reference)
        assert result.losses.isnan().tolist() == [False, True, False, False]
        assert result.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# --- counted --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "num_stages"), SCHEDULES)
def test_losses_by_tokens_equal_the_mean_over_the_whole_batch_to_rounding(schedule, num_stages):
    model, reference = twins(mlp, 4)
    x, target = tokens(7)
    with make_pipe(model, num_stages, schedule, token_loss, loss_weight="tokens") as pipe:
        result = pipe.step(x, target=target)
        assert_is_of_the_whole_batch(result, pipe, reference, token_loss(reference(x), target))


@pytest.mark.parametrize("kind", ["module", "native"])
def test_losses_by_tokens_equal_a_weighted_plain_loop_bit_for_bit(kind):
    model, reference = twins(mlp, 4)
    x, target = tokens(7)
    counts = [int((piece != IGNORED).sum()) for piece in target.tensor_split(4)]
    assert len(set(counts)) > 1
    weights = [count / sum(counts) for count in counts]
    with make_pipe(model, loss_fn=token_loss, loss_weight="tokens", stage_kind=kind) as pipe:
        for _ in range(3):
            result = pipe.step(x, target=target)
            losses = weighted_loop(reference, x, target, weights, token_loss)
            assert torch.equal(result.losses, losses)
            assert_same_gradients(pipe, reference)


def test_a_function_counts_the_targets_of_microbatches():
    seen = []

    def count(target):
        seen.append(target)
        return target["weight"].sum()

    def loss_fn(output, target):
        return (mse(output, target["y"], reduction="none").mean(1) * target["weight"]).sum() / (
            target["weight"].sum()
        )

    model, reference = twins(mlp, 2)
    x, y = batch(9)
    weight = torch.arange(1.0, 10.0)
    with make_pipe(model, loss_fn=loss_fn, loss_weight=count) as pipe:
        result = pipe.step(x, target={"y": y, "weight": weight})
        whole = loss_fn(reference(x), {"y": y, "weight": weight})
        assert_is_of_the_whole_batch(result, pipe, reference, whole)
    assert [len(target["y"]) for target in seen] == [3, 2, 2, 2]


def test_without_a_target_keyword_arguments_are_counted():
    class Last(nn.Linear):
        def forward(self, x, labels):
            return token_loss(super().forward(x), labels)

    torch.manual_seed(0)
    last = Last(WORDS, WORDS)
    x, target = tokens(7)
    with pipert.Pipeline(
        [nn.Tanh(), last],
        num_microbatches=4,
        loss_fn="output",
        loss_weight=lambda kwargs: (kwargs["labels"] != IGNORED).sum(),
    ) as pipe:
        result = pipe.step(x, labels=target)
    torch.testing.assert_close(result.loss, last(x.tanh(), target).detach())


def test_a_microbatch_without_tokens_gives_no_gradient():
    model, reference = twins(mlp, 2)
    x, target = tokens(8)
    target[2:4] = IGNORED
    with make_pipe(model, loss_fn=token_loss, loss_weight="tokens") as pipe:
        result = pipe.step(x, target=target)
        assert_is_of_the_whole_batch(result, pipe, reference, token_loss(reference(x), target))


def test_the_global_count_may_be_given():
    x, target = tokens(8)
    count = float((target != IGNORED).sum())
    with make_pipe(mlp(2), loss_fn=token_loss, loss_weight="tokens") as pipe:
        once = pipe.evaluate(x, target=target)
        half = pipe.evaluate(x, target=target, global_count=2 * count)
        torch.testing.assert_close(half.loss * 2, once.loss)
        assert same_bits(once.losses, half.losses)


@pytest.mark.parametrize(
    ("loss_fn", "options", "expected"),
    [
        (token_loss, {}, IGNORED),
        (nn.CrossEntropyLoss(ignore_index=2), {}, 2),
        (nn.CrossEntropyLoss(ignore_index=2), {"ignore_index": 3}, 3),
        (token_loss, {"ignore_index": 3}, 3),
    ],
)
def test_tokens_that_the_loss_function_ignores_do_not_count(loss_fn, options, expected):
    weights = LossWeights("tokens", options.get("ignore_index"), None, loss_fn)
    targets = [torch.tensor([0, expected, 1]), torch.tensor([expected, 4, expected])]
    assert weights.weigh(None, targets) == [2 / 3, 1 / 3]


def test_counts_may_be_numbers_or_tensors_of_any_kind():
    for kind in (int, float, torch.tensor, lambda n: torch.tensor([float(n)])):
        weights = LossWeights(kind, None, None, None)
        assert weights.weigh(None, [1, 3]) == [0.25, 0.75]
    weights = LossWeights(lambda n: n if n == 1 else torch.tensor(n), None, None, None)
    assert weights.weigh(8, [1, 3]) == [0.125, 0.375]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1, 2, 3], ValueError, r"loss_weights must have 4 entries \(num_microbatches\), got 3"),
        ([1, 2, 3, -1], ValueError, r"loss_weights\[3\] must be a number from 0, got -1"),
        (
            [1, float("nan"), 3, 1],
            ValueError,
            r"loss_weights\[1\] must be .* from 0, got nan",
        ),
        (
            [1, float("inf"), 3, 1],
            ValueError,
            r"loss_weights\[1\] must be .* from 0, got inf",
        ),
        ([1, "2", 3, 4], TypeError, r"loss_weights\[1\] must be a number, got str"),
        (3, TypeError, "loss_weights must be a list of 4 numbers .* got int"),
        ("abcd", TypeError, "loss_weights must be a list of 4 numbers .* got str"),
    ],
)
def test_wrong_weights_are_refused(weights, error, message):
    x, y = batch(8)
    with make_pipe(mlp(2)) as pipe:
        with pytest.raises(error, match=message):
            pipe.step(x, target=y, loss_weights=weights)
        pipe.step(x, target=y)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss_weight": "rows"}, ValueError, "loss_weight must be 'tokens' .* got 'rows'"),
        ({"loss_weight": 3}, TypeError, "loss_weight must be a function .* got int"),
        ({"ignore_index": 3}, ValueError, "ignore_index goes with loss_weight"),
        ({"count_group": object()}, ValueError, "count_group goes with loss_weight"),
        ({"loss_weight": "tokens", "ignore_index": 1.5}, TypeError, "ignore_index must be an int"),
        ({"loss_weight": "tokens", "count_group": 3}, TypeError, "must be a ProcessGroup"),
    ],
)
def test_wrong_ways_to_count_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        make_pipe(mlp(2), **options)


@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (lambda target: "many", TypeError, "must give a number, got str for microbatch 0"),
        (lambda target: target, TypeError, "must give a number, got Tensor for microbatch 0"),
        (lambda target: -1, ValueError, "must give a number from 0, got -1 for microbatch 0"),
        (lambda target: float("nan"), ValueError, "a number from 0, got nan for microbatch 0"),
        (lambda target: 0, ValueError, "the microbatches must count something, got 0 in all"),
    ],
)
def test_wrong_counts_are_refused(count, error, message):
    x, y = batch(8)
    with make_pipe(mlp(2), loss_weight=count) as pipe:
        with pytest.raises(error, match=message):
            pipe.step(x, target=y)
        with pytest.raises(ValueError, match="to weigh losses, got both"):
            pipe.step(x, target=y, loss_weights=[1] * 4)


def test_tokens_of_a_target_that_is_no_tensor_are_refused():
    x, y = batch(8)
    with (
        make_pipe(mlp(2), loss_fn=lambda o, t: mse(o, t[0]), loss_weight="tokens") as pipe,
        pytest.raises(TypeError, match="needs a tensor for the target, got tuple"),
    ):
        pipe.step(x, target=(y,))


@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (0, ValueError, "global_count must be a positive number, got 0"),
        (float("inf"), ValueError, "global_count must be a positive number, got inf"),
        ("9", TypeError, "global_count must be a number, got str"),
    ],
)
def test_a_wrong_global_count_is_refused(count, error, message):
    x, y = batch(8)
    with make_pipe(mlp(2), loss_weight=len) as pipe, pytest.raises(error, match=message):
        pipe.step(x, target=y, global_count=count)
    with (
        make_pipe(mlp(2)) as pipe,
        pytest.raises(ValueError, match="global_count goes with Pipeline"),
    ):
        pipe.step(x, target=y, global_count=8)


# --- with values that pass over stages ------------------------------------------------------------


class Down(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y, y.tanh()


class Middle(nn.Linear):
    def forward(self, x):
        return (super().forward(x).tanh(),)


class Up(nn.Linear):
    def forward(self, skipped, x):
        return super().forward(x) * skipped


def unet():
    torch.manual_seed(0)
    return pipert.Stages(
        [Down(8, 8), Middle(8, 8), Up(8, 8)],
        specs=[
            StageSpec((), ("skipped", "h0"), ("x",)),
            StageSpec(("h0",), ("h1",)),
            StageSpec(("skipped", "h1")),
        ],
        values=[Value("skipped", 0, (2,)), Value("h0", 0, (1,)), Value("h1", 1, (2,))],
        arguments=["x"],
    )


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1"])
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_gradients_of_skip_edges_are_weighted_and_left_out_where_nothing_counts(
    schedule, recompute
):
    stages = unet()
    loop = PlainLoop(stages)
    x, y = batch(8)
    y[:2] = torch.nan
    weights = [0.0, 0.25, 2.0, 0.3]
    pieces = list(zip(x.tensor_split(4), y.tensor_split(4), strict=True))
    with pipert.Pipeline(
        stages, schedule=schedule, num_microbatches=4, loss_fn=mse, recompute=recompute
    ) as pipe:
        counted = [m for m, weight in enumerate(weights) if weight]
        for _ in range(2):
            pipe.step(x, target=y, loss_weights=weights)
            loop.step(
                [((pieces[m][0],), {}) for m in counted],
                lambda output, index: mse(output, pieces[counted[index]][1]),
                [weights[m] for m in counted],
            )
            loop.assert_same_gradients(pipe)
