"""Scripts in the public style that trace a model, run with torch's import and ours."""

from __future__ import annotations

import copy

import pytest
import torch
from models import WIDTH, data, same
from test_distributed_compat import (
    CPU,
    LOOPED,
    ONE_STAGE,
    OURS,
    THEIRS,
    V_SHAPED,
    _feed,
    _import,
    _own_stages,
    _same_everything,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel


class _Traced(nn.Module):
    """Layers with something between them that no module does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)) + 1
        if scale is not None:
            x = x * scale
        return self.head(x)


def _run_traced(package: str, name: str, cuts: list[str]) -> dict[str, object]:
    api, schedules = _import(package)
    own, num_stages = _own_stages(name)
    x, y = data(8)
    spec = dict.fromkeys(cuts, api.SplitPoint.BEGINNING)
    pipe = api.pipeline(_Traced(), mb_args=(x[:2],), split_spec=spec)
    assert pipe.num_stages == num_stages
    in_turn = pipe(x[:2])
    if isinstance(in_turn, tuple):  # torch's
        [in_turn] = in_turn
    stages = [pipe.build_stage(s, CPU) for s in own]
    schedule = schedules.get_schedule_class(name)(
        stages[0] if name in ONE_STAGE else stages, 4, functional.mse_loss
    )
    result = _feed(schedule, num_stages, own, (x,), y)
    if result.outputs is not None:
        same(result.outputs[:2].detach(), in_turn.detach(), "the Pipe run in turn")
    gradients = {n: p.grad for stage in stages for n, p in stage.submod.named_parameters()}
    return {
        "losses": [loss.detach() for loss in result.losses],
        "outputs": result.outputs,
        **dict(sorted(gradients.items())),
    }


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("GPipe", ["layers.2"]),
        ("1F1B", ["head"]),
        ("LoopedBFS", ["layers.1", "layers.2", "head"]),
        ("Interleaved1F1B", ["layers.1", "layers.2", "head"]),
        ("InterleavedZeroBubble", ["layers.1", "layers.2", "head"]),
    ],
)
@pytest.mark.processes(2)
def test_a_traced_script_gets_torchs_bits_with_the_other_import(name: str, cuts: list) -> None:
    _same_everything(_run_traced(OURS, name, cuts), _run_traced(THEIRS, name, cuts))


class _Skipping(_Traced):
    """What its first layer makes goes to all others, and to the head."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        first = x = torch.tanh(self.layers[0](x))
        for layer in self.layers[1:]:
            x = torch.tanh(layer(x)) * first
        return self.head(x) + first


@pytest.mark.parametrize("name", [*ONE_STAGE, *LOOPED, *V_SHAPED])
@pytest.mark.processes(2)
def test_skip_edges_of_a_traced_script_have_the_plain_loops_bits(name: str) -> None:
    """PyTorch's traced stages hang under V-shaped schedules, without skips too."""
    api, schedules = _import(OURS)
    own, num_stages = _own_stages(name)
    cuts = ["layers.2"] if num_stages == 2 else ["layers.1", "layers.3", "head"]
    model, (x, y) = _Skipping(), data(8)
    reference = copy.deepcopy(model)
    pipe = api.pipeline(model, (x[:2],), split_spec=dict.fromkeys(cuts, api.SplitPoint.BEGINNING))
    assert len(pipe.stages.skip_edges) == num_stages - 2  # from the first to all but the next
    stages = [pipe.build_stage(s, CPU) for s in own]
    schedule = schedules.get_schedule_class(name)(
        stages[0] if name in ONE_STAGE else stages, 4, functional.mse_loss
    )
    result = _feed(schedule, num_stages, own, (x,), y)
    losses = [
        functional.mse_loss(reference(p), q) for p, q in zip(x.chunk(4), y.chunk(4), strict=True)
    ]
    for loss in reversed(losses) if name == "LoopedBFS" else losses:
        (loss / 4).backward()
    if result.losses:
        same(torch.stack(result.losses), torch.stack(losses).detach())
    gradients = {n: p.grad for n, p in reference.named_parameters()}
    for stage in stages:
        for parameter_name, parameter in stage.submod.named_parameters():
            same(parameter.grad, gradients[parameter_name], parameter_name)


@pytest.mark.processes(2)
def test_the_first_rank_alone_gives_arguments_that_later_stages_read() -> None:
    """PyTorch has them in the first stage alone. Wrapped stages take them too, in one replica."""
    api, _ = _import(OURS)
    [s], num_stages = _own_stages("1F1B")
    x, y = data(8)
    scale = torch.linspace(0.5, 2, 8)[:, None]
    model = _Traced()
    reference = copy.deepcopy(model)
    spec = {"layers.2": api.SplitPoint.END}
    pipe = api.pipeline(model, (x[:2],), {"scale": scale[:2]}, split_spec=spec)
    alone = init_device_mesh("cpu", (2, 1), mesh_dim_names=("pp", "dp")).get_group("dp")
    wrapped = DistributedDataParallel(pipe.get_stage_module(s), process_group=alone)
    stage = api.build_stage(wrapped, s, pipe.info(), CPU)
    schedule = api.Schedule1F1B(stage, 4, functional.mse_loss)
    more = {"scale": scale} if s == 0 else {}
    result = _feed(schedule, num_stages, [s], (x,), y, **more)
    losses = []
    for piece, target, factor in zip(x.chunk(4), y.chunk(4), scale.chunk(4), strict=True):
        losses.append(functional.mse_loss(reference(piece, factor), target))
        (losses[-1] / 4).backward()
    if result.losses:
        same(torch.stack(result.losses), torch.stack(losses).detach())
    expected = dict(reference.named_parameters())
    for name, parameter in wrapped.module.named_parameters():
        same(parameter.grad, expected[name].grad, name)
