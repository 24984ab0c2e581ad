"""Loss functions may return metrics, be several, or be the model's own; the bits are plain."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from plain_loop import assert_same_gradients, batch, mlp, plain_loop, twins
from torch import Tensor, nn
from torch.nn import functional

import pipert

pytestmark = pytest.mark.timeout(120)
mse = functional.mse_loss
l1 = functional.l1_loss
SCHEDULES = [("gpipe", 2), ("1f1b", 2), ("interleaved_1f1b", 4), ("zb_h1", 2), ("dualpipe", 2)]


def with_metrics(output, target):
    error = (output - target).detach()
    return mse(output, target), {"worst": error.abs().max(), "rows": len(output), "half": 0.5}


def both(output, target):
    return {"mse": mse(output, target), "l1": l1(output, target)}


def make_pipe(model, num_stages=2, schedule="1f1b", loss_fn=mse, **options):
    return pipert.Pipeline(
        pipert.split(model, num_stages),
        schedule=schedule,
        num_ranks=2,
        num_microbatches=4,
        loss_fn=loss_fn,
        **options,
    )


def pieces(x, y):
    return zip(x.tensor_split(4), y.tensor_split(4), strict=True)


# --- metrics --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "num_stages"), SCHEDULES)
@pytest.mark.parametrize("kind", ["module", "native"])
def test_metrics_come_beside_the_loss_by_microbatch(schedule, num_stages, kind):
    model, reference = twins(mlp, 4)
    x, y = batch(10)
    with make_pipe(model, num_stages, schedule, with_metrics, stage_kind=kind) as pipe:
        for _ in range(3):  # natively from the second on
            for p in (*model.parameters(), *reference.parameters()):
                p.grad = None
            result = pipe.step(x, target=y)
            expected = [with_metrics(reference(a), b) for a, b in pieces(x, y)]
            assert torch.equal(result.losses, torch.stack([loss.detach() for loss, _ in expected]))
            assert list(result.metrics) == ["worst", "rows", "half"]
            worst = torch.stack([metrics["worst"] for _, metrics in expected])
            assert torch.equal(result.metrics["worst"], worst)
            assert result.metrics["rows"].tolist() == [3, 3, 2, 2]
            assert result.metrics["half"].tolist() == [0.5] * 4
            if schedule != "dualpipe":
                plain_loop(reference, x, y, 4)
                assert_same_gradients(pipe, reference)


def test_metrics_are_detached_and_hold_no_graph():
    def loss_fn(output, target):
        loss = mse(output, target)
        return loss, {"loss": loss, "output": output.mean()}

    x, y = batch(8)
    with make_pipe(mlp(2), loss_fn=loss_fn) as pipe:
        result = pipe.step(x, target=y)
    assert torch.equal(result.metrics["loss"], result.losses)
    assert not any(metric.requires_grad for metric in result.metrics.values())


@pytest.mark.parametrize("kind", ["module", "native"])
def test_a_metric_in_a_buffer_is_what_it_was_after_each_microbatch(kind):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("rows", torch.zeros(()))

        def forward(self, output, target):
            self.rows += output.shape[0]
            return mse(output, target), {"rows": self.rows}

    x, y = batch(8)
    with make_pipe(mlp(2), loss_fn=Counting(), stage_kind=kind) as pipe:
        assert pipe.step(x, target=y).metrics["rows"].tolist() == [2, 4, 6, 8]
        assert pipe.step(x, target=y).metrics["rows"].tolist() == [10, 12, 14, 16]


def test_an_evaluation_has_metrics_too_and_outputs_alone_have_none():
    x, y = batch(8)
    with make_pipe(mlp(2), loss_fn=with_metrics) as pipe:
        result = pipe.evaluate(x, target=y, return_outputs=True)
        assert result.metrics["rows"].tolist() == [2, 2, 2, 2]
        assert result.outputs.shape == (8, 8)
        assert pipe.step(x, target=y).metrics["rows"].tolist() == [2, 2, 2, 2]
        assert pipe(x).shape == (8, 8)
        assert pipe.evaluate(x, target=y).metrics.keys() == {"worst", "rows", "half"}


def test_a_loss_function_without_metrics_gives_none():
    x, y = batch(8)
    with make_pipe(mlp(2)) as pipe:
        assert pipe.step(x, target=y).metrics == {}


def test_a_recomputed_stage_gives_its_metrics_once():
    calls = []

    def loss_fn(output, target):
        calls.append(len(output))
        return mse(output, target), {"call": len(calls)}

    x, y = batch(8)
    with make_pipe(mlp(2), schedule="gpipe", loss_fn=loss_fn, recompute="all") as pipe:
        metrics = pipe.step(x, target=y).metrics
    assert len(calls) == 8
    assert metrics["call"].tolist() == [1, 2, 3, 4]


def test_a_microbatch_without_a_metric_has_nan():
    def loss_fn(output, target):
        metrics = {"rows": len(output)} if len(output) > 2 else {"exact": torch.tensor(2)}
        return mse(output, target), metrics

    x, y = batch(10)
    with make_pipe(mlp(2), loss_fn=loss_fn) as pipe:
        metrics = pipe.step(x, target=y).metrics
    assert metrics["rows"][:2].tolist() == [3, 3]
    assert metrics["rows"][2:].isnan().all()
    assert metrics["exact"].isnan().tolist() == [True, True, False, False]
    assert metrics["exact"][2:].tolist() == [2, 2]


def test_metrics_of_different_dtypes_become_one_that_fits_all():
    def loss_fn(output, target):
        value = torch.tensor(1, dtype=torch.float16 if len(output) > 2 else torch.int64)
        return mse(output, target), {"value": value}

    x, y = batch(10)
    with make_pipe(mlp(2), loss_fn=loss_fn) as pipe:
        assert pipe.step(x, target=y).metrics["value"].dtype == torch.float16


# --- several losses -------------------------------------------------------------------------------


def summed(output, target):
    return mse(output, target) + l1(output, target)


@pytest.mark.parametrize("loss_fn", [both, {"mse": mse, "l1": l1}], ids=["one returns", "several"])
@pytest.mark.parametrize("kind", ["module", "native"])
def test_several_losses_are_added_up_and_are_metrics(loss_fn, kind):
    model, reference = twins(mlp, 4)
    x, y = batch(10)
    with make_pipe(model, loss_fn=loss_fn, stage_kind=kind) as pipe:
        for _ in range(3):
            result = pipe.step(x, target=y)
            losses = plain_loop(reference, x, y, 4, summed)
            assert torch.equal(result.losses, losses)
            assert_same_gradients(pipe, reference)
            assert torch.equal(result.metrics["mse"] + result.metrics["l1"], losses)
        assert pipe.loss_kind == kind


def test_losses_and_metrics_come_together():
    def loss_fn(output, target):
        return both(output, target), {"rows": len(output)}

    x, y = batch(8)
    with make_pipe(mlp(2), loss_fn=loss_fn) as pipe:
        metrics = pipe.step(x, target=y).metrics
    assert list(metrics) == ["mse", "l1", "rows"]


def test_modules_among_several_losses_are_trained_with_and_moved():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, output, target):
            return mse(output, target) * self.scale

    scaled = Scaled()
    other = copy.deepcopy(scaled)
    model, reference = twins(mlp, 2)
    x, y = batch(8)
    with make_pipe(model, loss_fn={"scaled": scaled, "l1": l1}) as pipe:
        pipe.step(x, target=y)
    plain_loop(reference, x, y, 4, lambda o, t: other(o, t) + l1(o, t))
    assert torch.equal(scaled.scale.grad, other.scale.grad)


def test_a_loss_of_several_outputs_gets_them_as_they_are():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return {"one": self.one(x), "rest": (self.two(x), x)}

    def loss_fn(output, target):
        two, x = output["rest"]
        return {"one": mse(output["one"], target), "two": l1(two, x)}

    def of_sum(output, target):
        return sum(loss_fn(output, target).values())

    torch.manual_seed(0)
    stages = [nn.Linear(8, 8), Heads()]
    reference = nn.Sequential(*copy.deepcopy(stages))
    x, y = batch(10)
    with pipert.Pipeline(stages, num_microbatches=4, loss_fn=loss_fn) as pipe:
        result = pipe.step(x, target=y, return_outputs=True)
        plain_loop(reference, x, y, 4, of_sum)
        assert_same_gradients(pipe, reference)
        assert result.outputs["rest"][0].shape == (10, 8)
        assert result.metrics.keys() == {"one", "two"}


def test_a_loss_function_alone_needs_its_target_and_several_too():
    x, _ = batch(8)
    with (
        make_pipe(mlp(2), loss_fn={"size": lambda o: o.square().mean(), "mse": mse}) as pipe,
        pytest.raises(ValueError, match="the last stage's rank needs the target"),
    ):
        pipe.step(x)
    with make_pipe(mlp(2), loss_fn={"size": lambda output: output.square().mean()}) as pipe:
        assert pipe.step(x).metrics.keys() == {"size"}


# --- the model's own loss -------------------------------------------------------------------------


class OwnLoss(nn.Linear):
    """As transformers' models: with labels, the output has a loss."""

    def __init__(self, form):
        super().__init__(8, 8)
        self.form = form

    def forward(self, x, labels=None):
        logits = super().forward(x)
        loss = None if labels is None else mse(logits, labels)
        return self.form(loss, logits)


FORMS = {
    "attribute": lambda loss, logits: SimpleNamespace(loss=loss, logits=logits),
    "entry": lambda loss, logits: {"logits": logits, "loss": loss},
    "first": lambda loss, logits: (loss, logits),
    "itself": lambda loss, logits: loss,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["module", "native"])
def test_the_models_own_loss_trains_as_another_would(form, kind):
    torch.manual_seed(0)
    first, last = nn.Linear(8, 8), OwnLoss(FORMS[form])
    reference = nn.Sequential(copy.deepcopy(first), nn.Linear(8, 8))
    reference[1].load_state_dict(last.state_dict())
    x, y = batch(10)
    with pipert.Pipeline(
        [first, last], num_microbatches=4, loss_fn="output", stage_kind=kind
    ) as pipe:
        for _ in range(2):
            result = pipe.step(x, labels=y)
            assert torch.equal(result.losses, plain_loop(reference, x, y, 4))
            assert_same_gradients(pipe, reference)
        assert result.metrics == {}


def test_a_model_that_gives_no_loss_is_an_error_that_says_so():
    x, _ = batch(8)
    with pipert.Pipeline([OwnLoss(FORMS["first"])], num_microbatches=4, loss_fn="output") as pipe:
        with pytest.raises(pipert.PipelineError) as error:
            pipe.step(x)
        assert "needs a loss in the model's output, a tuple" in str(error.value.__cause__)
        assert pipe(x)[1].shape == (8, 8)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda o, t: 1.0, "the loss function must return a tensor, got float"),
        (lambda o, t: [mse(o, t)], "must return a tensor, got list"),
        (lambda o, t: (mse(o, t),), "must return a tensor, got tuple of 1"),
        (lambda o, t: (mse(o, t), mse(o, t)), "must return a tensor, got tuple of 2"),
        (lambda o, t: (1.0, {}), "must return a tensor, got tuple of 2"),
        (lambda o, t: {}, "returned a dict without losses"),
        (lambda o, t: {"a": 1.0}, "the loss a must be a tensor, got float"),
        (lambda o, t: {3: mse(o, t)}, "must have names, got a key that is a int"),
        (lambda o, t: {"a": o}, r"the loss a must be one number, got a tensor of shape \[2, 8\]"),
        (lambda o, t: (mse(o, t), {"m": o[0]}), r"the metric m must be one number, .* \[8\]"),
        (lambda o, t: (mse(o, t), {"m": "word"}), "the metric m must be a number, .* got str"),
        (lambda o, t: (both(o, t), {"l1": 1}), "there are two metrics named l1"),
        (lambda o, t: (o, {}), r"the loss must be one number, got a tensor of shape \[2, 8\]"),
        (lambda o, t: SimpleNamespace(), "what the loss function returned is of type types.Simple"),
    ],
)
def test_a_loss_function_that_returns_something_else_is_told_so(loss_fn, message):
    x, y = batch(8)
    with make_pipe(mlp(2), loss_fn=loss_fn) as pipe:
        with pytest.raises(pipert.PipelineError) as error:
            pipe.step(x, target=y)
        error.match("rank 1")
        assert error.value.__cause__ is not None
        assert re.search(message, str(error.value.__cause__))


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        ("outputs", ValueError, "loss_fn must be 'output' if it is a word, got 'outputs'"),
        ({}, ValueError, "loss_fn must have at least one loss function, got an empty dict"),
        ({1: mse}, TypeError, "loss_fn must have losses by name, got the key 1"),
        ({"a": nn.MSELoss}, TypeError, r"loss_fn\['a'\] must be a function or a module .* MSELoss"),
        (3, TypeError, "loss_fn must be a function or a module .* got int"),
    ],
)
def test_what_is_no_loss_function_is_refused(loss_fn, error, message):
    with pytest.raises(error, match=message):
        make_pipe(mlp(2), loss_fn=loss_fn)


def test_a_target_for_the_models_own_loss_is_refused():
    x, y = batch(8)
    with (
        pipert.Pipeline([OwnLoss(FORMS["first"])], num_microbatches=4, loss_fn="output") as pipe,
        pytest.raises(ValueError, match="expected no target, got Tensor"),
    ):
        pipe.step(x, target=y, labels=y)


def test_losses_and_metrics_of_one_element_are_numbers():
    def loss_fn(output, target):
        return mse(output, target).reshape(1), {"rows": torch.tensor([len(output)])}

    x, y = batch(8)
    with make_pipe(mlp(2), loss_fn=loss_fn) as pipe:
        result = pipe.step(x, target=y)
    assert result.losses.shape == (4,)
    assert isinstance(result.metrics["rows"], Tensor)
    assert result.metrics["rows"].shape == (4,)
