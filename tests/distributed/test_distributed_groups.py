"""Where a pipeline's group may come from, and pipelines side by side."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from models import WIDTH, data, is_last, layers, plain_loop, same, same_everywhere, same_gradients
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional

import pipert


def _pipeline(model: torch.nn.Module, group: object, size: int, **options: object):
    return pipert.Pipeline(
        pipert.split(model, size),
        num_microbatches=4,
        loss_fn=functional.mse_loss,
        group=group,
        broadcast_loss=True,
        timeout_s=20,
        **options,
    )


@pytest.mark.processes(2)
def test_init_returns_the_group_of_all_ranks() -> None:
    group = pipert.init()
    assert group is dist.group.WORLD
    assert group.size() == 2
    assert pipert.init() is group


@pytest.mark.processes(2)
def test_one_dimensional_mesh_is_a_group() -> None:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("pp",))
    for group in (mesh, mesh["pp"]):
        model, (x, y) = layers(2), data(9)
        reference = copy.deepcopy(model)
        with _pipeline(model, group, 2) as pipe:
            same(pipe.step(x, target=y).losses, plain_loop(reference, x, y, 4))
            same_gradients(pipe, reference)
    with pytest.raises(ValueError, match="one-dimensional"):
        _pipeline(layers(2), init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "pp")), 2)
    with pytest.raises(TypeError, match="must be a ProcessGroup or a DeviceMesh, got str"):
        _pipeline(layers(2), "pp", 2)


@pytest.mark.processes(4)
def test_two_pipelines_side_by_side_in_a_mesh_with_data_parallelism() -> None:
    """Each row trains on its half of the batch, then the rows' gradients are averaged."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "pp"))
    row = mesh["dp"].get_local_rank()
    model = layers(2)
    references = [copy.deepcopy(model) for _ in range(2)]
    x, y = data(18)
    with _pipeline(model, mesh["pp"], 2) as pipe:
        for _ in range(3):
            pieces = [x[:9], x[9:]], [y[:9], y[9:]]
            result = pipe.step(pieces[0][row], target=pieces[1][row])
            losses = [plain_loop(references[i], pieces[0][i], pieces[1][i], 4) for i in range(2)]
            same(result.losses, losses[row])
        same_gradients(pipe, references[row])
        for name, parameter in pipe.named_parameters():
            dist.all_reduce(parameter.grad, group=mesh["dp"].get_group())
            both = [dict(reference.named_parameters())[name].grad for reference in references]
            same(parameter.grad, both[0] + both[1], name)
        norm = pipe.clip_grad_norm_(1.0)
        same_everywhere(norm.item())
        assert len(pipe.report().ranks) == 2


@pytest.mark.processes(4)
def test_failure_in_one_pipeline_leaves_the_other_alone() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "pp"))
    row, rank = mesh["dp"].get_local_rank(), mesh["pp"].get_local_rank()
    x, y = data(8)
    model = layers(2)
    reference = copy.deepcopy(model)
    with _pipeline(model, mesh["pp"], 2) as pipe:
        if row == 0:
            bad = x if rank else x[:, : WIDTH - 1]
            with pytest.raises(pipert.PipelineError, match="rank 0, stage 0, microbatch 0"):
                pipe.step(bad, target=y)
        else:
            pipe.step(x, target=y)
        model.zero_grad()
        same(pipe.step(x, target=y).losses, plain_loop(reference, x, y, 4))
        same_gradients(pipe, reference)


@pytest.mark.processes(3)
def test_subgroup_in_another_order_than_the_world() -> None:
    group = dist.new_group([0, 2])
    if dist.get_rank() == 1:
        with pytest.raises((ValueError, TypeError)):
            _pipeline(layers(2), group, 2)
        return
    model, (x, y) = layers(2), data(9)
    reference = copy.deepcopy(model)
    with _pipeline(model, group, 2) as pipe:
        same(pipe.step(x, target=y).losses, plain_loop(reference, x, y, 4))
        same_gradients(pipe, reference)


@pytest.mark.processes(2)
def test_two_pipelines_take_turns_in_one_group() -> None:
    group = pipert.init()
    models = [layers(4, seed=1), layers(4, seed=2)]
    references = copy.deepcopy(models)
    pipes = [
        _pipeline(models[0], group, 2),
        _pipeline(models[1], group, 4, schedule="interleaved_1f1b"),
    ]
    for rows in (8, 30, 300, 9):
        x, y = data(rows, seed=rows)
        for pipe, reference in zip(pipes, references, strict=True):
            same(pipe.step(x, target=y).losses, plain_loop(reference, x, y, 4))
            same_gradients(pipe, reference)
            pipe(x)
    pipes[0].close()
    x, y = data(8)
    same(pipes[1].step(x, target=y).losses, plain_loop(references[1], x, y, 4))
    assert is_last(pipes[1]) == (group.rank() == 1)


@pytest.mark.processes(2)
def test_wrong_number_of_ranks_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="num_ranks must be the size of the group, 2, got 3"):
        _pipeline(layers(3), pipert.init(), 3, num_ranks=3)
