"""Schedules that split the backward or run two copies of the model, in processes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import pytest
import torch
from models import data, layers, same, same_everywhere, within
from plain_loop import scheduled_loop
from torch import nn
from torch.nn import functional

import pipert

SPLIT = ["zb_h1", "zb_h2", "zb_auto", "zb_interleaved", "zb_v", "v_half", "v_min", "dualpipe_v"]
COPIES = ["chimera", "dualpipe"]
ONE_STAGE_A_RANK = {"zb_h1", "zb_h2", "zb_auto", *COPIES}


def _make(model: nn.Module, schedule: str, microbatches: int, **options: object):
    options = {"group": pipert.init(), **options}
    size = pipert.init().size()
    return pipert.Pipeline(
        pipert.split(model, size if schedule in ONE_STAGE_A_RANK else 2 * size),
        schedule=schedule,
        num_microbatches=microbatches,
        num_ranks=size,
        loss_fn=functional.mse_loss,
        timeout_s=20,
        **options,
    )


def _ends_here(pipe: pipert.Pipeline) -> list[int]:
    """The microbatches that end on this rank."""
    placement = pipe.schedule.placement
    rank = pipert.init().rank()
    return sorted(
        action.microbatch
        for action in pipe.schedule.actions[rank]
        if action.kind in ("F", "OVERLAP_F_B") and placement.is_last(action.stage)
    )


def _check(schedule: str, microbatches: int) -> None:
    size = pipert.init().size()
    model, (x, y) = layers(2 * size), data(2 * microbatches + 3)
    reference = copy.deepcopy(model)
    with _make(model, schedule, microbatches) as pipe:
        placement = pipe.schedule.placement
        stages = pipert.split(reference, placement.stages_per_copy)
        own = _ends_here(pipe)
        for _ in range(2):  # gradients add up over steps
            result = pipe.step(x, target=y, return_outputs=True)
            losses = scheduled_loop(reference, stages, pipe.schedule, x, y)
            same(result.losses, losses if own else None, "losses")
            expected = dict(reference.named_parameters())
            names = [name for name, _ in pipe.named_parameters()]
            for name, parameter in pipe.named_parameters():
                same(parameter.grad, expected[name].grad, f"{schedule}: gradient of {name}")
            outputs = [reference(piece).detach() for piece in x.tensor_split(microbatches)]
            same(result.outputs, torch.cat([outputs[m] for m in own]) if own else None, "outputs")
        assert len(names) == len(set(names)) > 0
        (program,) = pipe.program
        assert pipe.trace().peak_activations == {program.rank: program.peak_activations}
        same(pipe.evaluate(x, target=y).losses, losses if own else None, "evaluated losses")
        cut = pipe.evaluate(
            microbatches=list(x.tensor_split(microbatches)),
            target=list(y.tensor_split(microbatches)),
            return_outputs=True,
        )
        if own:
            here = [m for m, output in enumerate(cut.outputs) if output is not None]
            assert here == own
            same(cut.losses, losses, "losses of a batch that came cut")


@pytest.mark.processes(2)
@pytest.mark.parametrize("schedule", SPLIT + COPIES)
def test_two_processes_equal_a_loop_in_the_schedules_order(schedule: str) -> None:
    for microbatches in (4, 6):
        _check(schedule, microbatches)


@pytest.mark.processes(3)
@pytest.mark.parametrize("schedule", SPLIT)
def test_three_processes_equal_a_loop_in_the_schedules_order(schedule: str) -> None:
    _check(schedule, 6)


@pytest.mark.processes(4)
@pytest.mark.parametrize("schedule", SPLIT + COPIES)
def test_four_processes_equal_a_loop_in_the_schedules_order(schedule: str) -> None:
    _check(schedule, 8)


def backward_first(forward: pipert.OverlapHalf, backward: pipert.OverlapHalf) -> None:
    backward()
    forward()


@pytest.mark.processes(4)
def test_overlapped_pairs_in_processes_have_the_same_bits() -> None:
    for schedule in ("dualpipe", "dualpipe_v"):
        model, (x, y) = layers(8), data(19)
        reference = copy.deepcopy(model)
        with _make(model, schedule, 8, overlap_fn=backward_first) as pipe:
            stages = pipert.split(reference, pipe.schedule.placement.stages_per_copy)
            pipe.step(x, target=y)
            scheduled_loop(reference, stages, pipe.schedule, x, y)
            expected = dict(reference.named_parameters())
            for name, parameter in pipe.named_parameters():
                same(parameter.grad, expected[name].grad, name)


# --- two copies of the model --------------------------------------------------------------------


class Normed(nn.Module):
    """A layer with statistics of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("mask", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(x)) * self.mask


def _normed(count: int) -> nn.Sequential:
    return nn.Sequential(*[Normed(layers(1, seed=i)) for i in range(count)])


def _train(
    schedule: str, group: object, build: Callable[[int], nn.Module]
) -> tuple[list[object], dict[str, torch.Tensor]]:
    pipe = _make(build(pipert.init().size()), schedule, 8, group=group, broadcast_loss=True)
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=0.05)
    seen: list[object] = []
    for step in range(6):
        x, y = data(17 + step, seed=step)
        result = pipe.step(x, target=y)
        seen += [result.loss.item(), result.losses.tolist(), pipe.clip_grad_norm_(0.01).item()]
        optimizer.step()
        optimizer.zero_grad()
        pipe.eval()
        seen.append(pipe.evaluate(x, target=y).losses.tolist())
        pipe.train()
        if step == 3:
            pipe.evaluate(x, target=y)  # moves the statistics
    assert len(pipe.report().ranks) == pipert.init().size()
    state = pipe.state_dict()
    pipe.close()
    return seen, state


def _processes_equal_threads(schedule: str, build: Callable[[int], nn.Module]) -> None:
    processes, own = _train(schedule, pipert.init(), build)
    threads, everybodys = _train(schedule, None, build)
    assert processes == threads
    same_everywhere(processes)
    assert 0 < len(own) < len(everybodys) or pipert.init().size() == 2
    for name, value in own.items():
        same(value, everybodys[name], name)


@pytest.mark.processes(2)
@pytest.mark.parametrize("schedule", COPIES)
def test_two_copies_in_two_processes_train_as_in_threads(schedule: str) -> None:
    _processes_equal_threads(schedule, layers)
    _processes_equal_threads(schedule, _normed)


@pytest.mark.processes(4)
@pytest.mark.parametrize("schedule", COPIES)
def test_two_copies_in_four_processes_train_as_in_threads(schedule: str) -> None:
    _processes_equal_threads(schedule, layers)
    _processes_equal_threads(schedule, _normed)


@pytest.mark.processes(2)
def test_copies_that_builders_make_at_random_start_as_the_first() -> None:
    group = pipert.init()
    torch.manual_seed(group.rank())  # other weights on each rank

    def build() -> nn.Module:
        return Normed(nn.Linear(8, 8))

    with pipert.Pipeline(
        [build, build],
        schedule="chimera",
        num_microbatches=2,
        loss_fn=functional.mse_loss,
        group=group,
        timeout_s=20,
    ) as pipe:
        state = {name: value.double().tolist() for name, value in sorted(pipe.state_dict().items())}
        assert {name[0] for name in state} == {"0", "1"}
        same_everywhere(state)


@pytest.mark.processes(2)
def test_frozen_and_unused_parameters_stay_without_a_gradient() -> None:
    model, (x, y) = layers(2), data(8)
    model[0].weight.requires_grad_(False)
    model[0].unused = nn.Parameter(torch.ones(3))
    with _make(model, "chimera", 4) as pipe:
        pipe.step(x, target=y)
        found = dict(pipe.named_parameters())
        assert found["0.weight"].grad is None
        assert found["0.unused"].grad is None
        assert found["0.bias"].grad is not None


@pytest.mark.processes(2)
def test_gradients_larger_than_a_message_add_up_as_in_threads() -> None:
    gradients = []
    for group in (pipert.init(), None):
        torch.manual_seed(0)
        wide = 2400  # 23 MB a weight: each part of 32 MB holds one
        model = nn.Sequential(
            *[nn.Sequential(nn.Linear(8, wide), nn.Linear(wide, wide), nn.Linear(wide, 8))] * 1,
            nn.Sequential(nn.Linear(8, wide), nn.Linear(wide, wide), nn.Linear(wide, 8)),
        )
        x, y = data(4)
        with _make(model, "chimera", 2, group=group) as pipe:
            pipe.step(x, target=y)
            gradients.append({name: p.grad for name, p in pipe.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        same(gradient, gradients[1][name], name)


@pytest.mark.processes(2)
def test_stages_that_differ_between_ranks_are_refused() -> None:
    rank = pipert.init().rank()
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, bias=rank == 0))
    with pytest.raises(ValueError, match=r"is 1\.weight, 1\.bias on rank 0 and 1\.weight on"):
        _make(model, "chimera", 2)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8 if rank == 0 else 9))
    with pytest.raises(ValueError, match=r"the copy of stage 1 on rank 0 has 1.weight: float32\[8"):
        _make(model, "chimera", 2)


@pytest.mark.processes(2)
def test_sparse_gradients_are_refused_and_nobody_hangs() -> None:
    model = nn.Sequential(
        nn.Embedding(10, 8, sparse=True), nn.Sequential(nn.Flatten(), nn.Linear(8, 8))
    )
    pipe = _make(model, "chimera", 2)
    with within(10), pytest.raises(pipert.PipelineError, match="is sparse"):
        pipe.step(torch.arange(4).reshape(4, 1), target=torch.zeros(4, 8))
    pipe.close()


@pytest.mark.processes(4)
def test_a_failure_reaches_everybody_and_leaves_gradients_as_they_were() -> None:
    model, (x, y) = layers(4), data(17)
    fails = {"now": False}

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if fails["now"] and pipert.init().rank() == 3:
            raise RuntimeError("mistake")
        return functional.mse_loss(output, target)

    pipe = pipert.Pipeline(
        pipert.split(model, 4),
        schedule="chimera",
        num_microbatches=8,
        loss_fn=loss,
        group=pipert.init(),
        timeout_s=20,
    )
    with pipe:
        pipe.step(x, target=y)
        before = {name: p.grad.clone() for name, p in pipe.named_parameters()}
        fails["now"] = True
        with within(10), pytest.raises(pipert.PipelineError, match="mistake") as caught:
            pipe.step(x, target=y)
        assert caught.value.rank == 3
        assert all(p.grad is not None for p in pipe.parameters())
        fails["now"] = False
        for p in pipe.parameters():
            p.grad = None
        pipe.step(x, target=y)
        for name, p in pipe.named_parameters():
            same(p.grad, before[name], name)


@pytest.mark.processes(2)
def test_a_rank_that_never_comes_to_the_exchange_is_a_timeout() -> None:
    """Rank 1's last backward takes longer than the limit; rank 0 waits for its gradients."""

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            if slow["now"] and pipert.init().rank() == 1:
                time.sleep(1.5)
            return gradient

    slow = {"now": False}

    class Layer(nn.Linear):
        def forward(self, x):
            return Slow.apply(super().forward(x))

    model = nn.Sequential(Layer(8, 8), nn.Linear(8, 8))  # rank 1 ends with the first one's backward
    pipe = pipert.Pipeline(
        pipert.split(model, 2),
        schedule="chimera",
        num_microbatches=2,
        loss_fn=functional.mse_loss,
        group=pipert.init(),
        timeout_s=0.8,
    )
    x, y = data(4)
    pipe.step(x, target=y)
    slow["now"] = True
    with within(15), pytest.raises(pipert.PipelineError) as caught:
        pipe.step(x, target=y)
    assert "rank 0 is done and waits for rank 1, which has the other copy of stage" in str(
        caught.value
    )
    assert caught.value.kind == ("timeout" if pipert.init().rank() == 0 else "remote")
    pipe.close()


@pytest.mark.processes(2)
def test_copies_that_differ_are_an_error_that_says_what_was_exchanged() -> None:
    group = pipert.init()
    model, (x, y) = layers(2), data(8)
    with _make(model, "chimera", 4) as pipe:
        pipe.step(x, target=y)
        if group.rank() == 1:
            stage = next(iter(pipe.stages.values()))
            stage.register_parameter("extra", nn.Parameter(torch.zeros(1)))
        message = r"while it exchanged the gradients of stage \d with rank \d"
        with pytest.raises(pipert.PipelineError, match=message):
            pipe.step(x, target=y)
