"""Traces of all ranks in time with each other, reports, costs and reschedule between processes."""

from __future__ import annotations

import copy
import json
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from models import data, layers, plain_loop, same, same_everywhere, same_gradients, within

import pipert
from pipert.reports import clocks

PARTS = ("compute_s", "transfer_s", "upstream_s", "downstream_s", "end_s", "host_s")


def _make(model: torch.nn.Module, schedule: str = "1f1b", per_rank: int = 1, **options: object):
    group = pipert.init()
    return pipert.Pipeline(
        pipert.split(model, per_rank * group.size()),
        schedule=schedule,
        num_microbatches=4,
        loss_fn=torch.nn.functional.mse_loss,
        group=group,
        timeout_s=20,
        broadcast_loss=True,
        **options,
    )


@pytest.mark.processes(2)
def test_a_trace_of_all_ranks_is_the_same_everywhere_and_in_the_order_of_its_messages() -> None:
    with _make(layers(4), "interleaved_1f1b", 2, trace=2) as pipe:
        x, y = data(8)
        for _ in range(3):
            pipe.step(x, target=y)
        mine = pipe.trace()
        assert {event.rank for event in mine.events} == {dist.get_rank()}
        for ago in (0, 1):
            trace = pipe.trace(all_ranks=True, ago=ago)
            assert [rank.rank for rank in trace.ranks] == [0, 1]
            assert trace.clock_error_s == 0.0
            same_everywhere(str(trace.events))
            for event in trace.events:
                sent = trace.send_of(event)
                if event.kind == "run" and sent is not None:
                    assert sent.issued <= event.started
        assert set(pipe.trace(all_ranks=True).peak_activations) == {0, 1}
        own = [e.ended - e.started for e in mine.events]
        whole = [
            e.ended - e.started for e in pipe.trace(all_ranks=True).events_of(mine.events[0][0])
        ]
        assert own == pytest.approx(whole, abs=1e-9)


@pytest.mark.processes(2)
def test_chromes_form_has_arrows_between_processes() -> None:
    with _make(layers(4)) as pipe, tempfile.TemporaryDirectory() as folder:
        x, y = data(8)
        pipe.step(x, target=y)
        path = Path(folder) / "trace.json"
        pipe.trace(all_ranks=True).to_chrome(path)
        records = json.loads(path.read_text())["traceEvents"]
        ways = {
            (begin["pid"], end["pid"])
            for begin in records
            for end in records
            if begin["ph"] == "s" and end["ph"] == "f" and begin["id"] == end["id"]
        }
        assert ways == {(0, 1), (1, 0)}
        pipe.trace().to_chrome(path)  # a rank alone: no arrows, no failure
        assert not [r for r in json.loads(path.read_text())["traceEvents"] if r["ph"] == "s"]


@pytest.mark.processes(3)
def test_parts_add_up_to_wall_time_on_every_rank() -> None:
    for schedule, per_rank in (("1f1b", 1), ("zb_v", 2)):
        with _make(layers(6), schedule, per_rank) as pipe:
            x, y = data(8)
            for run in (pipe.step, pipe.step, pipe.evaluate):
                run(x, target=y)
                report = pipe.report()
                assert len(report.ranks) == 3
                for rank in report.ranks:
                    parts = [getattr(rank, part) for part in PARTS]
                    assert sum(parts) == pytest.approx(rank.step_s, rel=0.02)
                    assert min(parts) >= -1e-9
                same_everywhere(str(report))


@pytest.mark.processes(2)
def test_clocks_of_two_hosts_are_estimated_within_their_own_bound() -> None:
    shift = 5_000_000_000
    rank = dist.get_rank()
    was = clocks.clock_name, clocks.clock_ns
    clocks.clock_name = lambda: f"host {rank}"
    clocks.clock_ns = lambda: time.monotonic_ns() + shift * rank
    try:
        with _make(layers(4)) as pipe:
            first, second = clocks.compare_clocks(pipe._peers)
            x, y = data(8)
            pipe.step(x, target=y)
            trace = pipe.trace(all_ranks=True)
    finally:
        clocks.clock_name, clocks.clock_ns = was
    assert first == (0, 0)
    assert abs(second.offset - shift) <= second.error  # really they share a clock
    assert 0 < second.error < 1e9
    assert 0 < trace.clock_error_s < 1


@pytest.mark.processes(2)
def test_ranks_that_look_at_different_passes_are_told() -> None:
    with _make(layers(4), trace=2) as pipe:
        x, y = data(8)
        for _ in range(2):
            pipe.step(x, target=y)
        with within(2.0), pytest.raises(ValueError, match="ranks made different calls"):
            pipe.trace(all_ranks=True, ago=dist.get_rank())
        pipe.step(x, target=y)


@pytest.mark.processes(2)
def test_costs_are_the_same_everywhere_and_a_schedule_found_with_them_runs() -> None:
    model, (x, y) = layers(4), data(8)
    reference = copy.deepcopy(model)
    with _make(model, trace=3) as pipe:
        optimizer = torch.optim.SGD(pipe.parameters(), lr=0.1, momentum=0.9)
        expected = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
        for turn in range(3):
            for _ in range(2):
                plain_loop(reference, x, y, 4)
                pipe.step(x, target=y)
                same_gradients(pipe, reference)
                for each in (optimizer, expected):
                    each.step()
                    each.zero_grad()
            costs = pipe.costs()
            same_everywhere(str((costs.forward, costs.input, costs.latency, costs.bytes)))
            assert min(costs.forward + costs.input) > 0
            assert set(costs.latency) <= {None, (0, 1), (1, 0)}
            found = pipert.Schedule.search(
                costs, 2, 4, placements=[pipe.schedule.placement], iterations=20
            )
            pipe.reschedule([found.schedule, "gpipe", "zb_h1"][turn])
            assert pipe.step_index == 2 * turn + 2
        pipe.step(x, target=y)


@pytest.mark.processes(2)
def test_different_schedules_are_an_error_everywhere_and_the_old_one_stays() -> None:
    model, (x, y) = layers(4), data(8)
    reference = copy.deepcopy(model)
    rank = dist.get_rank()
    with _make(model) as pipe:
        with within(2.0), pytest.raises(ValueError, match="given different arguments"):
            pipe.reschedule(["gpipe", "zb_h1"][rank])
        with within(2.0), pytest.raises((ValueError, pipert.PipelineError)) as info:
            pipe.reschedule(["gpipe", "nothing of the kind"][rank])
        assert "nothing of the kind" in str(info.value)
        with within(2.0), pytest.raises(ValueError, match="ranks made different calls"):
            pipe.reschedule("gpipe") if rank == 0 else pipe.clip_grad_norm_(1.0)
        assert pipe.schedule.name == "1f1b"
        same(pipe.step(x, target=y).losses, plain_loop(reference, x, y, 4))
        same_gradients(pipe, reference)


@pytest.mark.processes(2)
def test_a_rank_that_can_not_make_its_runtime_leaves_the_old_schedule_everywhere() -> None:
    model, (x, y) = layers(4), data(8)
    reference = copy.deepcopy(model)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no more threads")

    with _make(model) as pipe:
        ranks = pipe._ranks
        was = ranks._make_runtime
        if dist.get_rank() == 1:
            ranks._make_runtime = fail
        with within(5.0), pytest.raises((RuntimeError, pipert.PipelineError), match="no more thr"):
            pipe.reschedule("gpipe")
        ranks._make_runtime = was
        assert pipe.schedule.name == "1f1b"
        for _ in range(2):
            plain_loop(reference, x, y, 4)
        pipe.step(x, target=y)
        pipe.reschedule("gpipe")
        pipe.step(x, target=y)
        same_gradients(pipe, reference)


@pytest.mark.processes(2)
def test_reschedule_works_after_a_step_that_failed_somewhere() -> None:
    model, (x, y) = layers(4), data(8)
    reference = copy.deepcopy(model)
    with _make(model) as pipe:
        with pytest.raises(pipert.PipelineError):
            pipe.step(x[:, :3] if dist.get_rank() == 0 else x, target=y)
        pipe.reschedule("zb_h1")
        same(pipe.step(x, target=y).losses, plain_loop(reference, x, y, 4))
        same_gradients(pipe, reference)
        assert len(pipe.report().ranks) == 2


@pytest.mark.processes(2)
def test_a_pass_that_fails_ends_the_trace_everywhere() -> None:
    with _make(layers(4), trace=4) as pipe:
        x, y = data(8)
        for _ in range(2):
            pipe.step(x, target=y)
        with pytest.raises(pipert.PipelineError):
            pipe.step(x[:, :3] if dist.get_rank() == 0 else x, target=y)
        with within(2.0), pytest.raises(ValueError, match="the last pass failed"):
            pipe.trace()
        for ran in range(2):
            pipe.step(x, target=y)
            assert len(pipe.trace(all_ranks=True, ago=ran).ranks) == 2
            with pytest.raises(ValueError, match=f"ago must be from 0 to {ran}"):
                pipe.trace(ago=ran + 1)


@pytest.mark.processes(2)
def test_reschedule_leaves_no_threads_and_no_files() -> None:
    def resources() -> tuple[int, int]:
        return (
            len(list(Path("/proc/self/task").iterdir())),
            len(list(Path("/proc/self/fd").iterdir())),
        )

    with _make(layers(4)) as pipe:
        x, y = data(8)
        for schedule in ("gpipe", "1f1b"):
            pipe.reschedule(schedule)
            pipe.step(x, target=y)
        before = resources()
        for schedule in ("gpipe", "1f1b") * 4:
            pipe.reschedule(schedule)
            pipe.step(x, target=y)
        after = resources()
    assert all(now <= then + 2 for now, then in zip(after, before, strict=True)), (before, after)
