"""A rank fails: all are told within a second, nothing hangs, and the pipeline works again."""

from __future__ import annotations

import copy
import os
import re
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from models import (
    WIDTH,
    data,
    is_last,
    layers,
    plain_loop,
    same,
    same_gradients,
    within,
)
from torch import Tensor, nn
from torch.nn import functional

import pipert


class Mistake(Exception):  # noqa: N818 - the user's own
    """What the user's code raises in these tests."""


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise Mistake("in backward")


class Faulty(nn.Module):
    """A layer that fails at its call number `at`, when it is told to."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.fails = ""
        self.call = 0
        self.at = 2

    def forward(self, x: Tensor) -> Tensor:
        self.call += 1
        if self.call == self.at and self.fails == "forward":
            raise Mistake("in forward")
        if self.call == self.at and self.fails == "backward":
            x = FailsBackward.apply(x if x.requires_grad else x.requires_grad_())
        if self.call == self.at and self.fails == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C, which the main thread will see
            while True:  # until that ends it
                pass
        if self.call == self.at and self.fails == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(x)


class Setup:
    """A pipeline of one faulty stage a rank, and the whole model beside it."""

    def __init__(self, **options: Any) -> None:
        self.group = pipert.init()
        self.rank, self.size = self.group.rank(), self.group.size()
        self.loss_fails = False
        self.model = nn.Sequential(*[Faulty(layers(1, seed=i)) for i in range(self.size)])
        self.reference = copy.deepcopy(self.model)
        self.x, self.y = data(13)
        self.pipe = pipert.Pipeline(
            pipert.split(self.model, self.size),
            num_microbatches=4,
            loss_fn=self.loss,
            group=self.group,
            **{"timeout_s": 20, **options},
        )

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        if self.loss_fails:
            raise Mistake("in loss")
        return functional.mse_loss(output, target)

    def step(self, fails: str = "", on: int = 0) -> pipert.StepResult:
        for layer in self.model:
            layer.call = 0
        self.model[on].fails = fails if self.rank == on else ""
        self.loss_fails = fails == "loss" and self.rank == on
        try:
            return self.pipe.step(self.x, target=self.y)
        finally:
            self.model[on].fails, self.loss_fails = "", False

    def works(self) -> None:
        """The next step has the right bits."""
        for parameter in (*self.model.parameters(), *self.reference.parameters()):
            parameter.grad = None
        result = self.step()
        losses = plain_loop(self.reference, self.x, self.y, 4)
        same(result.losses, losses if is_last(self.pipe) else None, "losses after a failure")
        same_gradients(self.pipe, self.reference)


def _failure(setup: Setup, fails: str, on: int) -> pipert.PipelineError:
    with within(1.0), pytest.raises(pipert.PipelineError) as caught:
        setup.step(fails, on)
    return caught.value


def _every_failure_reaches_every_rank() -> None:
    setup = Setup()
    setup.works()
    last = setup.size - 1
    cases = [(kind, rank) for kind in ("forward", "backward") for rank in range(setup.size)]
    for kind, origin in [*cases, ("loss", last)]:
        error = _failure(setup, kind, origin)
        letter = "B" if kind == "backward" else "F"
        microbatch = 0 if kind == "loss" else 1
        where = (error.rank, error.stage, error.microbatch, error.action)
        assert where == (origin, origin, microbatch, f"{origin}{letter}{microbatch}"), (kind, where)
        assert f"Mistake: in {kind}" in str(error), error
        if setup.rank == origin:
            assert error.kind == "action"
            assert isinstance(error.__cause__, Mistake), error.__cause__
            assert error.__cause__.__traceback__ is not None
        else:
            assert error.kind == "remote"
            assert f"another rank failed: rank {origin}, stage {origin}" in str(error), error
            assert 'raise Mistake("in' in str(error.__cause__), error.__cause__
        setup.works()


@pytest.mark.processes(2)
def test_every_failure_reaches_both_ranks_and_the_pipeline_works_again() -> None:
    _every_failure_reaches_every_rank()


@pytest.mark.processes(3)
def test_every_failure_reaches_three_ranks_and_the_pipeline_works_again() -> None:
    _every_failure_reaches_every_rank()


def _resources() -> tuple[int, int]:
    """Threads and open files of this process."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def _no_more_than(before: tuple[int, int]) -> None:
    """A connection that is being closed may count in one of the two measurements."""
    after = _resources()
    assert all(new <= old + 1 for new, old in zip(after, before, strict=True)), (after, before)


@pytest.mark.processes(2)
def test_ten_failures_in_a_row_leak_no_threads_and_no_files() -> None:
    setup = Setup()
    _failure(setup, "forward", 0)
    setup.works()
    before = _resources()
    for count in range(10):
        _failure(setup, ("forward", "backward")[count % 2], count // 2 % 2)
    setup.works()
    _no_more_than(before)


def _sockets() -> set[str]:
    """Those of this process that are open, by their numbers."""
    targets = {
        os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")
    }
    return {target for target in targets if "socket:" in target}


@pytest.mark.processes(2)
def test_a_recovery_opens_no_connection_to_the_store() -> None:
    """Its server looks up each new client's name, which may take seconds."""
    setup = Setup(transport="shm")
    before = _sockets()
    _failure(setup, "forward", 0)
    setup.works()
    assert _sockets() <= before  # those of a test before may still be closing


@pytest.mark.processes(2)
def test_missing_target_is_told_to_all() -> None:
    setup = Setup()
    for _ in range(2):
        target = None if setup.rank == 1 else setup.y
        with within(1.0), pytest.raises((ValueError, pipert.PipelineError)) as caught:
            setup.pipe.step(setup.x, target=target)
        if setup.rank == 1:
            assert caught.type is ValueError
        else:
            assert caught.type is pipert.PipelineError
            assert caught.value.rank == 1
            assert "rank 1: ValueError: the last stage's rank needs the target" in str(caught.value)
        setup.works()


@pytest.mark.processes(2)
def test_missing_loss_function_is_told_to_all() -> None:
    group = pipert.init()
    x, y = data(4)
    with pipert.Pipeline(pipert.split(layers(2), 2), num_microbatches=2, group=group) as pipe:
        with within(1.0), pytest.raises((ValueError, pipert.PipelineError)) as caught:
            pipe.step(x, target=y)
        assert (caught.type is ValueError) == (group.rank() == 1)
        assert "step needs a loss function" in str(caught.value)
        assert (pipe(x) is None) == (group.rank() == 0)


@pytest.mark.processes(2)
@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("num_microbatches", {}, {"num_microbatches": 6}),
        ("schedule.actions[0][2]", {}, {"schedule": "gpipe"}),
        ("num_stages", {"stages": 2}, {"stages": 4, "schedule": "interleaved_1f1b"}),
        ("broadcast_loss", {}, {"broadcast_loss": True}),
        ("receive_slots", {}, {"receive_slots": 3}),
        ("send_slots", {}, {"send_slots": 3}),
    ],
)
def test_different_arguments_are_a_value_error_everywhere(
    name: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    group = pipert.init()
    mine = [first, second][group.rank()]
    options = {"stages": 2, "schedule": "1f1b", "num_microbatches": 4, **mine}
    stages = pipert.split(layers(4), options.pop("stages"))
    with (
        within(1.0),
        pytest.raises(ValueError, match=rf"different arguments: {re.escape(name)} is .* rank 1"),
    ):
        pipert.Pipeline(stages, group=group, timeout_s=20, **options)
    Setup().works()


@pytest.mark.processes(2)
@pytest.mark.parametrize("is_built", [True, False], ids=["modules", "builders"])
def test_cuts_at_other_places_are_a_value_error_everywhere(is_built: bool) -> None:
    group = pipert.init()
    kinds = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()]
    model = kinds if is_built else [lambda kind=kind: kind for kind in kinds]
    stages = pipert.split(model, balance=[[1, 3], [2, 2]][group.rank()])
    with (
        within(1.0),
        pytest.raises(ValueError, match=r"stages.layers\[0\] is 0 on rank 0 and 0-1 on rank 1"),
    ):
        pipert.Pipeline(stages, num_microbatches=4, group=group, timeout_s=20)


@pytest.mark.processes(2)
def test_an_overlap_fn_on_some_ranks_alone_is_a_value_error_everywhere() -> None:
    group = pipert.init()

    def forward_first(forward: pipert.OverlapHalf, backward: pipert.OverlapHalf) -> None:
        forward()
        backward()

    with (
        within(1.0),
        pytest.raises(ValueError, match="joint_pairs is False on rank 0 and True on rank 1"),
    ):
        pipert.Pipeline(
            pipert.split(layers(4), 4),
            schedule="dualpipe_v",
            num_microbatches=4,
            overlap_fn=forward_first if group.rank() == 1 else None,
            group=group,
            timeout_s=20,
        )
    Setup().works()


def _pipeline_from_file(name: str, rows: str) -> pipert.Pipeline:
    """One stage for each of four layers, under a schedule that a file of this name holds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.csv"
        file.write_text(rows)
        return pipert.Pipeline(
            pipert.split(layers(4), 4),
            schedule=file,
            num_microbatches=2,
            loss_fn=functional.mse_loss,
            group=pipert.init(),
            timeout_s=20,
        )


LOOP = "0F0,0F1,2F0,2F1,2B0,2B1,0B0,0B1\n1F0,1F1,3F0,3F1,3B0,3B1,1B0,1B1\n"
V_SHAPED = "0F0,0F1,3F0,3F1,3B0,3B1,0B0,0B1\n1F0,1F1,2F0,2F1,2B0,2B1,1B0,1B1\n"
OTHER_ORDER = "0F0,0F1,2F0,2F1,2B0,2B1,0B1,0B0\n1F0,1F1,3F0,3F1,3B0,3B1,1B0,1B1\n"


@pytest.mark.processes(2)
def test_ranks_may_read_the_same_schedule_from_files_of_different_names() -> None:
    reference = layers(4)
    x, y = data(5)
    with _pipeline_from_file(f"of-rank-{pipert.init().rank()}", LOOP) as pipe:
        pipe.step(x, target=y)
        plain_loop(reference, x, y, 2)
        same_gradients(pipe, reference)


@pytest.mark.processes(2)
@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (V_SHAPED, "schedule.placement.ranks[2] is 0 on rank 0 and 1 on rank 1"),
        (OTHER_ORDER, "schedule.actions[0][6] is 0B0 on rank 0 and 0B1 on rank 1"),
    ],
    ids=["placement", "order"],
)
def test_schedules_of_the_same_name_are_refused_where_they_differ(
    other: str, difference: str
) -> None:
    with within(1.0), pytest.raises(ValueError, match=re.escape(difference)):
        _pipeline_from_file("same", [LOOP, other][pipert.init().rank()])


@pytest.mark.processes(2)
def test_construction_that_fails_on_one_rank_is_told_to_all() -> None:
    group = pipert.init()
    x, y = data(4)

    def build() -> nn.Module:
        if group.rank() == 1 and fails == "builder":
            raise Mistake("in a builder")
        return layers(1)

    for fails in ("argument", "builder", "schedule", "timeout", "nothing"):
        options: dict[str, Any] = {"num_microbatches": 2, "loss_fn": functional.mse_loss}
        if group.rank() == 1 and fails == "argument":
            options["num_microbatches"] = 0
        if group.rank() == 1 and fails == "schedule":
            options["schedule"] = "1f2b"
        if fails == "nothing":
            pipert.Pipeline([build, build], group=group, **options).step(x, target=y)
            continue
        timeout_s = -1 if group.rank() == 1 and fails == "timeout" else 20
        with within(1.0), pytest.raises((ValueError, Mistake, pipert.PipelineError)) as caught:
            pipert.Pipeline([build, build], group=group, timeout_s=timeout_s, **options)
        assert (caught.type is pipert.PipelineError) == (group.rank() == 0), caught.value
        if group.rank() == 0:
            assert "another rank failed: rank 1: " in str(caught.value)


@pytest.mark.processes(2)
def test_different_batches_are_an_error() -> None:
    setup = Setup()
    x, y = data(13)
    if setup.rank == 0:
        x = x[:11]
    with (
        within(1.0),
        pytest.raises(pipert.PipelineError, match="ranks were given different batches"),
    ):
        setup.pipe.step(x, target=y)
    setup.works()


@pytest.mark.processes(2)
def test_arguments_that_a_rank_does_not_need_are_ignored_there() -> None:
    setup = Setup()
    x, y = data(16)
    needless = {0: x, 1: x[:8]}[setup.rank]
    setup.pipe.step(needless, target=y)
    assert (setup.pipe(needless) is not None) == (setup.rank == 1)


@pytest.mark.processes(2)
def test_inference_of_a_schedule_that_reads_out_of_order_ends() -> None:
    """Messages of more than one part, each of which arrives whole only when it is read."""
    order = [1, 2, 3, 4, 5, 6, 7, 0]
    schedule = pipert.Schedule(
        [
            [f"0F{m}" for m in range(8)] + [f"0B{m}" for m in range(8)],
            [f"1F{m}" for m in order] + [f"1B{m}" for m in range(8)],
        ]
    )
    x = torch.randn(8 * 32, 64, generator=torch.Generator().manual_seed(0))
    group = pipert.init()
    with pipert.Pipeline(
        [nn.Identity(), nn.Linear(64, 64)],
        schedule=schedule,
        num_microbatches=8,
        group=group,
        timeout_s=10,
    ) as pipe:
        output = pipe(x)
        if group.rank() == 1:
            same(output, torch.cat([pipe.stages[1](part) for part in x.split(32)]).detach())


@pytest.mark.processes(2)
def test_batches_of_different_size_are_an_error_even_if_they_are_cut_alike() -> None:
    setup = Setup()
    x, y = data(16)
    if setup.rank == 0:
        x = x[:8]
    message = "a batch of 8 rows on the first stage's rank, and a batch of 16 rows for stage 1"
    with within(1.0), pytest.raises(pipert.PipelineError, match=message):
        setup.pipe.step(x, target=y)
    setup.works()


@pytest.mark.processes(3)
@pytest.mark.parametrize("odd", [0, 1, 2])
def test_rank_that_evaluates_while_others_train_is_an_error(odd: int) -> None:
    setup = Setup()
    for rows in (13, 4000):  # evaluations and steps of other sizes must not kill the process
        x, y = data(rows)
        setup.pipe.step(x, target=y)
        setup.pipe.evaluate(x[:8], target=y[:8])
        call = setup.pipe.evaluate if setup.rank == odd else setup.pipe.step
        with within(1.5), pytest.raises(pipert.PipelineError, match="don't run the same step"):
            call(x, target=y)
        setup.works()


@pytest.mark.processes(2)
def test_rank_that_makes_another_call_is_an_error() -> None:
    setup = Setup()
    setup.works()
    pipe = setup.pipe
    call = pipe.report if setup.rank == 0 else lambda: pipe.clip_grad_norm_(1.0)
    with within(1.0), pytest.raises(ValueError, match="ranks made different calls"):
        call()
    setup.works()


@pytest.mark.processes(2)
def test_report_of_a_failed_pass_is_told_to_the_rank_that_steps() -> None:
    setup = Setup()
    setup.works()
    _failure(setup, "forward", 1)
    if setup.rank == 0:
        with pytest.raises(ValueError, match="nothing to show: the last pass failed"):
            setup.pipe.report()
    else:
        with within(1.0), pytest.raises(pipert.PipelineError, match="the last pass failed"):
            setup.step()
    setup.works()


@pytest.mark.processes(3)
def test_rank_that_does_not_come_is_named_when_the_time_is_up() -> None:
    """Rank 1 comes when the others have told, through the store, that they gave up."""
    setup = Setup(timeout_s=1.0)
    setup.works()
    store = torch.distributed.distributed_c10d._get_default_store()
    if setup.rank == 1:
        store.wait(["0 gave up", "2 gave up"])
        with (
            within(1.0),
            pytest.raises(pipert.PipelineError, match="no progress for 1 s") as caught,
        ):
            setup.step()
        assert caught.value.kind == "remote"
    else:
        start = time.monotonic()
        with pytest.raises(pipert.PipelineError, match="no progress for 1 s") as caught:
            setup.step()
        assert 1.0 <= time.monotonic() - start < 2.0
        assert "from rank 1" in str(caught.value), caught.value
        store.set(f"{setup.rank} gave up", "")
    setup.works()


@pytest.mark.processes(2)
def test_rank_that_does_not_make_the_pipeline_is_named_when_the_time_is_up() -> None:
    group = pipert.init()
    store = torch.distributed.distributed_c10d._get_default_store()
    if group.rank() == 0:
        with pytest.raises(pipert.PipelineError, match="rank 0 waited 1 s for rank 1") as caught:
            Setup(timeout_s=1.0)
        assert "to make the pipeline" in str(caught.value)
        _is_timeout_of(0, caught.value)
        store.set("gave up", "")
    else:
        store.wait(["gave up"])
        with within(1.0), pytest.raises(pipert.PipelineError, match="rank 0 waited 1 s for rank 1"):
            Setup(timeout_s=1.0)
    Setup().works()


def _is_timeout_of(rank: int, error: pipert.PipelineError) -> None:
    assert (error.kind, error.rank) == ("timeout", rank)
    assert isinstance(error, TimeoutError)


@pytest.mark.processes(2)
def test_rank_that_does_not_connect_again_is_named_when_the_time_is_up() -> None:
    setup = Setup(timeout_s=1.0)
    store = torch.distributed.distributed_c10d._get_default_store()
    _failure(setup, "forward", 1)
    if setup.rank == 0:
        with pytest.raises(pipert.PipelineError, match="waited 1 s for rank 1 to connect") as late:
            setup.step()
        _is_timeout_of(0, late.value)
        with within(0.5), pytest.raises(pipert.PipelineError, match="make a new one") as lost:
            setup.step()
        _is_timeout_of(0, lost.value)
        store.set("gave up to connect", "")
    else:
        store.wait(["gave up to connect"])
        with within(1.0), pytest.raises(pipert.PipelineError, match="rank 0 waited 1 s") as told:
            setup.step()
        assert told.value.kind == "remote"
    Setup().works()


@pytest.mark.processes(2)
@pytest.mark.parametrize("transport", ["auto", "process_group"])
def test_a_rank_whose_resolver_is_slow_is_waited_for(transport: str) -> None:
    store = torch.distributed.distributed_c10d.PrefixStore
    clone = store.clone

    def slow(own: Any) -> Any:
        time.sleep(2.5 * pipert.init().rank())
        return clone(own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "clone", slow)
        setup = Setup(timeout_s=1.0, transport=transport)
    setup.works()


@pytest.mark.processes(2)
def test_rank_that_fails_while_the_others_connect_to_it_is_a_pipeline_error() -> None:
    """The others wait in gloo, which hears nothing."""
    if pipert.init().rank() == 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, "ProcessGroupGloo", _mistake)
            with pytest.raises(Mistake):
                Setup(transport="process_group")
    else:
        message = "another rank failed: rank 1: Mistake: in gloo"
        with within(1.5), pytest.raises(pipert.PipelineError, match=message) as told:
            Setup(transport="process_group")
        assert told.value.kind == "remote"
    Setup().works()


def _mistake(*_: object, **__: object) -> None:
    raise Mistake("in gloo")


@pytest.mark.processes(2)
def test_interrupt_of_one_rank_ends_the_step_everywhere() -> None:
    setup = Setup()
    for origin in (0, 1):
        with within(2.0), pytest.raises((KeyboardInterrupt, pipert.PipelineError)) as caught:
            setup.step("interrupt", origin)
        if setup.rank == origin:
            assert caught.type is KeyboardInterrupt
        else:
            assert caught.value.rank == origin
            assert "the step was interrupted" in str(caught.value), caught.value
        setup.works()


@pytest.mark.processes(2)
def test_interrupt_of_all_ranks_ends_the_step_everywhere() -> None:
    setup = Setup()
    setup.model[1].at = 1  # the only microbatch that comes so far
    with within(2.0), pytest.raises(KeyboardInterrupt):
        setup.step("interrupt", setup.rank)
    setup.works()


@pytest.mark.processes(2)
def test_interrupt_while_waiting_for_a_rank_that_does_not_come() -> None:
    setup = Setup()
    setup.works()
    store = torch.distributed.distributed_c10d._get_default_store()
    if setup.rank == 1:
        store.wait(["interrupted"])
        with within(1.0), pytest.raises(pipert.PipelineError, match="interrupted"):
            setup.step()
    else:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
        with within(1.0), pytest.raises(KeyboardInterrupt):
            setup.step()
        signal.signal(signal.SIGALRM, previous)
        store.set("interrupted", "")
    setup.works()


@pytest.mark.processes(2)
def test_exceptions_that_cannot_be_printed_are_told_all_the_same() -> None:
    class Mute(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise RuntimeError("no text")

    group = pipert.init()

    def first(x: Tensor) -> Tensor:
        raise Mute

    def second(x: Tensor) -> Tensor:
        return x

    with (
        pipert.Pipeline([first, second], num_microbatches=2, group=group) as pipe,
        within(1.0),
        pytest.raises(pipert.PipelineError, match="Mute"),
    ):
        pipe(torch.zeros(4, WIDTH))


@pytest.mark.processes(2)
def test_last_step_may_be_followed_by_a_close_at_once() -> None:
    """A rank that closes while another still ends the step doesn't take the step away from it."""
    x, y = data(8)
    for _ in range(8):
        with pipert.Pipeline(
            pipert.split(layers(2), 2),
            num_microbatches=2,
            loss_fn=functional.mse_loss,
            group=pipert.init(),
            timeout_s=20,
        ) as pipe:
            pipe.step(x, target=y)


def _death_is_told(victim: int) -> None:
    setup = Setup()
    setup.works()
    with within(1.0), pytest.raises(pipert.PipelineError) as caught:
        setup.step("die", victim)
    assert f"rank {victim}" in str(caught.value) or f"{victim}->" in str(caught.value), caught.value
    assert "closed" in str(caught.value).lower() or "reset" in str(caught.value).lower()


@pytest.mark.processes(3, dies=(2,))
def test_death_of_the_last_rank_is_told() -> None:
    _death_is_told(2)


@pytest.mark.processes(3, dies=(1,))
def test_death_of_a_middle_rank_is_told() -> None:
    _death_is_told(1)


@pytest.mark.processes(2, dies=(0,))
def test_death_of_the_rank_that_serves_the_store_is_told() -> None:
    _death_is_told(0)


@pytest.mark.processes(2, dies=(0,))
def test_death_of_the_rank_that_serves_the_store_is_told_to_those_who_make_a_pipeline() -> None:
    if pipert.init().rank() == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    with within(5.0), pytest.raises(pipert.PipelineError, match="make the pipeline") as caught:
        Setup(timeout_s=20)
    assert caught.value.kind == "transfer"
