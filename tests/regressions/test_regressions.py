"""Bugs that were here once, each under the name of what it did."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
import threading
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn

import pipert

pytestmark = pytest.mark.timeout(60)
mse = nn.functional.mse_loss


def test_a_weight_that_stages_share_is_clipped_once():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    reference = copy.deepcopy(model)
    x, y = torch.randn(8, 4), torch.randn(8, 4)
    with pipert.Pipeline(
        [model[0], nn.Sequential(model[1], model[2])], num_microbatches=2, loss_fn=mse
    ) as pipe:
        pipe.step(x, target=y)
        norm = pipe.clip_grad_norm_(0.1)
    for a, b in zip(x.tensor_split(2), y.tensor_split(2), strict=True):
        (mse(reference(a), b) / 2).backward()
    expected = nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(shared.weight.grad, reference[0].weight.grad)


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_batch_in_any_kind_of_dict_is_cut(kind):
    seen = []

    def stage(batch):
        seen.append(len(batch["x"]))
        return batch["x"]

    with pipert.Pipeline([stage, lambda x: x], num_microbatches=4) as pipe:
        output = pipe(kind(x=torch.randn(8, 2)))
    assert seen == [2, 2, 2, 2]
    assert output.shape == (8, 2)


def test_a_batch_in_a_tuple_of_the_users_own_is_refused():
    class Own(tuple):
        """Nobody knows how to make another one."""

    own = Own([torch.randn(8, 2), torch.randn(8, 2)])
    with (
        pipert.Pipeline([lambda p: p[0]], num_microbatches=4) as pipe,
        pytest.raises(TypeError, match="tensors in tuples, lists and dicts to be cut, got Own"),
    ):
        pipe(own, torch.randn(8, 2))


def test_a_batch_in_a_namedtuple_is_cut():
    pair = namedtuple("Pair", "a b")(torch.randn(8, 2), torch.randn(8, 2))
    with pipert.Pipeline([lambda p: p.b], num_microbatches=4) as pipe:
        assert torch.equal(pipe(pair), pair.b)


def test_a_value_that_contains_itself_is_an_error():
    def stage(x):
        value = [x]
        value.append(value)
        return value

    with (
        pipert.Pipeline([stage, lambda x: x], num_microbatches=1) as pipe,
        pytest.raises(pipert.PipelineError) as raised,
    ):
        pipe(torch.randn(2, 2))
    assert isinstance(raised.value.__cause__, ValueError)
    assert "contains itself" in str(raised.value)


@pytest.mark.parametrize("value", [2**70, "\udc80"])
def test_a_plain_value_that_cannot_travel_is_a_python_error(value):
    with (
        pipert.Pipeline([lambda x: (x, value), lambda x, v: x], num_microbatches=1) as pipe,
        pytest.raises(pipert.PipelineError) as raised,
    ):
        pipe(torch.randn(2, 2))
    assert isinstance(raised.value.__cause__, OverflowError | UnicodeEncodeError)


@pytest.mark.parametrize("timeout_s", [math.inf, 1e30])
def test_an_endless_time_limit_does_not_run_out_at_once(timeout_s):
    with pipert.Pipeline([lambda x: x] * 2, num_microbatches=2, timeout_s=timeout_s) as pipe:
        x = torch.randn(4, 2)
        assert torch.equal(pipe(x), x)


@pytest.mark.parametrize("timeout_s", [math.nan, 0, -1.0, "x", None])
def test_a_time_limit_that_is_none_is_refused(timeout_s):
    with pytest.raises(ValueError, match="timeout_s must be a positive number of seconds"):
        pipert.Pipeline([nn.Linear(2, 2)], num_microbatches=1, timeout_s=timeout_s)


def test_a_keyword_that_names_a_stages_first_argument_goes_to_the_first_stage_alone():
    stages = [nn.Linear(2, 3), nn.Linear(3, 4)]
    x = torch.randn(4, 2)
    with pipert.Pipeline(stages, num_microbatches=2) as pipe, torch.no_grad():
        assert torch.equal(pipe(input=x), stages[1](stages[0](x)))
        pieces = pipe.evaluate(microbatches=[{"input": x[:2]}, {"input": x[2:]}])
    assert pieces.loss is None


def test_a_keyword_of_a_microbatch_that_nobody_takes_is_refused():
    with (
        pipert.Pipeline([nn.Linear(2, 2)], num_microbatches=1) as pipe,
        pytest.raises(TypeError, match="no stage's forward takes the keyword argument 'maks'"),
    ):
        pipe.evaluate(microbatches=[{"input": torch.randn(1, 2), "maks": 0}])


def test_a_schedule_without_backwards_does_not_train():
    schedule = pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=2).forward_only()
    stages = [nn.Linear(2, 2), nn.Linear(2, 2)]
    x = torch.randn(4, 2)
    with pipert.Pipeline(stages, schedule=schedule, num_microbatches=2, loss_fn=mse) as pipe:
        with pytest.raises(ValueError, match="step needs a schedule with backwards"):
            pipe.step(x, target=x)
        assert pipe(x).shape == (4, 2)


def test_outputs_in_a_kind_of_dict_are_detached():
    class Head(nn.Linear):
        def forward(self, x):
            return OrderedDict(logits=super().forward(x))

    x = torch.randn(4, 2)
    with pipert.Pipeline(
        [Head(2, 2)], num_microbatches=2, loss_fn=lambda out, y: mse(out["logits"], y)
    ) as pipe:
        outputs = pipe.step(x, target=x, return_outputs=True).outputs
    assert not outputs["logits"].requires_grad


def test_outputs_that_do_not_fit_together_come_as_a_list():
    sizes = iter([2, 3])
    with pipert.Pipeline([lambda x: x.new_zeros(1, next(sizes))], num_microbatches=2) as pipe:
        outputs = pipe(torch.randn(2, 1))
    assert [tuple(piece.shape) for piece in outputs] == [(1, 2), (1, 3)]


def test_a_second_thread_does_not_disturb_the_step_that_runs():
    entered, go_on = threading.Event(), threading.Event()

    def stage(x):
        entered.set()
        assert go_on.wait(20)
        return x

    x = torch.randn(2, 2)
    with pipert.Pipeline([stage], num_microbatches=1) as pipe:
        results = []
        first = threading.Thread(target=lambda: results.append(pipe(x)))
        first.start()
        assert entered.wait(20)
        for call in (lambda: pipe(x), pipe.trace, pipe.report):
            with pytest.raises(ValueError, match="the pipeline is running a step"):
                call()
        go_on.set()
        first.join(20)
        assert torch.equal(results[0], x)


def test_a_report_of_a_pass_that_failed_is_refused():
    def stage(x):
        raise KeyError("no")

    with pipert.Pipeline([stage], num_microbatches=1) as pipe:
        with pytest.raises(pipert.PipelineError):
            pipe(torch.randn(2, 2))
        with pytest.raises(ValueError, match="the last pass failed"):
            pipe.report()


def test_a_failing_loss_module_is_named_as_the_loss_function():
    with (
        pipert.Pipeline(
            [nn.Linear(2, 2)], num_microbatches=1, loss_fn=nn.CrossEntropyLoss()
        ) as pipe,
        pytest.raises(pipert.PipelineError, match="in the loss function") as raised,
    ):
        pipe.step(torch.randn(2, 2), target=torch.tensor([0, 7]))
    assert "stage 0 got" not in str(raised.value)


def test_a_failing_function_says_what_it_got():
    def widen(x):
        return x @ torch.randn(3, 3)

    with (
        pipert.Pipeline([widen], num_microbatches=1) as pipe,
        pytest.raises(pipert.PipelineError, match=r"in widen, which got x: float32\[2, 5\]"),
    ):
        pipe(torch.randn(2, 5))


def test_a_forked_child_leaves_and_cannot_step():
    script = """
import os, sys, torch, pipert
pipe = pipert.Pipeline([torch.nn.Linear(2, 2)], num_microbatches=1)
pipe(torch.randn(2, 2))
child = os.fork()
if child == 0:
    try:
        pipe(torch.randn(2, 2))
    except ValueError as error:
        sys.exit(7 if "forked" in str(error) else 8)
    sys.exit(9)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=50, env=os.environ)
    assert done.returncode == 7
