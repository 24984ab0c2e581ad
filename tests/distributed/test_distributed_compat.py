"""Scripts in the public style of torch.distributed.pipelining, run with torch's import and ours."""

from __future__ import annotations

import copy
import importlib
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from models import WIDTH, data, layers, plain_loop, same, within
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn import functional

import pipert

THEIRS, OURS = "torch.distributed.pipelining", "pipert.compat.torch_pipelining"
CPU = torch.device("cpu")

ONE_STAGE = ["GPipe", "1F1B"]
LOOPED = ["Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble"]
V_SHAPED = ["ZBVZeroBubble", "DualPipeV"]


def _import(package: str) -> tuple[ModuleType, ModuleType]:
    return importlib.import_module(package), importlib.import_module(f"{package}.schedules")


def _own_stages(name: str) -> tuple[list[int], int]:
    """This rank's stages, and how many there are."""
    rank, size = dist.get_rank(), dist.get_world_size()
    if name in ONE_STAGE:
        return [rank], size
    if name in V_SHAPED:
        return [rank, 2 * size - 1 - rank], 2 * size
    return [rank, size + rank], 2 * size


def _schedule(package: str, name: str, modules: dict[int, nn.Module], num_stages: int, **options):
    """The schedule object that a user's script makes."""
    api, schedules = _import(package)
    stages = [api.PipelineStage(module, s, num_stages, CPU) for s, module in modules.items()]
    options.setdefault("loss_fn", functional.mse_loss)
    num_microbatches = options.pop("num_microbatches", 4)
    schedule_class = schedules.get_schedule_class(name)
    if name in ONE_STAGE:
        return schedule_class(stages[0], num_microbatches, **options)
    return schedule_class(stages, num_microbatches, **options)


def _feed(schedule, num_stages: int, own: list[int], x: tuple, y, call: str = "step", **more):
    """Gives the first stage's rank the input and the last one's the target, as in tutorials."""
    run = getattr(schedule, call)
    args = x if 0 in own else ()
    if num_stages - 1 in own:
        losses: list[Tensor] = []
        outputs = run(*args, target=y, losses=losses, **more)
        return SimpleNamespace(outputs=outputs, losses=losses)
    assert run(*args, **more) is None
    return SimpleNamespace(outputs=None, losses=[])


def _train(package: str, name: str, num_steps: int = 3) -> dict[str, object]:
    own, num_stages = _own_stages(name)
    model = layers(num_stages)
    modules = {s: model[2 * s : 2 * s + 2] for s in own}
    parameters = [p for module in modules.values() for p in module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    schedule = _schedule(package, name, modules, num_stages)
    seen: dict[str, object] = {}
    for step in range(num_steps):
        x, y = data(8, seed=step)
        optimizer.zero_grad()
        result = _feed(schedule, num_stages, own, (x,), y)
        seen[f"losses of step {step}"] = [loss.detach() for loss in result.losses]
        seen[f"outputs of step {step}"] = result.outputs
        seen[f"gradients of step {step}"] = [p.grad.clone() for p in parameters]
        optimizer.step()
    if name not in V_SHAPED:
        with torch.no_grad():
            result = _feed(schedule, num_stages, own, (x,), y, call="eval")
        seen["losses of eval"], seen["outputs of eval"] = result.losses, result.outputs
    seen["weights"] = [p.detach() for p in parameters]
    return seen


def _same_everything(ours: dict[str, object], theirs: dict[str, object]) -> None:
    assert ours.keys() == theirs.keys()
    for what, expected in theirs.items():
        pieces = (ours[what], expected)
        got, wanted = (list(p) if isinstance(p, list | tuple) else [p] for p in pieces)
        assert len(got) == len(wanted), f"{what}: {len(got)} against {len(wanted)}"
        for one, other in zip(got, wanted, strict=True):
            same(one, None if other is None else other.detach(), what)


@pytest.mark.parametrize("name", [*ONE_STAGE, *LOOPED, *V_SHAPED])
@pytest.mark.processes(2)
def test_a_script_gets_torchs_bits_with_the_other_import(name: str) -> None:
    _same_everything(_train(OURS, name), _train(THEIRS, name))


@pytest.mark.parametrize("name", V_SHAPED)
@pytest.mark.processes(2)
def test_v_shaped_schedules_evaluate_too(name: str) -> None:
    """PyTorch 2.13's fail: "can't steal_bwd_input if this stage doesn't have backward"."""
    own, num_stages = _own_stages(name)
    model, (x, y) = layers(num_stages), data(8)
    schedule = _schedule(OURS, name, {s: model[2 * s : 2 * s + 2] for s in own}, num_stages)
    for _ in range(2):
        result = _feed(schedule, num_stages, own, (x,), y, call="eval")
        if num_stages - 1 in own:
            with torch.no_grad():
                expected = [model(piece) for piece in x.chunk(4)]
            same(result.outputs, torch.cat(expected))
            for loss, output, target in zip(result.losses, expected, y.chunk(4), strict=True):
                same(loss, functional.mse_loss(output, target))
        _feed(schedule, num_stages, own, (x,), y)
    assert all(model[2 * s].weight.grad is not None for s in own)


class _Scaled(nn.Module):
    """Takes a tensor that is cut along dimension 1 and a keyword, and returns two values."""

    def __init__(self, stage: int, is_last: bool) -> None:
        super().__init__()
        torch.manual_seed(stage)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.is_last = is_last

    def forward(self, x: Tensor, columns: Tensor, shift: Tensor | None = None):
        x = torch.tanh(self.linear(x)) * columns.T
        if shift is not None:
            x = x + shift
        return (x, x.detach().sum()) if self.is_last else (x, columns)


def _with_specs(package: str) -> dict[str, object]:
    chunk = importlib.import_module(f"{package}.microbatch")
    own, num_stages = _own_stages("1F1B")
    modules = {s: _Scaled(s, s == num_stages - 1) for s in own}
    schedule = _schedule(
        package,
        "1F1B",
        modules,
        num_stages,
        loss_fn=lambda output, target, *, power: ((output[0] - target).abs() ** power).mean(),
        args_chunk_spec=chunk.TensorChunkSpec.from_tuple((0, 1)),
        kwargs_chunk_spec={"shift": chunk._Replicate()},
        output_merge_spec=(chunk.TensorChunkSpec(0), chunk.sum_reducer),
        scale_grads=False,
    )
    x, y = data(8)
    columns = torch.linspace(0.5, 1.5, 8)[None, :]
    shift = torch.linspace(-1, 1, WIDTH)
    options = {"loss_kwargs": {"power": 2}, "shift": shift}
    result = _feed(schedule, num_stages, own, (x, columns), y, **options)
    parameters = [p for module in modules.values() for p in module.parameters()]
    return {
        "losses": [loss.detach() for loss in result.losses],
        "outputs": result.outputs,
        "gradients": [p.grad for p in parameters],
    }


@pytest.mark.processes(2)
def test_chunk_specs_merged_outputs_keywords_and_summed_gradients_are_torchs() -> None:
    _same_everything(_with_specs(OURS), _with_specs(THEIRS))


class _Sharded(nn.Module):
    """A linear whose rows are spread over a mesh, and with them its output."""

    def __init__(self, stage: int, mesh: DeviceMesh) -> None:
        super().__init__()
        torch.manual_seed(stage)
        self.weight = nn.Parameter(distribute_tensor(torch.randn(WIDTH, WIDTH), mesh, [Shard(0)]))
        self.mesh = mesh

    def forward(self, x: Tensor) -> DTensor:
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, self.mesh, [Replicate()])
        return torch.tanh(functional.linear(x, self.weight))


def _dtensor_loss(output: DTensor, target: Tensor) -> Tensor:
    return functional.mse_loss(output.full_tensor(), target)


def _with_dtensors(package: str, name: str) -> dict[str, object]:
    api, schedules = _import(package)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "tp"))
    tp, rank = mesh["tp"], mesh.get_local_rank("pp")
    own = [rank] if name == "1F1B" else [rank, 3 - rank]
    num_stages = 2 * len(own)
    options = {"group": mesh.get_group("pp"), "get_mesh": lambda names, layout: mesh[names]}
    stages = [api.PipelineStage(_Sharded(s, tp), s, num_stages, CPU, **options) for s in own]
    schedule = schedules.get_schedule_class(name)(
        stages[0] if len(stages) == 1 else stages, 4, _dtensor_loss
    )
    x, y = data(8)
    losses = _feed(schedule, num_stages, own, (x,), y).losses
    gradients = [stage.submod.weight.grad.full_tensor() for stage in stages]
    return {"losses": [loss.detach() for loss in losses], "gradients": gradients}


@pytest.mark.parametrize("name", ["1F1B", "DualPipeV"])
@pytest.mark.processes(4)
def test_dtensors_go_from_stage_to_stage_with_torchs_bits(name: str) -> None:
    _same_everything(_with_dtensors(OURS, name), _with_dtensors(THEIRS, name))


@pytest.mark.processes(4)
def test_a_dtensor_whose_mesh_nobody_finds_says_so() -> None:
    api, _ = _import(OURS)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "tp"))
    [s], group = [mesh.get_local_rank("pp")], mesh.get_group("pp")
    module = _Sharded(s, mesh["tp"])
    stage = api.PipelineStage(module, s, 2, CPU, group=group, get_mesh=lambda *key: None)
    schedule = api.Schedule1F1B(stage, 4, _dtensor_loss)
    x, y = data(8)
    with pytest.raises(
        pipert.PipelineError, match=r"dimensions \('tp',\), .* expected .*get_mesh="
    ):
        _feed(schedule, 2, [s], (x,), y)
    example = DTensor.from_local(torch.empty(2, WIDTH // 2), mesh["tp"], [Shard(1)])
    stage = api.PipelineStage(module, s, 2, CPU, input_args=example, group=group)
    schedule = api.Schedule1F1B(stage, 4, _dtensor_loss)
    _feed(schedule, 2, [s], (x,), y)
    assert isinstance(module(x), DTensor)


class _LaterProduct(torch.autograd.Function):
    """`x @ weight.T`, whose backward leaves the weight's gradient to be made later."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, later: list) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.later = later
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        ctx.later.append((gradient, x))
        return gradient @ weight, None, None


class _Deferring(nn.Module):
    """A linear layer that makes its weight's gradients itself, and its bias's by autograd."""

    def __init__(self, stage: int) -> None:
        super().__init__()
        torch.manual_seed(stage)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.later: list[tuple[Tensor, Tensor]] = []
        self.events: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        product = _LaterProduct.apply(x, self.linear.weight, self.later)
        return torch.tanh(product + self.linear.bias)

    def dw_builder(self):
        self.events.append("builder")
        gradient, x = self.later.pop()
        self.later.clear()  # of torch's trial backward

        def run() -> None:
            self.events.append("run")
            made, weight = gradient.T @ x, self.linear.weight
            weight.grad = made if weight.grad is None else weight.grad + made

        return run


def _with_dw_builders(package: str, name: str) -> tuple[dict[str, object], list[_Deferring]]:
    api, schedules = _import(package)
    own, num_stages = _own_stages(name)
    modules = [_Deferring(s) for s in own]
    stages = [
        api.PipelineStage(module, s, num_stages, CPU, dw_builder=module.dw_builder)
        for s, module in zip(own, modules, strict=True)
    ]
    schedule = schedules.get_schedule_class(name)(
        stages if len(stages) > 1 else stages[0], 4, functional.mse_loss
    )
    x, y = data(8)
    losses = _feed(schedule, num_stages, own, (x,), y).losses
    gradients = [p.grad for module in modules for p in module.parameters()]
    return {"losses": [loss.detach() for loss in losses], "gradients": gradients}, modules


@pytest.mark.parametrize("name", ["1F1B", "InterleavedZeroBubble"])
@pytest.mark.processes(2)
def test_a_dw_builder_is_called_where_torch_calls_it_with_torchs_bits(name: str) -> None:
    (ours, modules), (theirs, others) = (_with_dw_builders(p, name) for p in (OURS, THEIRS))
    _same_everything(ours, theirs)
    for s, module, other in zip(_own_stages(name)[0], modules, others, strict=True):
        in_turn = ["builder", "run"] * 4
        assert sorted(module.events) == sorted(in_turn)
        assert module.events == (other.events if s else in_turn)
    if name == "InterleavedZeroBubble" and dist.get_rank() == 1:
        assert any(module.events != in_turn for module in modules), "a W of them comes later"
    module(data(2)[0]).sum().backward()
    assert len(module.events) == 8, "no pipeline runs it"


@pytest.mark.processes(2)
def test_what_a_dw_builder_raises_is_said_with_the_action() -> None:
    api, _ = _import(OURS)
    [s], num_stages = _own_stages("1F1B")
    module = _Deferring(s)

    def fail() -> None:
        raise KeyError("no gradient is left")

    stage = api.PipelineStage(module, s, num_stages, CPU, dw_builder=lambda: fail)
    schedule = api.Schedule1F1B(stage, 4, functional.mse_loss)
    x, y = data(8)
    with within(10), pytest.raises(pipert.PipelineError, match=r"1B0 .*no gradient is left"):
        _feed(schedule, num_stages, [s], (x,), y)
    stage = api.PipelineStage(module, s, num_stages, CPU)
    _feed(api.Schedule1F1B(stage, 4, functional.mse_loss), num_stages, [s], (x,), y)


@pytest.mark.processes(2)
def test_a_batch_that_does_not_divide_works_and_counts_each_microbatch_alike() -> None:
    """PyTorch's receive buffers have the first microbatch's size: it can't."""
    own, num_stages = _own_stages("1F1B")
    model, (x, y) = layers(num_stages), data(10)
    reference = copy.deepcopy(model)
    schedule = _schedule(OURS, "1F1B", {s: model[2 * s : 2 * s + 2] for s in own}, num_stages)
    result = _feed(schedule, num_stages, own, (x,), y)
    losses = []
    for piece, target in zip(x.tensor_split(4), y.tensor_split(4), strict=True):
        loss = functional.mse_loss(reference(piece), target)
        (loss / 4).backward()
        losses.append(loss.detach())
    if result.losses:
        same(torch.stack(result.losses), torch.stack(losses))
        assert result.outputs.shape == (10, WIDTH)
    for s in own:
        for p, q in zip(model[2 * s].parameters(), reference[2 * s].parameters(), strict=True):
            same(p.grad, q.grad, f"stage {s}")


@pytest.mark.processes(2)
def test_three_microbatches_equal_torchs_up_to_rounding_and_their_sum_to_the_bit() -> None:
    """The engine's seed is a third; torch divides by three at the end."""
    seen: dict[tuple[str, bool], Tensor] = {}
    for package in (OURS, THEIRS):
        for scale_grads in (True, False):
            own, num_stages = _own_stages("GPipe")
            model, (x, y) = layers(num_stages), data(9)
            modules = {s: model[2 * s : 2 * s + 2] for s in own}
            options = {"num_microbatches": 3, "scale_grads": scale_grads}
            schedule = _schedule(package, "GPipe", modules, num_stages, **options)
            _feed(schedule, num_stages, own, (x,), y)
            parts = [p.grad.flatten() for p in modules[own[0]].parameters()]
            seen[package, scale_grads] = torch.cat(parts)
    torch.testing.assert_close(seen[OURS, True], seen[THEIRS, True], rtol=1e-6, atol=1e-7)
    same(seen[OURS, False], seen[THEIRS, False])


@pytest.mark.parametrize("name", ["Interleaved1F1B", "InterleavedZeroBubble"])
@pytest.mark.processes(3)
def test_fewer_microbatches_than_ranks_run_in_torchs_order(name: str) -> None:
    own, num_stages = _own_stages(name)
    model, (x, y) = layers(num_stages), data(4)
    reference = copy.deepcopy(model)
    modules = {s: model[2 * s : 2 * s + 2] for s in own}
    schedule = _schedule(OURS, name, modules, num_stages, num_microbatches=2)
    theirs = _schedule(THEIRS, name, modules, num_stages, num_microbatches=2)
    order = {rank: [a for a in theirs.pipeline_order[rank] if a is not None] for rank in range(3)}
    assert schedule.pipeline_order == order
    _feed(schedule, num_stages, own, (x,), y)
    plain_loop(reference, x, y, 2)
    for s in own:
        for p, q in zip(model[2 * s].parameters(), reference[2 * s].parameters(), strict=True):
            same(p.grad, q.grad, f"stage {s}")


@pytest.mark.processes(2)
def test_microbatches_that_are_cut_already() -> None:
    own, num_stages = _own_stages("1F1B")
    model, (x, y) = layers(num_stages), data(8)
    reference = copy.deepcopy(model)
    schedule = _schedule(OURS, "1F1B", {s: model[2 * s : 2 * s + 2] for s in own}, num_stages)
    arg_mbs = [(piece,) for piece in x.chunk(4)] if 0 in own else None
    target_mbs = list(y.chunk(4)) if num_stages - 1 in own else None
    losses: list[Tensor] = [torch.zeros(())] * 9
    outputs = schedule.step(arg_mbs=arg_mbs, target_mbs=target_mbs, losses=losses)
    expected = plain_loop(reference, x, y, 4)
    if num_stages - 1 in own:
        same(torch.stack(losses), expected)
        same(outputs, reference(x).detach())
    else:
        assert len(losses) == 9
    assert schedule.step(arg_mbs=arg_mbs, target_mbs=target_mbs, return_outputs=False) is None


def _cut_already(package: str) -> dict[str, object]:
    [s], num_stages = _own_stages("1F1B")
    is_last = s == num_stages - 1
    module = _Scaled(s, is_last)
    options = {"loss_fn": lambda output, target: functional.mse_loss(output[0], target)}
    schedule = _schedule(package, "1F1B", {s: module}, num_stages, **options)
    x, y = data(8)
    columns = torch.linspace(0.5, 1.5, 8)[None, :]
    arg_mbs = list(zip(x.chunk(4), columns.chunk(4, dim=1), strict=True)) if s == 0 else None
    kwarg_mbs = [{"shift": torch.full((WIDTH,), float(m))} for m in range(4)]
    losses: list[Tensor] = []
    given = (arg_mbs, kwarg_mbs, list(y.chunk(4)) if is_last else None)
    stage = schedule._stage
    stage.has_backward = True  # as torch's step does before
    schedule._step_microbatches(*given, losses, return_outputs=False)
    assert stage.output_chunks == []
    stage.clear_runtime_states()
    seen = {"gradients": [p.grad.clone() for p in module.parameters()]}
    schedule._step_microbatches(*given, losses)
    outputs = [value for chunk in stage.output_chunks for value in chunk] if is_last else []
    return {**seen, "losses": [loss.detach() for loss in losses], "outputs": outputs}


@pytest.mark.processes(2)
def test_keywords_and_outputs_of_cut_microbatches_are_torchs() -> None:
    _same_everything(_cut_already(OURS), _cut_already(THEIRS))


@pytest.mark.processes(2)
def test_loss_number_of_microbatches_and_scale_may_change_between_passes() -> None:
    """Users of torch's schedules assign to these members."""
    own, num_stages = _own_stages("1F1B")
    [s] = own
    model, (x, y) = layers(num_stages), data(8)
    part = model[2 * s : 2 * s + 2]
    schedule = _schedule(OURS, "1F1B", {s: part}, num_stages, loss_fn=None)
    outputs = _feed(schedule, num_stages, own, (x,), y).outputs
    if s == num_stages - 1:
        same(outputs, model(x).detach())
        schedule._loss_fn = functional.l1_loss  # the others need none
    schedule._has_backward = True
    for num_microbatches, scale_grads in (
        (4, True),
        (2, False),
        (8, True),
        (1, True),
        (4, True),
        (7, True),
    ):
        schedule._n_microbatches = num_microbatches
        schedule.scale_grads = scale_grads
        part.zero_grad()
        reference = copy.deepcopy(model)
        result = _feed(schedule, num_stages, own, (x,), y)
        assert len(schedule._pipelines) <= 4
        assert schedule.pipeline.schedule.num_microbatches == num_microbatches
        weight = 1 / num_microbatches if scale_grads else 1
        losses = []
        pieces = (whole.tensor_split(num_microbatches) for whole in (x, y))
        for piece, target in zip(*pieces, strict=True):
            losses.append(functional.l1_loss(reference(piece), target))
            (losses[-1] * weight).backward()
        if result.losses:
            same(torch.stack(result.losses), torch.stack(losses).detach())
        expected = reference[2 * s : 2 * s + 2].parameters()
        for p, q in zip(part.parameters(), expected, strict=True):
            same(p.grad, q.grad, f"{num_microbatches} microbatches")
    schedule._loss_fn, schedule._n_microbatches = None, 4
    schedule._has_backward = False
    if s == 0:
        schedule.step(x)
    else:
        same(schedule.step(), model(x).detach())


@pytest.mark.processes(2)
def test_a_loss_that_needs_no_target_gets_none() -> None:
    own, num_stages = _own_stages("GPipe")
    [s] = own
    model, (x, _) = layers(num_stages), data(8)
    seen = []

    def loss_fn(output: Tensor, target: object) -> Tensor:
        seen.append(target)
        return output.square().mean()

    schedule = _schedule(OURS, "GPipe", {s: model[2 * s : 2 * s + 2]}, num_stages, loss_fn=loss_fn)
    arg_mbs = [(piece,) for piece in x.chunk(4)] if s == 0 else None
    schedule._step_microbatches(arg_mbs, None, [None] * 4 if s else None)
    assert seen == ([None] * 4 if s else [])


def _shared_folder() -> Path:
    """The same folder on both ranks."""
    name = [tempfile.mkdtemp(prefix="pipert-compat-")]
    dist.broadcast_object_list(name)
    return Path(name[0])


@pytest.mark.parametrize("form", ["compute_only", "compute_comms"])
@pytest.mark.processes(2)
def test_an_order_that_torch_wrote_runs_and_torch_reads_ours(form: str) -> None:
    folder = _shared_folder()
    own, num_stages = _own_stages("DualPipeV")
    model, (x, y) = layers(num_stages), data(8)
    reference = copy.deepcopy(model)
    modules = {s: model[2 * s : 2 * s + 2] for s in own}
    theirs = _schedule(THEIRS, "DualPipeV", modules, num_stages)
    path = folder / f"theirs-{dist.get_rank()}.csv"
    theirs._dump_csv(str(path), format=form)

    api, schedules = _import(OURS)
    stages = [api.PipelineStage(module, s, num_stages, CPU) for s, module in modules.items()]
    ours = schedules._PipelineScheduleRuntime(stages, 4, loss_fn=functional.mse_loss)
    with pytest.raises(ValueError, match="has no order for 4 microbatches: expected"):
        ours.step(x)
    ours._load_csv(str(path), format=form)
    assert ours.stage_index_to_group_rank == {0: 0, 1: 1, 2: 1, 3: 0}
    _feed(ours, num_stages, own, (x,), y)
    plain_loop(reference, x, y, 4)
    for s in own:
        for p, q in zip(model[2 * s].parameters(), reference[2 * s].parameters(), strict=True):
            same(p.grad, q.grad, f"stage {s}")

    back = folder / f"ours-{dist.get_rank()}.csv"
    ours._dump_csv(str(back), format=form)
    theirs._load_csv(str(back), format=form)
    expected = {s: [p.grad.clone() for p in module.parameters()] for s, module in modules.items()}
    model.zero_grad()
    _feed(theirs, num_stages, own, (x,), y)
    for s in own:
        for p, gradient in zip(modules[s].parameters(), expected[s], strict=True):
            same(p.grad, gradient, f"torch's run of our order, stage {s}")


@pytest.mark.processes(2)
def test_a_function_runs_the_halves_of_overlapped_pairs() -> None:
    _, schedules = _import(OURS)
    own, num_stages = _own_stages("DualPipeV")
    model, (x, y) = layers(num_stages), data(16)
    reference = copy.deepcopy(model)
    modules = {s: model[2 * s : 2 * s + 2] for s in own}
    schedule = _schedule(OURS, "DualPipeV", modules, num_stages, num_microbatches=8)
    seen = []

    def overlapped(action, context) -> None:
        forward, backward = action.sub_actions
        assert forward.computation_type is schedules._ComputationType.FORWARD
        assert (forward.stage_index, backward.stage_index) == (
            context.forward.stage,
            context.backward.stage,
        )
        assert context.schedule_ref is schedule
        assert len(context.arg_mbs) == 8
        context.backward()
        context.forward()
        seen.append(action)

    kinds = schedules._ComputationType
    with pytest.raises(NotImplementedError, match=r"^F runs in pipert's engine"):
        schedule.register_custom_function(kinds.FORWARD, overlapped)
    with pytest.raises(ValueError, match="Invalid computation type"):
        schedule.register_custom_function(kinds.SEND_F, overlapped)
    schedule.register_custom_function(kinds.OVERLAP_F_B, overlapped)
    _feed(schedule, num_stages, own, (x,), y)
    order = schedule.pipeline_order[dist.get_rank()]
    assert seen == [action for action in order if action.sub_actions]
    assert seen
    plain_loop(reference, x, y, 8)
    for s in own:
        for p, q in zip(model[2 * s].parameters(), reference[2 * s].parameters(), strict=True):
            same(p.grad, q.grad, f"stage {s}")
    with pytest.raises(RuntimeError, match="expected a function before the first step"):
        schedule.register_custom_function(kinds.OVERLAP_F_B, overlapped)


@pytest.mark.processes(2)
def test_without_a_loss_function_a_step_is_a_forward() -> None:
    api, _ = _import(OURS)
    own, num_stages = _own_stages("GPipe")
    model, (x, _) = layers(num_stages), data(8)
    [s] = own
    stage = api.PipelineStage(model[2 * s : 2 * s + 2], s, num_stages, CPU)
    schedule = api.ScheduleGPipe(stage, 4)
    forward_only = api._ScheduleForwardOnly(stage, 4)
    for each in (schedule, forward_only):
        with torch.no_grad():
            outputs = each.step(x) if s == 0 else each.step()
        if stage.is_last:
            same(outputs, model(x).detach())
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(RuntimeError, match="does not support loss computation"):
        forward_only.step(losses=[])


@pytest.mark.processes(2)
def test_what_does_not_fit_is_said_on_the_rank_that_did_it() -> None:
    api, schedules = _import(OURS)
    own, num_stages = _own_stages("1F1B")
    [s] = own
    module = layers(num_stages)[2 * s : 2 * s + 2]
    stage = api.PipelineStage(module, s, num_stages, CPU)
    schedule = api.Schedule1F1B(stage, 4, functional.mse_loss)
    with torch.no_grad(), pytest.raises(RuntimeError, match="Please call eval"):
        schedule.step(torch.ones(8, WIDTH))
    with pytest.raises(ValueError, match="Expecting 4 arg_mbs but got 3"):
        schedule.step(arg_mbs=[()] * 3)
    with pytest.raises(ValueError, match="Expecting 4 arg_mbs but got 2"):
        schedule.step(torch.ones(2, WIDTH))
    with pytest.raises(TypeError, match="losses must be a list"):
        schedule.step(losses=())
    with pytest.raises(ValueError, match="expected positional arguments or arg_mbs, got both"):
        schedule.step(torch.ones(8, WIDTH), arg_mbs=[()] * 4)
    with pytest.raises(TypeError, match="must be PipelineStages of pipert"):
        api.Schedule1F1B([module], 4)
    looped = api.ScheduleInterleaved1F1B([api.PipelineStage(module, 2 * s, 4, CPU)], 4)
    with pytest.raises(ValueError, match=rf"rank {s} must have stages .* got \[{2 * s}\]"):
        looped.step()
    with pytest.raises(ValueError, match="requires exactly 2 stages per rank"):
        api.ScheduleZBVZeroBubble([stage], 4)
    with pytest.raises(ValueError, match="Unknown schedule name 'none'"):
        schedules.get_schedule_class("none")
    with pytest.raises(ValueError, match="has one stage on each rank, got 4 stages and 2 ranks"):
        api.ScheduleGPipe(api.PipelineStage(module, s, 4, CPU), 4)


@pytest.mark.processes(2)
def test_what_one_rank_does_wrong_the_other_hears_of() -> None:
    own, num_stages = _own_stages("1F1B")
    [s] = own
    model, (x, y) = layers(num_stages), data(8)
    schedule = _schedule(OURS, "1F1B", {s: model[2 * s : 2 * s + 2]}, num_stages)
    with within(10):
        if s == 0:
            with pytest.raises(ValueError, match="Expecting 4 arg_mbs but got 3"):
                schedule.step(arg_mbs=[()] * 3)
        else:
            with pytest.raises(pipert.PipelineError, match="Expecting 4 arg_mbs but got 3"):
                schedule.step(target=y)
    _feed(schedule, num_stages, own, (x,), y)

    api, _ = _import(OURS)
    size = dist.get_world_size()
    indices = [s, s + size] if s == 0 else [s]
    stages = [api.PipelineStage(model[:2], index, 2 * size, CPU) for index in indices]
    uneven = api.ScheduleLoopedBFS(stages, 4, functional.mse_loss)
    error = ValueError if s == 1 else pipert.PipelineError
    with (
        within(10),
        pytest.raises(error, match=r"rank 1 must have stages \[1, 3\] in .*, got \[1\]"),
    ):
        uneven.step()
