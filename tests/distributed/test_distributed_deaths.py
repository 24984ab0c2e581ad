"""A process that is killed outside of a step: who waits for it learns so at once."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import torch.distributed as dist
from models import data, layers, segment_names, within
from torch.nn import functional

import pipert
from pipert import _C
from pipert.processes import connection
from pipert.processes.distributed import Peers


def _pipeline(**options: Any) -> pipert.Pipeline:
    group = pipert.init()
    return pipert.Pipeline(
        pipert.split(layers(2 * group.size()), group.size()),
        num_microbatches=4,
        loss_fn=functional.mse_loss,
        group=group,
        **{"timeout_s": 20, **options},
    )


def _die(*_args: Any, **_kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _death_while_connecting_is_told(owner: Any, step: str) -> None:
    if pipert.init().rank() == 1:
        setattr(owner, step, _die)
    dist.barrier()  # the clock starts when both are here
    with within(1.5), pytest.raises(pipert.PipelineError) as caught:
        _pipeline()
    assert caught.value.kind == "transfer"
    told = str(caught.value)
    assert "while it waited for the others to" in told, told
    assert "connection closed: process" in told, told
    assert "of rank 1 is gone" in told, told
    own = _C.ShmSegment.make_channel()  # removes what is left of the dead
    assert segment_names() <= {own.name}


@pytest.mark.processes(2, dies=(1,))
def test_death_before_any_memory_is_shared_is_told() -> None:
    _death_while_connecting_is_told(connection.Connection, "_share_memory")


@pytest.mark.processes(2, dies=(1,))
def test_death_before_it_opened_its_segment_is_told() -> None:
    _death_while_connecting_is_told(_C.ShmSegment, "open_channel")


@pytest.mark.processes(2, dies=(1,))
def test_death_once_the_segments_have_no_names_is_told() -> None:
    _death_while_connecting_is_told(connection.Connection, "_drop_what_others_lack")


@pytest.mark.processes(2, dies=(1,))
def test_death_before_the_channels_are_made_is_told() -> None:
    _death_while_connecting_is_told(_C, "connect_processes")


@pytest.mark.processes(2, dies=(1,))
def test_death_before_the_process_groups_are_connected_is_told() -> None:
    if pipert.init().rank() == 1:
        connection.Connection._gloo = _die  # type: ignore[method-assign,assignment]
    message = r"while it connected to rank 1: .*process \d+ of rank 1 is gone"
    with within(1.5), pytest.raises(pipert.PipelineError, match=message) as caught:
        _pipeline(transport="process_group")
    assert caught.value.kind == "transfer"


class Mistake(Exception):  # noqa: N818 - the user's own
    """What stops a rank from connecting in these tests."""


def _refuse(*_args: Any, **_kwargs: Any) -> None:
    raise Mistake("no connection today")


def _a_failure_is_told_to_those_who_connect(and_then: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if pipert.init().rank() == 1:
            patch.setattr(connection.Connection, "_gloo", _refuse)
        dist.barrier()
        with within(1.5), pytest.raises((Mistake, pipert.PipelineError)) as caught:
            _pipeline(transport="process_group")
    if pipert.init().rank() == 1:
        assert caught.type is Mistake
        and_then()
        return
    assert isinstance(caught.value, pipert.PipelineError)
    assert caught.value.kind == "remote", caught.value
    assert "Mistake: no connection today" in str(caught.value)


@pytest.mark.processes(4)
def test_failure_is_told_to_those_who_connect_and_to_those_who_have() -> None:
    _a_failure_is_told_to_those_who_connect(lambda: None)
    with _pipeline() as pipe:
        x, y = data(13)
        pipe.step(x, target=y)


@pytest.mark.processes(2, dies=(1,))
def test_failure_is_told_though_its_process_ends_at_once() -> None:
    _a_failure_is_told_to_those_who_connect(_die)


@pytest.mark.processes(3, dies=(1,))
def test_death_between_two_calls_is_told_to_those_who_make_another() -> None:
    with _pipeline() as pipe:
        x, y = data(13)
        pipe.step(x, target=y)
        if pipert.init().rank() == 1:
            _die()
        with within(1.5), pytest.raises(pipert.PipelineError, match="of rank 1 is gone"):
            pipe.report()


@pytest.mark.processes(3, dies=(1,))
def test_rank_that_has_said_its_part_may_leave_before_the_others_have() -> None:
    peers = Peers(pipert.init())
    peers.timeout_s = 20
    peers.exchange("begin")
    if peers.rank == 1:
        peers._post(1, {"call": "go on", "value": 1})
        _die()
    if peers.rank == 2:
        time.sleep(0.8)  # the first one looks meanwhile who lives
    assert peers.exchange("go on", peers.rank) == [0, 1, 2]
