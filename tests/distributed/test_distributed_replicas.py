"""Stages that are wrapped for data parallelism: two pipelines, beside each other on a mesh."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
from models import WIDTH, data, layers, same
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import pipert
from pipert.stages import Tied

THEIRS, OURS = "torch.distributed.pipelining", "pipert.compat.torch_pipelining"
CPU = torch.device("cpu")
MICROBATCHES = 4


def _wrap(module: nn.Module, wrapper: str, mesh: DeviceMesh) -> nn.Module:
    """As scripts do it: each layer, then the stage."""
    if wrapper == "fully_shard":
        fully_shard(module[0], mesh=mesh, reshard_after_forward=False)
        return fully_shard(module, mesh=mesh, reshard_after_forward=False)
    options = {"DDP": {}, "unused": {"find_unused_parameters": True}}[wrapper]
    return DistributedDataParallel(module, process_group=mesh.get_group(), **options)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _share(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """This replica's part of a batch."""
    return tensor.chunk(mesh.size())[mesh.get_local_rank()]


def _reference(num_stages: int, steps: int) -> nn.Sequential:
    """The plain loop over the microbatches of both replicas."""
    model = layers(num_stages)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        x, y = data(2 * 8, seed=step)
        for piece, target in zip(x.chunk(8), y.chunk(8), strict=True):
            (functional.mse_loss(model(piece), target) / 8).backward()
        if step < steps - 1:
            optimizer.step()
    return model


def _train(package: str, name: str, wrapper: str) -> list[Tensor]:
    """The gradients of the last of three steps, and what came of the first ones: the weights."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "pp"))
    dp, pp = mesh["dp"], mesh["pp"]
    rank = pp.get_local_rank()
    own = {"1F1B": [rank], "ZBVZeroBubble": [rank, 3 - rank]}.get(name, [rank, 2 + rank])
    num_stages = 2 * len(own)
    model = layers(num_stages)
    api = importlib.import_module(package)
    schedules = importlib.import_module(f"{package}.schedules")
    # Without examples torch runs each stage once before the first step, whose first microbatch
    # DistributedDataParallel then reduces by itself: that rounds otherwise.
    example = torch.empty(2, WIDTH, requires_grad=True)
    options = {"input_args": example, "output_args": example, "group": pp.get_group()}
    stages = [
        api.PipelineStage(
            _wrap(model[2 * s : 2 * s + 2], wrapper, dp), s, num_stages, CPU, **options
        )
        for s in own
    ]
    schedule = schedules.get_schedule_class(name)(
        stages[0] if len(stages) == 1 else stages, MICROBATCHES, functional.mse_loss
    )
    parameters = [p for stage in stages for p in stage.submod.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        x, y = (_share(part, dp) for part in data(2 * 8, seed=step))
        inputs = (x,) if 0 in own else ()
        target = {"target": y} if num_stages - 1 in own else {}
        schedule.step(*inputs, **target)
        if step < 2:
            optimizer.step()
    reference = _reference(num_stages, 3)
    expected = [p for s in own for p in reference[2 * s : 2 * s + 2].parameters()]
    for p, q in zip(parameters, expected, strict=True):
        torch.testing.assert_close(_whole(p.grad), q.grad)
    return [_whole(t).detach() for p in parameters for t in (p, p.grad)]


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [("1F1B", "DDP"), ("1F1B", "fully_shard"), ("Interleaved1F1B", "fully_shard")],
)
@pytest.mark.processes(4)
def test_a_script_with_wrapped_stages_gets_torchs_bits_with_the_other_import(
    name: str, wrapper: str
) -> None:
    for got, expected in zip(
        _train(OURS, name, wrapper), _train(THEIRS, name, wrapper), strict=True
    ):
        same(got, expected)


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [("ZBVZeroBubble", "unused"), ("InterleavedZeroBubble", "fully_shard")],
)
@pytest.mark.processes(4)
def test_wrapped_stages_reduce_under_backwards_in_halves_too(name: str, wrapper: str) -> None:
    _train(OURS, name, wrapper)


class _Partly(nn.Module):
    """Of two layers one, and which one the replica says."""

    def __init__(self, which: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.which = which

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return self.layers[self.which](x) * factor


@pytest.mark.processes(2)
def test_layers_that_one_replica_uses_get_the_mean_and_those_that_none_does_stay_as_they_are() -> (
    None
):
    """Each replica is a pipeline of two stages in one process."""
    rank = dist.get_rank()
    wrapped = DistributedDataParallel(_Partly(rank), find_unused_parameters=True)
    buckets = []

    def reduce(state, bucket):  # DistributedDataParallel can't read annotations that are strings
        buckets.append(bucket.index())
        return default_hooks.allreduce_hook(None, bucket)

    wrapped.register_comm_hook(None, reduce)
    stages = [wrapped, nn.Tanh()]
    x, y = (part.chunk(2) for part in data(16))
    plain = [_Partly(0), _Partly(1)]
    for other, model in enumerate(plain):
        for piece, target in zip(x[other].chunk(4), y[other].chunk(4), strict=True):
            (functional.mse_loss(torch.tanh(model(piece) * 2), target) / 8).backward()
    with pipert.Pipeline(
        stages, schedule="1f1b", num_microbatches=MICROBATCHES, loss_fn=functional.mse_loss
    ) as pipe:
        with wrapped.no_sync():
            pipe.step(x[rank], target=y[rank], factor=2.0)
        own = wrapped.module.layers[rank].weight
        assert buckets == []
        same(own.grad / 2, plain[rank].layers[rank].weight.grad)
        wrapped.zero_grad()
        pipe.step(x[rank], target=y[rank], factor=2.0)
        assert buckets == [0]
        pipe.evaluate(x[rank], target=y[rank])
        assert buckets == [0]
    for index, model in enumerate(plain):
        got = wrapped.module.layers[index].weight.grad
        torch.testing.assert_close(got, model.layers[index].weight.grad)
    assert wrapped.module.layers[2].weight.grad is None


@pytest.mark.processes(2)
def test_wrapped_stages_that_cannot_be_reduced_are_refused() -> None:
    def pipe(*stages: nn.Module, **options: object) -> None:
        run(list(stages), **options)

    def run(stages: Sequence[nn.Module], **options: object) -> None:
        default = {"num_microbatches": 4, "loss_fn": functional.mse_loss}
        pipert.Pipeline(stages, **{**default, **options}).close()

    module = nn.Linear(8, 8)
    wrapped = DistributedDataParallel(copy.deepcopy(module))
    with pytest.raises(ValueError, match="stages 0 and 1 communicate over one group, from threads"):
        pipe(wrapped, DistributedDataParallel(copy.deepcopy(module)))
    mesh = init_device_mesh("cpu", (2,))
    sharded = [fully_shard(copy.deepcopy(module), mesh=mesh) for _ in range(2)]
    with pytest.raises(ValueError, match="stages 0 and 1 communicate over one group, from threads"):
        pipe(*sharded)
    with pytest.raises(ValueError, match=r"stage 0 is wrapped in .*: expected main_grads=False"):
        pipe(wrapped, module, main_grads=True)
    with pytest.raises(ValueError, match="expected a schedule with one copy of the model, got 2"):
        pipe(wrapped, module, schedule="dualpipe")
    with pytest.raises(ValueError, match="expected another stage_kind than 'captured'"):
        pipe(wrapped, module, stage_kind=["captured", "module"])
    tied = pipert.Stages(
        [wrapped, DistributedDataParallel(copy.deepcopy(module))],
        tied=[Tied(((0, "module.weight"), (1, "module.weight")))],
    )
    with pytest.raises(ValueError, match=r"stage 1 is wrapped.*must be one object before"):
        run(tied, num_ranks=1, schedule="looped_bfs")
    static = DistributedDataParallel(copy.deepcopy(module), static_graph=True)
    with pytest.raises(ValueError, match="without static_graph"):
        pipe(static, module)


@pytest.mark.processes(2)
def test_a_weight_that_processes_share_has_one_gradient_however_each_rounds_the_mean() -> None:
    """As sums over many replicas are rounded by where a gradient stands among the others."""
    rank = dist.get_rank()
    alone = [dist.new_group([r]) for r in range(2)][rank]

    def mean(_, bucket):  # torch reads annotations, and takes no strings
        reduced = torch.futures.Future()
        reduced.set_result(bucket.buffer() * (1 + 1e-6 * rank))
        return reduced

    torch.manual_seed(0)
    embedding, head = nn.Embedding(13, WIDTH), nn.Linear(WIDTH, 13, bias=False)
    head.weight = embedding.weight
    stages = [
        DistributedDataParallel(stage, process_group=alone)
        for stage in (embedding, nn.Sequential(nn.Linear(WIDTH, WIDTH), head))
    ]
    for stage in stages:
        stage.register_comm_hook(None, mean)
    with pipert.Pipeline(
        stages, num_microbatches=2, loss_fn=functional.cross_entropy, group=pipert.init()
    ) as pipe:
        optimizer = torch.optim.SGD(pipe.parameters(), lr=1.0)
        words, following = torch.randint(0, 13, (2, 8))
        for _ in range(2):
            result = pipe.step(words, target=following)
            optimizer.step()
            pipe.check_tied()
        assert (result.loss is None) == (rank == 0)
