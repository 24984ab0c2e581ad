"""Each rank of a group takes its part of a batch: by name, cut by specs, weighted by counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from models import data, layers, plain_loop, same, same_gradients
from torch import Tensor, nn
from torch.nn import functional
from wired import PlainLoop, ids_and_mask, wired_stages

import pipert

mse = functional.mse_loss

# --- arguments by name ----------------------------------------------------------------------------


def square(output: Tensor) -> Tensor:
    return output.square().mean()


def _halves(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.tensor_split(2) for tensor in tensors), strict=True))


@pytest.mark.processes(2)
@pytest.mark.parametrize(("schedule", "middles"), [("1f1b", 0), ("interleaved_1f1b", 2)])
@pytest.mark.parametrize("given", ["everything", "its own"])
def test_a_rank_needs_what_its_stages_take_alone(schedule: str, middles: int, given: str) -> None:
    group = pipert.init()
    stages = wired_stages(middles)
    loop = PlainLoop(stages)
    ids, mask = ids_and_mask(5)
    arguments = {"ids": ids, "mask": mask}
    with pipert.Pipeline(
        stages, schedule=schedule, num_microbatches=2, loss_fn=square, group=group
    ) as pipe:
        if given == "its own":
            specs = [stages.specs[index] for index in pipe.stages]
            taken = {name for spec in specs for name in spec.arguments}
            arguments = {name: v for name, v in arguments.items() if name in taken}
        result = pipe.step(**arguments)
        expected = loop.step(
            [(piece, {}) for piece in _halves(ids, mask)],
            lambda output, _: square(output),
            [0.6, 0.4],
        )
        assert result.losses is None or torch.equal(result.losses, expected)
        loop.assert_same_gradients(pipe)


@pytest.mark.processes(2)
def test_a_missing_argument_is_said_on_every_rank() -> None:
    ids, mask = ids_and_mask(4)
    group = pipert.init()
    with pipert.Pipeline(
        wired_stages(0), num_microbatches=2, loss_fn=square, group=group, timeout_s=20
    ) as pipe:
        is_first = group.rank() == 0
        expected = pipert.PipelineError if is_first else ValueError
        with pytest.raises(expected, match="stage 1 needs the argument 'mask'"):
            pipe.step(ids)
        pipe.step(ids, mask)


@pytest.mark.processes(2)
def test_microbatches_have_names_on_every_rank() -> None:
    group = pipert.init()
    stages = wired_stages(0)
    loop = PlainLoop(stages)
    pieces = [ids_and_mask(3, seed=1), ids_and_mask(1, length=2, seed=2)]
    with pipert.Pipeline(stages, num_microbatches=2, loss_fn=square, group=group) as pipe:
        pipe.step(microbatches=[pipert.Microbatch((ids,), {"mask": mask}) for ids, mask in pieces])
        loop.step([(piece, {}) for piece in pieces], lambda output, _: square(output))
        loop.assert_same_gradients(pipe)


# --- specs ----------------------------------------------------------------------------------------


class Turned(nn.Module):
    """Takes and gives rows in dimension 1."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.T).T


@pytest.mark.processes(2)
@pytest.mark.parametrize("transport", ["shm", "process_group"])
def test_a_batch_is_cut_on_each_rank_as_its_spec_says(transport: str) -> None:
    model = layers(2)
    stages = [Turned(stage) for stage in pipert.split(layers(2), 2)]
    x, y = data(7)
    with pipert.Pipeline(
        stages,
        num_microbatches=3,
        loss_fn=lambda output, target: mse(output.T, target["y"].T),
        group=pipert.init(),
        args_spec=(1,),
        target_spec={"y": 1},
        output_spec=1,
        transport=transport,
    ) as pipe:
        result = pipe.step(x.T, target={"y": y.T, "note": "whole"}, return_outputs=True)
        losses = plain_loop(model, x, y, 3)
        if 1 in pipe.stages:
            same(result.losses, losses)
            same(result.outputs, torch.cat([model(p).detach() for p in x.tensor_split(3)]).T)
        for name, parameter in pipe.named_parameters():
            index, _, own = name.partition(".inner.")
            expected = dict(pipert.split(model, 2)[int(index)].named_parameters())[own]
            same(parameter.grad, expected.grad, name)


@pytest.mark.processes(2)
def test_other_specs_on_another_rank_are_refused_everywhere() -> None:
    group = pipert.init()
    with pytest.raises(ValueError, match="specs"):
        pipert.Pipeline(
            pipert.split(layers(2), 2), num_microbatches=2, group=group, args_spec=(group.rank(),)
        )


@pytest.mark.processes(2)
def test_a_first_rank_without_rows_leaves_the_weights_to_the_last() -> None:
    """Its only argument is cut by the user; the target has rows, 3 and 2 of 5."""
    model = layers(2)
    x, y = data(5)
    pieces = list(x.tensor_split(2))
    with pipert.Pipeline(
        pipert.split(layers(2), 2),
        num_microbatches=2,
        loss_fn=mse,
        group=pipert.init(),
        args_spec=(pipert.CustomCut(lambda pieces, num_microbatches: pieces),),
    ) as pipe:
        pipe.step(pieces, target=y)
        plain_loop(model, x, y, 2)
        same_gradients(pipe, model)


# --- losses ---------------------------------------------------------------------------------------


def with_metrics(output: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return mse(output, target), {"rows": len(output), "worst": (output - target).abs().max()}


@pytest.mark.processes(2)
@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1", "dualpipe"])
@pytest.mark.parametrize("kind", ["module", "native"])
def test_metrics_are_on_the_last_stages_rank(schedule: str, kind: str) -> None:
    x, y = data(10)
    with pipert.Pipeline(
        pipert.split(layers(2), 2),
        schedule=schedule,
        num_microbatches=4,
        loss_fn=with_metrics,
        group=pipert.init(),
        stage_kind=kind,
        broadcast_loss=True,
    ) as pipe:
        losses = plain_loop(layers(2), x, y, 4)
        rows = torch.tensor([3.0, 3.0, 2.0, 2.0], dtype=torch.float64)
        for _ in range(3):
            result = pipe.step(x, target=y)
            same(result.losses, losses)
            if schedule == "dualpipe":  # each rank has the end of one copy
                own = ~result.metrics["rows"].isnan()
                assert own.sum() == 2
                same(result.metrics["rows"][own], rows[own])
            elif 1 in pipe.stages:
                same(result.metrics["rows"], rows)
            else:
                assert result.metrics == {}


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.processes(2)
@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
def test_weights_are_needed_on_the_last_stages_rank_alone(schedule: str) -> None:
    model = layers(2)
    x, y = data(10)
    weights = [0.5, 0.0, 2.0, 0.3]
    with pipert.Pipeline(
        pipert.split(layers(2), 2),
        schedule=schedule,
        num_microbatches=4,
        loss_fn=mse,
        group=pipert.init(),
        broadcast_loss=True,
    ) as pipe:
        given = weights if 1 in pipe.stages else None
        result = pipe.step(x, target=y, loss_weights=given)
        losses = []
        for piece, target, weight in zip(
            x.tensor_split(4), y.tensor_split(4), weights, strict=True
        ):
            loss = mse(model(piece), target)
            losses.append(loss.detach())
            if weight:
                loss.backward(torch.full_like(loss, weight))
        same(result.losses, torch.stack(losses))
        same(result.loss, (torch.stack(losses) * torch.tensor(weights)).sum())
        same_gradients(pipe, model)


@pytest.mark.processes(2)
@pytest.mark.parametrize("gathered", [True, False])
def test_replicas_with_uneven_tokens_average_to_the_mean_over_all_tokens(gathered: bool) -> None:
    """Each of two replicas is a pipeline of one rank; their gradients are averaged, as DDP does."""
    world = pipert.init()
    model, whole = layers(2), layers(2)
    x, y = data(9)
    own = slice(0, 2) if world.rank() == 0 else slice(2, 9)

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return mse(output, target)

    with pipert.Pipeline(
        pipert.split(model, 2),
        schedule="gpipe",
        num_ranks=2,
        num_microbatches=2,
        loss_fn=loss_fn,
        loss_weight=len,
        count_group=world,
    ) as pipe:
        result = pipe.step(x[own], target=y[own], global_count=None if gathered else 9)
    expected = mse(whole(x), y)
    expected.backward()
    average = result.loss.clone()
    dist.all_reduce(average)
    torch.testing.assert_close(average / 2, expected.detach())
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        dist.all_reduce(p.grad)
        torch.testing.assert_close(p.grad / 2, q.grad)


@pytest.mark.processes(2)
def test_a_count_that_fails_is_said_on_every_rank() -> None:
    x, y = data(8)
    group = pipert.init()
    with pipert.Pipeline(
        pipert.split(layers(2), 2),
        num_microbatches=2,
        loss_fn=mse,
        group=group,
        loss_weight=lambda target: -1,
        timeout_s=20,
    ) as pipe:
        expected = ValueError if group.rank() == 1 else pipert.PipelineError
        with pytest.raises(expected, match="loss_weight must give a number from 0, got -1"):
            pipe.step(x, target=y)
