"""pipert.compat.torch_pipelining in one process, without torch.distributed."""

import copy

import pytest
import torch
from plain_loop import assert_same_gradients, batch, plain_loop
from torch import nn
from torch.nn import functional
from wired import PlainLoop, ids_and_mask, wired_stages

from pipert.compat.torch_pipelining import (
    Pipe,
    PipelineStage,
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    SplitPoint,
    build_stage,
    pipeline,
)
from pipert.compat.torch_pipelining._backward import (
    stage_backward,
    stage_backward_input,
    stage_backward_weight,
)
from pipert.compat.torch_pipelining.policy import cuts_of_policy
from pipert.compat.torch_pipelining.schedules import (
    PipelineScheduleMulti,
    _Action,
    _PipelineScheduleRuntime,
    get_schedule_class,
)

CPU = torch.device("cpu")
WIDTH = 4


def modules(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(count)]


def stages(parts, device=CPU):
    return [PipelineStage(part, s, len(parts), device) for s, part in enumerate(parts)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "num_ranks"),
    [
        ("gpipe", 4),
        ("1F1B", 4),
        ("Interleaved1F1B", 1),
        ("loopedbfs", 1),
        ("InterleavedZeroBubble", 1),
        ("ZBVzerobubble", 2),
        ("DualPipeV", 2),
    ],
)
def test_without_torch_distributed_ranks_are_threads(name, num_ranks):
    parts = modules(4)
    plain = copy.deepcopy(nn.Sequential(*parts))
    schedule = get_schedule_class(name)(stages(parts), 4, loss_fn=functional.mse_loss)
    x, y = batch(8, WIDTH)
    losses = []
    outputs = schedule.step(x, target=y, losses=losses)
    with schedule.pipeline as pipe:
        assert pipe.schedule.num_ranks == num_ranks
        assert torch.equal(outputs, plain(x))
        plain_loop(plain, x, y, 4, backwards=name == "loopedbfs")
        assert_same_gradients(nn.Sequential(*parts), plain)
        assert len(losses) == 4
        kept = list(losses)
        schedule.eval(x, target=y, losses=losses)
        assert losses == kept


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = (nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x):
        return self.used(x), self.unused(x)


@pytest.mark.timeout(60)
def test_with_a_dw_builder_what_no_loss_depends_on_gets_no_gradient():
    module, calls = TwoHeads(), []
    stage = PipelineStage(module, 0, 1, CPU, dw_builder=lambda: lambda: calls.append("run"))
    schedule = Schedule1F1B(stage, 2, lambda output, y: functional.mse_loss(output[0], y))
    x, y = batch(8, WIDTH)
    schedule.step(x, target=y)
    with schedule.pipeline:
        assert module.used.weight.grad is not None
        assert module.unused.weight.grad is None
        assert calls == ["run", "run"]


@pytest.mark.timeout(60)
def test_an_order_of_the_users_own_runs_and_goes_through_a_file(tmp_path):
    parts = modules(2)
    plain = copy.deepcopy(nn.Sequential(*parts))
    schedule = PipelineScheduleMulti(stages(parts), 2, loss_fn=functional.mse_loss)
    texts = ["0F0", "1F0", "1B0", "0B0", None, "0F1", "1F1", "1B1", "0B1"]
    schedule.pipeline_order[0] = [
        None if text is None else _Action.from_str(text) for text in texts
    ]
    x, y = batch(8, WIDTH)
    schedule.step(x, target=y)
    with schedule.pipeline as pipe:
        order = [text for text in texts if text]
        assert [str(action) for action in pipe.schedule.actions[0]] == order
        plain_loop(plain, x, y, 2)
        assert_same_gradients(nn.Sequential(*parts), plain)
    schedule._dump_csv(tmp_path / "order.csv")
    assert (tmp_path / "order.csv").read_text().split() == [",".join(order)]
    again = PipelineScheduleMulti(stages(parts), 2, loss_fn=functional.mse_loss)
    again._load_csv(tmp_path / "order.csv")
    assert again.pipeline_order == schedule.pipeline_order


class TwoAtATime(_PipelineScheduleRuntime):
    """A schedule of a user's own, as torch's are written."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pipeline_order = {}
        for rank in range(self.pp_group_size):
            texts = ["0F0", "0F1", "1F0", "1F1", "1B0", "1B1", "0B0", "0B1"]
            self.pipeline_order[rank] = [_Action.from_str(text) for text in texts]
        self._prepare_schedule_with_comms(self.pipeline_order)


@pytest.mark.timeout(60)
def test_a_class_of_the_users_own_runs_and_gives_its_input_a_gradient():
    parts = modules(2)
    plain = copy.deepcopy(nn.Sequential(*parts))
    schedule = TwoAtATime(stages(parts), 2, functional.mse_loss)
    x, y = batch(8, WIDTH)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    schedule.step(ours, target=y)
    with schedule.pipeline as pipe:
        assert pipe.schedule.name == "TwoAtATime"
        plain_loop(plain, theirs, y, 2)
        assert torch.equal(ours.grad, theirs.grad)
        assert_same_gradients(nn.Sequential(*parts), plain)


def test_an_order_that_cannot_run_says_why():
    schedule = _PipelineScheduleRuntime(stages(modules(2)), 1)
    actions = [_Action.from_str(text) for text in ("1F0", "0F0", "0B0", "1B0")]
    with pytest.raises(ValueError, match="can't run"):
        schedule._prepare_schedule_with_comms({0: actions})
    sends = [_Action.from_str(text) for text in ("0F0", "0SEND_F0")]
    with pytest.raises(ValueError, match="got '0SEND_F0' at rank 0, position 1"):
        schedule._prepare_schedule_with_comms({0: sends})
    with pytest.raises(NotImplementedError, match="format='all' is not implemented"):
        schedule._prepare_schedule_with_comms({0: actions}, format="all")
    with pytest.raises(AssertionError, match='format must be "compute_only"'):
        PipelineScheduleMulti(stages(modules(2)), 1)._load_csv("x.csv", format="compute_comms")
    interleaved = ScheduleInterleaved1F1B(stages(modules(2)), 2)
    with pytest.raises(ValueError, match="can't run: 0F2 is missing on rank 0"):
        ScheduleInterleaved1F1B(stages(modules(2)), 3)._prepare_schedule_with_comms(
            interleaved.pipeline_order
        )


@pytest.mark.parametrize("name", ["forward_one_chunk", "get_bwd_send_ops", "fwd_cache"])
def test_what_only_torchs_runtime_needs_is_missing_with_a_reason(name):
    [stage] = stages(modules(1))
    assert not hasattr(stage, name)
    with pytest.raises(AttributeError, match=f"a stage of pipert has no {name}: "):
        getattr(stage, name)
    with pytest.raises(AttributeError, match="'PipelineStage' object has no attribute 'nothing'"):
        _ = stage.nothing


def test_a_stage_that_cannot_be_is_refused():
    [module] = modules(1)
    with pytest.raises(ValueError, match="Stage index 3 is out of range of 2"):
        PipelineStage(module, 3, 2, CPU)
    with pytest.raises(TypeError, match="input_args must be a tensor or a tuple of tensors"):
        PipelineStage(module, 0, 2, CPU, input_args=8)
    PipelineStage(module, 0, 2, CPU, input_args=torch.ones(2), output_args=(torch.ones(2),))
    with pytest.raises(ValueError, match=r"all of the 2 stages are in this process, got .*\[0\]"):
        Schedule1F1B(PipelineStage(module, 0, 2, CPU), 2)
    with pytest.raises(ValueError, match=r"each stage must be given once, got stages \[0, 0\]"):
        Schedule1F1B([PipelineStage(module, 0, 2, CPU), PipelineStage(module, 0, 2, CPU)], 2)
    with pytest.raises(ValueError, match="number of rounds"):
        ScheduleInterleaved1F1B(
            [PipelineStage(m, s, 4, torch.device("cpu", s % 2)) for s, m in enumerate(modules(4))],
            5,
        )


def test_gradients_of_a_stage_by_hand():
    x = torch.ones(2, requires_grad=True)
    [gradient] = stage_backward((x * 3,), (torch.ones(2),), (x,))
    assert torch.equal(gradient, torch.full((2,), 3.0))
    [module] = modules(1)
    whole = copy.deepcopy(module)
    x, y = batch(2, WIDTH)
    [of_input] = stage_backward((whole(x.requires_grad_()),), (y,), (x,))
    x.grad = None
    gradients, groups = stage_backward_input([module(x)], [y], [x], module.parameters())
    assert torch.equal(gradients[0], of_input)
    stage_backward_weight(module.parameters(), groups)
    assert_same_gradients(module, whole)


def test_scale_grads_divides():
    [stage] = stages(modules(1))
    stage.submod(torch.ones(2, WIDTH)).sum().backward()
    expected = [parameter.grad / 4 for parameter in stage.submod.parameters()]
    stage.scale_grads(1)
    stage.scale_grads(4)
    got = [parameter.grad for parameter in stage.submod.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(got, expected, strict=True))


# --- Pipe --------------------------------------------------------------------------------------


def test_a_pipe_is_the_model_and_shows_its_stages():
    split = wired_stages(num_middles=1)
    pipe = Pipe._of(split)
    assert pipe.stages is split
    ids, mask = ids_and_mask(rows=4)
    plain = copy.deepcopy(split)
    output = pipe(ids, mask, reduce="sum")
    output.square().sum().backward()
    hidden = plain[1](*plain[0](ids), mask)[0]
    plain[2](hidden, mask, reduce="sum").square().sum().backward()
    assert torch.equal(output, plain[2](hidden, mask, reduce="sum"))
    for ours, theirs in zip(split, plain, strict=True):
        assert_same_gradients(ours, theirs)
    assert pipe.num_stages == 3
    assert "submod_pp_1 = self.submod_pp_1(getitem, mask = mask, options = options)" in str(pipe)
    assert [name for name, _ in pipe.split_gm.named_children()] == [
        f"submod_pp_{s}" for s in range(3)
    ]
    assert pipe.get_stage_module(1) is split[1]
    with pytest.raises(ValueError, match="Invalid stage index 3!"):
        pipe.get_stage_module(3)
    with pytest.raises(RuntimeError, match="invoke the Pipe object directly"):
        pipe.split_gm(ids)
    with pytest.raises(TypeError, match="takes 6 positional arguments, got 7"):
        pipe(*range(7))
    with pytest.raises(TypeError, match="split_gm must come from another Pipe of pipert's"):
        Pipe(torch.fx.symbolic_trace(nn.Linear(1, 1)), 1, False, None)


@pytest.mark.timeout(60)
def test_the_stages_of_a_pipe_run_in_a_schedule():
    split = wired_stages(num_middles=2)
    plain = PlainLoop(split)
    pipe = Pipe._of(split)
    info = pipe.info()
    assert (info.num_stages, info.has_loss_and_backward) == (4, False)
    assert not any(isinstance(module, nn.Module) for module in info.stages)
    made = [pipe.build_stage(0, CPU)]
    made += [build_stage(pipe.get_stage_module(s), s, info, CPU) for s in range(1, 4)]

    def loss_fn(output, target):
        return functional.cross_entropy(output.flatten(0, 1), target.flatten())

    schedule = Schedule1F1B(made, 4, loss_fn)
    ids, mask = ids_and_mask(rows=8)
    losses = []
    outputs = schedule.step(ids, mask, target=ids, losses=losses)
    pieces = list(zip(ids.chunk(4), mask.chunk(4), strict=True))
    expected = plain.step([(piece, {}) for piece in pieces], lambda o, m: loss_fn(o, pieces[m][0]))
    with schedule.pipeline as running:
        plain.assert_same_gradients(running)
    assert torch.equal(torch.stack(losses), expected)
    assert outputs.shape == (8, 5, 7)
    with pytest.raises(TypeError, match=r"pipe_info must be what Pipe.info\(\)"):
        build_stage(split[0], 0, None, CPU)


# --- split policies ----------------------------------------------------------------------------


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(3)
        )
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) * 2
        return self.head(x)


def cut_before(*names):
    """A policy: inserts a cut before each of these operators."""

    def policy(traced):
        for node in list(traced.graph.nodes):
            if node.name in names:
                with traced.graph.inserting_before(node):
                    traced.graph.call_function(torch.distributed.pipelining.pipe_split, (), {})
        traced.recompile()
        return traced

    return policy


def test_a_policys_cuts_are_found_where_modules_begin_and_end():
    def cuts(*names):
        return cuts_of_policy(Blocks(), (torch.ones(2, WIDTH),), None, cut_before(*names))

    assert cuts("linear_1", "linear_3") == {
        "layers.1": SplitPoint.BEGINNING,
        "head": SplitPoint.BEGINNING,
    }
    assert cuts("mul") == {"layers.0": SplitPoint.END}
    assert cuts("relu_1") == {"layers.1.1": SplitPoint.BEGINNING}
    assert cuts("linear") == {}


def test_a_policy_that_cuts_where_no_call_begins_is_refused():
    class Glue(nn.Module):
        def forward(self, x):
            return x.sin().cos()

    with pytest.raises(ValueError, match=r"cuts between sin and cos, in the model's own forward"):
        cuts_of_policy(Glue(), (torch.ones(2),), None, cut_before("cos"))


def test_a_split_spec_or_a_policy():
    with pytest.raises(ValueError, match="Please use only one of them"):
        pipeline(Blocks(), (torch.ones(2, WIDTH),), split_spec={}, split_policy=lambda g: g)
