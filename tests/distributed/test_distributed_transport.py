"""Shared memory and process groups: the same bits, and the same care of faults."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from models import (
    data,
    is_last,
    layers,
    limited_files,
    plain_loop,
    same,
    same_gradients,
    segment_names,
    within,
)
from torch import nn
from torch.nn import functional

import pipert
from pipert import _C
from pipert.processes import transports

SHM = Path("/dev/shm")


def _pipeline(model: Any, **options: Any) -> pipert.Pipeline:
    """Of a model that is to be split, or of its stages."""
    group = pipert.init()
    return pipert.Pipeline(
        pipert.split(model, group.size()) if isinstance(model, nn.Sequential) else model,
        num_microbatches=4,
        loss_fn=functional.mse_loss,
        group=group,
        **{"timeout_s": 20, **options},
    )


def _steps_equal_plain_loop(pipe: pipert.Pipeline, reference: nn.Sequential, rows: int) -> None:
    x, y = data(rows)
    for parameter in (*pipe.parameters(), *reference.parameters()):
        parameter.grad = None
    result = pipe.step(x, target=y)
    losses = plain_loop(reference, x, y, 4)
    same(result.losses, losses if is_last(pipe) else None, "losses")
    same_gradients(pipe, reference)


@pytest.mark.processes(2)
def test_no_more_messages_are_on_their_way_than_there_are_send_slots() -> None:
    for transport in ("shm", "process_group"):
        for slots in (None, 3, 1):
            reference = layers(4)
            with _pipeline(
                layers(4), transport=transport, schedule="gpipe", receive_slots=1, send_slots=slots
            ) as pipe:
                for rows in (12, 900):
                    _steps_equal_plain_loop(pipe, reference, rows)
                first = pipe.report().memory[0]
                sends = [e for e in pipe.trace(all_ranks=True).events_of(0) if e.kind == "send"]
            assert first.transfer_bytes == sum(event.bytes for event in sends[: slots or 4])


def _both_transports_give_the_bits_of_the_plain_loop(schedule: str) -> None:
    size = pipert.init().size()
    for transport, expected in [("auto", "shm"), ("shm", "shm"), ("process_group",) * 2]:
        reference = layers(2 * size)
        with _pipeline(layers(2 * size), transport=transport, schedule=schedule) as pipe:
            for rows in (13, 4, 900, 14):  # sizes change as they like
                _steps_equal_plain_loop(pipe, reference, rows)
                x, _ = data(rows + 1)
                output = pipe(x)
                plain = torch.cat([reference(part).detach() for part in x.tensor_split(4)])
                same(output, plain if is_last(pipe) else None, "output")
            edges = pipe.report().transports
            assert {edge.transport for edge in edges} == {expected}, edges
            assert len(edges) == 2 * (size - 1)
            assert set(pipe.transports) <= set(edges)
    assert segment_names() == set()


@pytest.mark.processes(2)
def test_two_ranks_give_the_bits_of_the_plain_loop_over_either_transport() -> None:
    _both_transports_give_the_bits_of_the_plain_loop("1f1b")


@pytest.mark.processes(3)
def test_three_ranks_give_the_bits_of_the_plain_loop_over_either_transport() -> None:
    _both_transports_give_the_bits_of_the_plain_loop("gpipe")


@pytest.mark.processes(4)
def test_four_ranks_give_the_bits_of_the_plain_loop_over_either_transport() -> None:
    _both_transports_give_the_bits_of_the_plain_loop("zb_h1")


@pytest.mark.processes(2)
def test_copies_of_the_model_meet_over_either_transport() -> None:
    results = []
    for transport in ("shm", "process_group"):
        with _pipeline(layers(4), transport=transport, schedule="dualpipe") as pipe:
            x, y = data(16)
            pipe.step(x, target=y)
            results.append({name: p.grad.clone() for name, p in pipe.named_parameters()})
    for name, gradient in results[0].items():
        same(gradient, results[1][name], name)


class Wide(nn.Module):
    """Hands a large tensor on, of which only a few numbers are used."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat(1, 20_000)


class Narrow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :8]


@pytest.mark.processes(2)
def test_messages_that_find_no_room_in_shared_memory_arrive_all_the_same() -> None:
    def model() -> nn.Sequential:
        return nn.Sequential(layers(1), Wide(), Narrow(), layers(1, seed=3))

    reference = model()
    pieces = model()
    with (
        _pipeline([pieces[:2], pieces[2:]], transport="shm") as pipe,
        limited_files(1 << 20),
    ):
        for _ in range(2):
            for parameter in (*pipe.parameters(), *reference.parameters()):
                parameter.grad = None
            x, y = data(16)  # 4 rows of 160000 floats a message
            result = pipe.step(x, target=y)
            losses = plain_loop(reference, x, y, 4)
            same(result.losses, losses if is_last(pipe) else None, "losses")


class Keeper(nn.Module):
    """Keeps what it was given, as a hook of the user's may."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept.append(x.detach())
        return x[:, :8]


@pytest.mark.processes(2)
def test_large_messages_that_a_stage_keeps_stay_as_they_are() -> None:
    """They lie in shared memory, which isn't used again while anybody has them."""
    keeper = Keeper()
    pieces = nn.Sequential(layers(1), Wide(), keeper, layers(1, seed=3))
    with _pipeline([pieces[:2], pieces[2:]], transport="shm") as pipe:
        batches = [data(16, seed=seed) for seed in range(5)]
        for x, y in batches:
            pipe.step(x, target=y)
        if is_last(pipe):
            with torch.no_grad():
                sent = [pieces[:2](part) for x, _ in batches for part in x.chunk(4)]
            for kept, expected in zip(keeper.kept, sent, strict=True):
                same(kept, expected, "kept")
    for kept in keeper.kept:
        kept += 1  # the pipeline is closed: they are this process's still
    keeper.kept.clear()


@pytest.mark.processes(2)
def test_full_shared_memory_is_said_or_gone_round() -> None:
    rank = pipert.init().rank()
    with limited_files((1 << 14) if rank == 1 else resource.RLIM_INFINITY):
        message = r"transport 'shm' can't be had, .*rank 1: /dev/shm has no room for \d+ bytes"
        with within(2.0), pytest.raises(ValueError, match=message):
            _pipeline(layers(2), transport="shm")
        reference = layers(2)
        with _pipeline(layers(2), transport="auto") as pipe:
            _steps_equal_plain_loop(pipe, reference, 13)
            kinds = {(e.source, e.destination): e for e in pipe.report().transports}
            assert kinds[0, 1].transport == "shm"
            assert kinds[1, 0].transport == "process_group"
            assert "rank 1: /dev/shm has no room" in kinds[1, 0].reason
    assert segment_names() == set()


@pytest.mark.processes(2)
def test_ranks_that_cannot_share_memory_use_process_groups() -> None:
    rank = pipert.init().rank()
    with pytest.MonkeyPatch.context() as patch:
        home = transports.Home.of(torch.device("cpu"))
        other = transports.Home(f"host{rank}", f"boot {rank}", *list(vars(home).values())[2:])
        patch.setattr(transports.Home, "of", classmethod(lambda cls, device: other))
        reference = layers(2)
        with _pipeline(layers(2)) as pipe:
            _steps_equal_plain_loop(pipe, reference, 13)
            edges = pipe.transports
            assert {edge.transport for edge in edges} == {"process_group"}
            assert "different hosts, host0 and host1" in edges[0].reason
        with pytest.raises(ValueError, match=r"'shm' can't be had, edge 0->1: .* different hosts"):
            _pipeline(layers(2), transport="shm")


@pytest.mark.processes(2)
def test_two_pipelines_of_one_user_at_once_do_not_meet() -> None:
    one, other = layers(2, seed=1), layers(2, seed=2)
    with _pipeline(layers(2, seed=1)) as first, _pipeline(layers(2, seed=2)) as second:
        for rows in (5, 9):
            _steps_equal_plain_loop(first, one, rows)
            _steps_equal_plain_loop(second, other, rows)


@pytest.mark.processes(2)
def test_cuda_ipc_between_ranks_on_the_cpu_is_a_value_error_everywhere() -> None:
    message = r"transport 'cuda_ipc' can't be had, edge 0->1: a rank is on cpu"
    with pytest.raises(ValueError, match=message):
        _pipeline(layers(2), transport="cuda_ipc")


def _home(**changes: object) -> transports.Home:
    return dataclasses.replace(
        transports.Home.of(torch.device("cuda")), **{"has_cuda_ipc": True, **changes}
    )


@pytest.mark.parametrize(
    ("transport", "changes", "reason"),
    [
        ("auto", {}, None),
        ("cuda_ipc", {}, None),
        ("process_group", {}, "transport='process_group'"),
        ("auto", {"device": "cpu"}, "a rank is on cpu"),
        ("auto", {"has_cuda_ipc": False}, "built without CUDA"),
        ("auto", {"boot": "another"}, "on different hosts"),
    ],
)
def test_edge_between_gpus_has_copy_engines_or_a_reason(
    transport: str, changes: dict[str, object], reason: str | None
) -> None:
    got = transports.reason_against_cuda_ipc(transport, _home(), _home(**changes))
    assert got is None if reason is None else got is not None and reason in got, got


@pytest.mark.processes(2)
def test_different_transports_on_two_ranks_are_a_value_error_everywhere() -> None:
    mine = ["shm", "process_group"][pipert.init().rank()]
    with pytest.raises(ValueError, match="transport is shm on rank 0 and process_group on rank 1"):
        _pipeline(layers(2), transport=mine)


@pytest.mark.parametrize(
    ("transport", "message"),
    [
        ("tcp", "must be one of 'auto', 'shm', 'cuda_ipc', 'process_group', 'local', got 'tcp'"),
        ("shm", "threads of one process, got 'shm'"),
        ("cuda_ipc", "threads of one process, got 'cuda_ipc'"),
        ("process_group", "threads of one process, got 'process_group'"),
    ],
)
def test_transport_that_threads_cannot_have_is_a_value_error(transport: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipert.Pipeline(pipert.split(layers(2), 2), num_microbatches=2, transport=transport)


def test_threads_say_that_their_edges_are_local() -> None:
    for transport in ("auto", "local"):
        with pipert.Pipeline(
            pipert.split(layers(2), 2), num_microbatches=2, transport=transport
        ) as pipe:
            assert [str(edge) for edge in pipe.transports] == [
                "edge 0->1: local (threads of one process)",
                "edge 1->0: local (threads of one process)",
            ]


def _death_is_told(victim: int, transport: str) -> None:
    rank = pipert.init().rank()
    model = layers(2 * pipert.init().size())
    with _pipeline(model, transport=transport) as pipe:
        x, y = data(13)
        pipe.step(x, target=y)
        if rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.3)
        with within(1.0), pytest.raises(pipert.PipelineError) as caught:
            pipe.step(x, target=y)
        told = str(caught.value)
        assert f"rank {victim}" in told or f"{victim}->" in told, told
        assert "closed" in told.lower() or "reset" in told.lower(), told
    assert segment_names() == set()


@pytest.mark.processes(2, dies=(1,))
def test_death_between_two_steps_is_told_over_shared_memory() -> None:
    _death_is_told(1, "shm")


@pytest.mark.processes(3, dies=(1,))
def test_death_of_the_middle_rank_is_told_over_shared_memory() -> None:
    _death_is_told(1, "shm")


@pytest.mark.processes(2, dies=(1,))
def test_death_between_two_steps_is_told_over_process_groups() -> None:
    _death_is_told(1, "process_group")


def test_segment_of_a_killed_process_is_removed_by_the_next_pipeline() -> None:
    code = (
        "import torch, os, signal\n"
        "from pipert import _C\n"
        "segment = _C.ShmSegment.make_channel()\n"
        "print(segment.name, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    name = killed.stdout.strip()
    assert killed.returncode == -signal.SIGKILL
    assert (SHM / name).exists()
    own = _C.ShmSegment.make_channel()
    assert not (SHM / name).exists()
    assert (SHM / own.name).exists()
    del own
    assert segment_names() == set()
