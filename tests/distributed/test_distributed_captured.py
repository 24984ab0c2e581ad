"""Captured actions in processes: each rank records on its own, to the bits of the plain loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from models import data, is_last, layers, plain_loop, same, same_gradients
from plain_loop import scheduled_loop
from recorded_cpu import graphs_on_cpu
from torch import nn
from torch.nn import functional

import pipert
from pipert.captured import NUM_WARMUPS
from pipert.captured.graphs import make_graph


@contextmanager
def cpu_records() -> Iterator[None]:
    """Graphs of the CPU stand in for those of a device."""
    graphs_on_cpu()
    try:
        yield
    finally:
        del make_graph["cpu"]


def captured(model: nn.Module, schedule: str, per_rank: int, **options: object) -> pipert.Pipeline:
    group = pipert.init()
    return pipert.Pipeline(
        pipert.split(model, group.size() * per_rank),
        schedule=schedule,
        num_microbatches=4,
        num_ranks=group.size(),
        loss_fn=functional.mse_loss,
        group=group,
        stage_kind="captured",
        **options,
    )


def check_steps(schedule: str, per_rank: int) -> None:
    """Steps with uneven microbatches; at last one whose gradients are added to what is there."""
    model = layers(2 * pipert.init().size() * per_rank)
    reference = copy.deepcopy(model)
    with cpu_records(), captured(model, schedule, per_rank) as pipe:
        stages = pipert.split(reference, pipe.schedule.num_stages)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (pipe, reference)]
        for step in range(NUM_WARMUPS + 3):
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            x, y = data(9, seed=step)
            result = pipe.step(x, target=y)
            losses = scheduled_loop(reference, stages, pipe.schedule, x, y)
            same(result.losses, losses if is_last(pipe) else None)
            same_gradients(pipe, reference)
        assert set(pipe.stage_kinds.values()) == {"captured"}
        assert pipe._captured.num_replays == 2
        (program,) = pipe.program
        assert pipe.trace().peak_activations == {program.rank: program.peak_activations}
        pipe.step(x, target=y)
        scheduled_loop(reference, stages, pipe.schedule, x, y)
        same_gradients(pipe, reference)


ONE_A_RANK = ["gpipe", "1f1b", "eager_1f1b", "zb_h1", "zb_h2", "zb_auto"]
TWO_A_RANK = [
    "interleaved_1f1b",
    "looped_bfs",
    "hanayo",
    "zb_interleaved",
    "zb_v",
    "v_half",
    "v_min",
    "dualpipe_v",
]


@pytest.mark.processes(2)
@pytest.mark.parametrize(
    ("schedule", "per_rank"), [*((s, 1) for s in ONE_A_RANK), *((s, 2) for s in TWO_A_RANK)]
)
def test_replayed_actions_in_processes_equal_the_plain_loop(schedule: str, per_rank: int) -> None:
    check_steps(schedule, per_rank)


@pytest.mark.processes(4)
def test_four_ranks_with_halved_backwards_replay_to_the_bits_of_the_plain_loop() -> None:
    check_steps("zb_h1", 1)


@pytest.mark.processes(2)
def test_a_rank_records_while_another_is_warming_up() -> None:
    model = layers(4)
    reference = copy.deepcopy(model)
    with cpu_records(), captured(model, "1f1b", 1) as pipe:
        rank = pipert.init().rank()
        kinds = []
        for step in range(NUM_WARMUPS + 4):
            x, y = data(8, seed=step)
            pipe.step(x, target=y)
            plain_loop(reference, x, y, 4)
            same_gradients(pipe, reference)
            kinds.append(pipe._captured.reason)
            for parameter in (*pipe.parameters(), *reference.parameters()):
                parameter.grad = None
            if rank == 1 and step == 0:
                pipe.forget_captured()
        assert kinds.index(None) == NUM_WARMUPS + rank


@pytest.mark.processes(2)
def test_every_rank_notices_a_new_shape_and_goes_back_to_the_old_one() -> None:
    model = layers(4)
    reference = copy.deepcopy(model)
    with cpu_records(), captured(model, "1f1b", 1) as pipe:
        for rows in [8] * (NUM_WARMUPS + 2) + [12] * (NUM_WARMUPS + 2) + [8, 12, 8]:
            x, y = data(rows, seed=rows)
            result = pipe.step(x, target=y)
            losses = plain_loop(reference, x, y, 4)
            same(result.losses, losses if is_last(pipe) else None)
            same_gradients(pipe, reference)
            for parameter in (*pipe.parameters(), *reference.parameters()):
                parameter.grad = None
        assert pipe._captured.num_recordings == 2
        assert pipe._captured.num_replays == 1 + 1 + 3


def squares(output: torch.Tensor) -> torch.Tensor:
    """A loss without a target: the last rank knows the batch from its messages alone."""
    return output.square().mean()


@pytest.mark.processes(2)
@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1", "looped_bfs"])
def test_microbatches_of_another_form_run_as_modules_amid_replayed_ones(schedule: str) -> None:
    """looped_bfs runs its backwards last to first: the first gradients are not the recording's."""
    group = pipert.init()
    model = layers(4)
    reference = copy.deepcopy(model)
    stages = pipert.split(model, 2)
    with (
        cpu_records(),
        pipert.Pipeline(
            stages,
            schedule=schedule,
            num_microbatches=4,
            loss_fn=squares,
            group=group,
            stage_kind="captured",
        ) as pipe,
    ):
        rank = group.rank()
        order = [a.microbatch for a in pipe.schedule.actions[rank] if a.kind in "BW"]
        even, odd = [2, 2, 2, 2], [2, 2, 3, 2]
        reasons = []
        for step, rows in enumerate([even] * (NUM_WARMUPS + 2) + [odd, even, odd, even]):
            pieces = [data(n, seed=10 * step + i)[0] for i, n in enumerate(rows)]
            pipe.step(microbatches=pieces)
            for microbatch in order:
                (squares(reference(pieces[microbatch])) / 4).backward()
            same_gradients(pipe, reference)
            reasons.append(pipe._captured.reason)
            if step != NUM_WARMUPS + 5:  # a step that adds to what is there is of another kind
                for parameter in (*pipe.parameters(), *reference.parameters()):
                    parameter.grad = None
        if rank == 1:
            expected = "microbatch 2 came to stage 1 in another form than was recorded"
            assert reasons[NUM_WARMUPS + 2] == expected
            assert reasons[NUM_WARMUPS + 3] is None


@pytest.mark.processes(2)
def test_evaluations_outputs_and_shared_losses_are_replayed() -> None:
    model = layers(4)
    with cpu_records(), captured(model, "1f1b", 1, broadcast_loss=True) as pipe:
        for step in range(NUM_WARMUPS + 4):
            x, y = data(8, seed=step)
            result = pipe.evaluate(x, target=y, return_outputs=True)
            with torch.no_grad():
                outputs = [model(piece) for piece in x.tensor_split(4)]
                losses = [
                    functional.mse_loss(a, b)
                    for a, b in zip(outputs, y.tensor_split(4), strict=True)
                ]
            same(result.losses, torch.stack(losses))
            same(result.outputs, torch.cat(outputs) if is_last(pipe) else None)
        assert pipe._captured.num_replays == 3
        assert set(pipe.stage_kinds.values()) == {"captured"}


class Syncs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 if x.sum().item() < 1e9 else 2)


@pytest.mark.processes(2)
def test_a_rank_that_cannot_record_is_no_hindrance_to_the_other() -> None:
    group = pipert.init()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), Syncs())
    reference = copy.deepcopy(model)
    with cpu_records(), captured(model, "1f1b", 1) as pipe:
        for step in range(NUM_WARMUPS + 3):
            x, y = data(8, seed=step)
            pipe.step(x, target=y)
            plain_loop(reference, x, y, 4)
            same_gradients(pipe, reference)
            for parameter in (*pipe.parameters(), *reference.parameters()):
                parameter.grad = None
        [kind] = pipe.stage_kinds.values()
        if group.rank() == 0:
            assert kind == "captured"
        else:
            assert kind.startswith("module: it can't be recorded: RuntimeError")


@pytest.mark.processes(2)
def test_a_step_that_fails_elsewhere_leaves_recordings_that_can_be_replayed() -> None:
    class Fails(nn.Module):
        fails = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.fails:
                raise KeyError("mine")
            return x

    group = pipert.init()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), Fails())
    reference = copy.deepcopy(model)
    with cpu_records(), captured(model, "1f1b", 1) as pipe:
        for step in range(NUM_WARMUPS + 6):
            x, y = data(8, seed=step)
            Fails.fails = step == NUM_WARMUPS + 2
            if Fails.fails:
                pipe.forget_captured() if group.rank() == 1 else None
                with pytest.raises(pipert.PipelineError, match="mine"):
                    pipe.step(x, target=y)
            else:
                pipe.step(x, target=y)
                reference.zero_grad()
                plain_loop(reference, x, y, 4)
                same_gradients(pipe, reference)
            for parameter in pipe.parameters():
                parameter.grad = None
        assert pipe._captured.reason is None


class Extra(nn.Module):
    """Adds a second layer to its first microbatch, and to those of three rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, microbatch_index: int = 0) -> torch.Tensor:
        y = torch.tanh(self.first(x))
        return y + self.second(x) if microbatch_index == 0 or len(x) == 3 else y


@pytest.mark.processes(2)
def test_a_gradient_that_came_before_the_recordings_first_one_is_added_to_it() -> None:
    """Backwards run last to first; that of microbatch 0 alone is recorded with the second layer."""
    group = pipert.init()
    torch.manual_seed(3)
    stages = [Extra(), Extra()]
    reference = copy.deepcopy(stages)
    with (
        cpu_records(),
        pipert.Pipeline(
            stages,
            schedule="looped_bfs",
            num_microbatches=4,
            loss_fn=squares,
            group=group,
            stage_kind="captured",
        ) as pipe,
    ):
        rank = group.rank()
        for step in range(NUM_WARMUPS + 3):
            rows = [2, 2, 3, 2] if step == NUM_WARMUPS + 2 else [2, 2, 2, 2]
            pieces = [data(n, seed=10 * step + i)[0] for i, n in enumerate(rows)]
            pipe.step(microbatches=pieces)
            for index in (3, 2, 1, 0):
                output = reference[1](reference[0](pieces[index], index), index)
                (squares(output) / 4).backward()
            for ours, theirs in zip(
                stages[rank].parameters(), reference[rank].parameters(), strict=True
            ):
                same(ours.grad, theirs.grad)
                ours.grad = None
            for module in reference:
                module.zero_grad()
        if rank == 1:
            assert "in another form" in pipe._captured.reason
