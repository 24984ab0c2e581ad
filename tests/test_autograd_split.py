"""Backward in two halves: the same bits as in one piece, whatever the stage is made of."""

import copy
import weakref
from collections import Counter
from typing import ClassVar

import pytest
import torch
from custom_operator import scaled_matmul
from plain_loop import assert_same_gradients, batch, gradients, plain_loop, same_bits
from split_schedule import in_halves
from torch import nn
from torch.nn import functional as fn
from torch.utils.checkpoint import checkpoint

import pipert

pytestmark = pytest.mark.timeout(120)
MICROBATCHES = 4


def pipeline(stages, loss_fn=fn.mse_loss, *, delay=2, microbatches=MICROBATCHES):
    """Backward in halves, weight halves `delay` backwards late."""
    whole = pipert.Schedule.build("1f1b", num_ranks=len(stages), num_microbatches=microbatches)
    return pipert.Pipeline(
        stages,
        schedule=in_halves(whole, delay),
        num_microbatches=microbatches,
        loss_fn=loss_fn,
    )


def assert_same_as_plain_loop(stages, x, y, loss_fn=fn.mse_loss, steps=2):
    """Returns what couldn't be split, by stage."""
    reference = nn.Sequential(*copy.deepcopy(stages))
    with pipeline(stages, loss_fn) as pipe:
        for _ in range(steps):
            result = pipe.step(x, target=y)
            assert same_bits(result.losses, plain_loop(reference, x, y, MICROBATCHES, loss_fn))
            assert_same_gradients(pipe, reference)
        unsplit = pipe.unsplit_nodes()
        report = pipe.report()
        assert report.unsplit == unsplit
        for stage, nodes in unsplit.items():
            assert f"stage {stage} does not split the backward of {nodes[0].name}" in str(report)
        return unsplit


class Stage(nn.Module):
    """A module made of a function and the modules and parameters that it uses."""

    def __init__(self, call, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.call = call

    def forward(self, *args):
        return self.call(self, *args)


def weight(*shape):
    return nn.Parameter(torch.randn(*shape) * 0.3)


def tied():
    one, two = nn.Linear(8, 8), nn.Linear(8, 8)
    two.weight = one.weight
    return nn.Sequential(one, nn.Tanh(), two, nn.Tanh(), one)


def lora():
    base = nn.Linear(8, 8).requires_grad_(False)
    return Stage(
        lambda s, x: s.base(x) + s.b(s.a(x)),
        base=base,
        a=nn.Linear(8, 2, bias=False),
        b=nn.Linear(2, 8, bias=False),
    )


def in_place(s, x):
    h = s.linear(x).clone()
    h[:, :4].mul_(s.scale)
    h[:, 4:] = s.other(x)
    h.relu_()
    return h


def views(s, x):
    a, b = s.linear(x).chunk(2, dim=1)
    return torch.cat([b.t().contiguous().t() * s.scale[:4], a.sin()], 1).view(-1, 2, 4).flatten(1)


STAGES = {
    "linear": lambda: nn.Linear(8, 8),
    "linear without bias": lambda: nn.Linear(8, 8, bias=False),
    "layers": lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.ReLU()),
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)),
    "rms norm": lambda: nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8), nn.Linear(8, 8)),
    "group norm": lambda: nn.Sequential(nn.Linear(8, 8), nn.GroupNorm(2, 8)),
    "batch norm": lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 2, 3, padding=1), nn.Flatten()
    ),
    "convolution in two dimensions": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.Flatten()
    ),
    "transposed convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 4)), nn.ConvTranspose1d(2, 2, 3, padding=1), nn.Flatten()
    ),
    "attention": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 4)),
        nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
        nn.Flatten(),
    ),
    "learned queries": lambda: Stage(
        lambda s, x: fn.scaled_dot_product_attention(
            s.query.expand(len(x), 1, 2, 4), x.view(-1, 1, 2, 4), x.view(-1, 1, 2, 4)
        ).flatten(1),
        query=weight(1, 1, 2, 4),
    ),
    "positions": lambda: Stage(
        lambda s, x: s.linear(x + s.table(torch.arange(8)).squeeze(1)),
        table=nn.Embedding(8, 1),
        linear=nn.Linear(8, 8),
    ),
    "einsum": lambda: Stage(
        lambda s, x: torch.einsum("bi,oi,i->bo", x, s.w, s.v), w=weight(8, 8), v=weight(8)
    ),
    "bilinear": lambda: Stage(lambda s, x: s.b(x, x.tanh()), b=nn.Bilinear(8, 8, 8)),
    "recurrent": lambda: Stage(
        lambda s, x: s.gru(x.view(-1, 2, 4))[0].flatten(1), gru=nn.GRU(4, 4, batch_first=True)
    ),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
    "a weight used three times": lambda: tied(),
    "a weight of a weight": lambda: Stage(
        lambda s, x: x @ (s.a @ s.b).tanh() + x @ s.a, a=weight(8, 8), b=weight(8, 8)
    ),
    # Its gradients come from products, which are put off, and from scales, which are not.
    "a weight of a product and of scales": lambda: Stage(
        lambda s, x: ((x * s.a).tanh() @ (s.a + s.b).diag() * s.a + s.a).exp() * s.b,
        a=weight(8),
        b=weight(8),
    ),
    "in place": lambda: Stage(
        in_place, linear=nn.Linear(8, 8), other=nn.Linear(8, 4), scale=weight(4)
    ),
    "views": lambda: Stage(views, linear=nn.Linear(8, 8), scale=weight(8)),
    "lora": lora,
    # The gradient of one more column is a view of all columns' that has gaps: a copy would have
    # none, and its sum another order.
    "attention sinks": lambda: Stage(
        lambda s, x: (
            torch.cat(
                [x.view(-1, 1, 1, 8).expand(-1, 4, 16, 8), s.sink.expand(len(x), 4, 16, 1)], -1
            )
            .softmax(-1)[..., :-1]
            .mean((1, 2))
        ),
        sink=weight(1, 4, 1, 1),
    ),
    "frozen": lambda: nn.Sequential(nn.Linear(8, 8).requires_grad_(False), nn.Tanh()),
    "frozen bias": lambda: Stage(
        lambda s, x: fn.linear(x, s.w, s.b), w=weight(8, 8), b=weight(8).requires_grad_(False)
    ),
    "an unused parameter": lambda: Stage(
        lambda s, x: s.linear(x), linear=nn.Linear(8, 8), unused=weight(3)
    ),
    "no parameters": nn.Tanh,
    "a residual": lambda: Stage(
        lambda s, x: x + s.two(s.one(x).relu()) * 0.5, one=nn.Linear(8, 16), two=nn.Linear(16, 8)
    ),
    "a branch without input": lambda: Stage(
        lambda s, x: x @ s.w + (s.a @ s.b).sum(0), w=weight(8, 8), a=weight(3, 5), b=weight(5, 8)
    ),
}


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_gradients_in_two_halves_are_those_of_one_piece_bit_for_bit(stage, place):
    torch.manual_seed(0)
    stages = {
        "first": lambda: [stage(), nn.Linear(8, 8)],
        "middle": lambda: [nn.Linear(8, 8), stage(), nn.Linear(8, 8)],
        "last": lambda: [nn.Linear(8, 8), stage()],
    }[place]()
    assert_same_as_plain_loop(stages, *batch(2 * MICROBATCHES + 1))


# --- several outputs ----------------------------------------------------------------------------


class Branches(nn.Module):
    """Outputs that lead to the input, to weights alone, to both, to nothing."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.free = weight(8)

    def forward(self, x, *others):
        h = self.one(x)
        return h, self.free.tanh(), self.two(h).sin(), x.detach() * 2, None


class Joined(nn.Module):
    def __init__(self, uses):
        super().__init__()
        self.uses = uses
        self.linear = nn.Linear(8, 8)

    def forward(self, *values):
        return self.linear(sum(values[i] for i in self.uses))


@pytest.mark.parametrize("uses", [(0, 1, 2, 3), (2,), (1, 3, 0), (0, 3)])
def test_several_outputs_some_of_them_unused_some_of_weights_alone(uses):
    stages = [nn.Linear(8, 8), Branches(), Branches(), Joined(uses)]
    reference = copy.deepcopy(stages)
    x, y = batch(9)
    with pipeline(stages) as pipe:
        result = pipe.step(x, target=y)
    losses = []
    pieces = zip(x.tensor_split(MICROBATCHES), y.tensor_split(MICROBATCHES), strict=True)
    for inputs, targets in pieces:
        loss = fn.mse_loss(
            reference[3](*reference[2](*reference[1](reference[0](inputs)))), targets
        )
        loss.backward(torch.full_like(loss, len(inputs) / len(x)))
        losses.append(loss.detach())
    assert same_bits(result.losses, torch.stack(losses))
    for ours, theirs in zip(stages, reference, strict=True):
        found, expected = gradients(ours), gradients(theirs)
        assert all(same_bits(found[name], expected[name]) for name in expected)


def test_a_weight_that_two_stages_of_a_rank_share_gets_both_gradients():
    shared = nn.Linear(8, 8)
    stages = [shared, nn.Tanh(), nn.Sequential(shared, nn.Linear(8, 8))]
    schedule = in_halves(
        pipert.Schedule(
            [[f"{s}F{m}" for s in range(3)] + [f"{s}B{m}" for s in (2, 1, 0)] for m in range(1)]
        ),
        delay=3,
    )
    reference = nn.Sequential(*copy.deepcopy(stages))
    x, y = batch(4)
    with pipert.Pipeline(
        stages, schedule=schedule, num_microbatches=1, num_ranks=1, loss_fn=fn.mse_loss
    ) as pipe:
        pipe.step(x, target=y)
    plain_loop(reference, x, y, 1)
    for p, q in zip(stages[2].parameters(), reference[2].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


# --- what can't be split ------------------------------------------------------------------------


class Scaled(torch.autograd.Function):
    """Its backward counts how often it runs: in two halves it must still be once."""

    calls: ClassVar[Counter[str]] = Counter()

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, gradient):
        Scaled.calls["backward"] += 1
        assert ctx.needs_input_grad == (True, True)
        x, w = ctx.saved_tensors
        return gradient @ w.t() * 0.9, x.t() @ gradient * 1.1


def test_a_python_function_runs_once_and_is_named():
    torch.manual_seed(0)
    stages = [
        nn.Linear(8, 8),
        Stage(lambda s, x: s.linear(Scaled.apply(x, s.w)), w=weight(8, 8), linear=nn.Linear(8, 8)),
        Stage(lambda s, x: Scaled.apply(s.linear(x), s.w), w=weight(8, 8), linear=nn.Linear(8, 8)),
    ]
    Scaled.calls.clear()
    unsplit = assert_same_as_plain_loop(stages, *batch(9))
    assert Scaled.calls["backward"] == 2 * 2 * 2 * MICROBATCHES  # stages, runs, steps
    assert set(unsplit) == {1, 2}
    for nodes in unsplit.values():
        assert [node.name for node in nodes] == ["ScaledBackward"]
        assert "implemented in Python" in nodes[0].reason


def test_a_custom_c_plus_plus_function_runs_once_and_is_named():
    torch.manual_seed(0)
    matmul = scaled_matmul()
    stages = [
        nn.Linear(8, 8),
        Stage(lambda s, x: s.linear(matmul(x, s.w)), w=weight(8, 8), linear=nn.Linear(8, 8)),
    ]
    before = torch.ops.pipert_test.num_backwards()
    unsplit = assert_same_as_plain_loop(stages, *batch(9))
    assert torch.ops.pipert_test.num_backwards() - before == 2 * 2 * MICROBATCHES
    assert [node.reason for node in unsplit[1]] == [
        "it is a custom C++ function, which may compute both halves each time"
    ]
    assert "ScaledMatmul" in unsplit[1][0].name


def test_a_compiled_module_runs_unsplit_and_is_named():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    stages = [nn.Linear(8, 8), torch.compile(inner, backend="aot_eager"), nn.Linear(8, 8)]
    x, y = batch(2 * MICROBATCHES)
    reference = nn.Sequential(stages[0], inner, stages[2])
    expected = copy.deepcopy(reference)
    with pipeline(stages) as pipe:
        for _ in range(2):
            result = pipe.step(x, target=y)
            assert same_bits(result.losses, plain_loop(expected, x, y, MICROBATCHES))
        for p, q in zip(reference.parameters(), expected.parameters(), strict=True):
            assert same_bits(p.grad, q.grad)
        unsplit = pipe.unsplit_nodes()
    assert [node.name for node in unsplit[1]] == ["CompiledFunctionBackward"]


def test_a_hook_that_looks_at_a_nodes_results_sees_all_of_them():
    seen = []

    def hooked(s, x):
        h = s.linear(x)
        h.grad_fn.register_hook(lambda results, _: seen.append([r is not None for r in results]))
        return h.tanh()

    stages = [nn.Linear(8, 8), Stage(hooked, linear=nn.Linear(8, 8)), nn.Linear(8, 8)]
    unsplit = assert_same_as_plain_loop_with(stages)
    assert seen == [[True, True, True]] * 2 * MICROBATCHES
    assert "hook that looks at all of its gradients" in unsplit[1][0].reason


def assert_same_as_plain_loop_with(stages):
    return assert_same_as_plain_loop(stages, *batch(9), steps=1)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved-tensors", "reentrant"])
def test_a_stage_with_checkpointed_blocks_says_that_it_is_not_split(use_reentrant):
    def block(s, x):
        return checkpoint(s.inner, s.first(x), use_reentrant=use_reentrant)

    def build():
        inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        return Stage(block, first=nn.Linear(8, 8), inner=inner)

    unsplit = assert_same_as_plain_loop([build(), build(), build()], *batch(9))
    if use_reentrant:  # its own weights' gradients come with the input half; the rest is split
        assert unsplit == {}
    else:
        assert set(unsplit) == {1, 2}
        assert unsplit[1][0].name == "the whole stage"
        assert "computed again in backward" in unsplit[1][0].reason


@pytest.mark.skipif(not torch.cuda.is_available(), reason="nodes run on a thread of the engine")
def test_a_stage_with_checkpointed_blocks_says_so_on_an_accelerator():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    x, target = (tensor.cuda() for tensor in batch(9))
    with pipert.Pipeline(
        [Block(), Block()],
        schedule="zb_h1",
        num_microbatches=MICROBATCHES,
        loss_fn=nn.functional.mse_loss,
        devices=["cuda", "cuda"],
    ) as pipe:
        pipe.step(x, target=target)
        assert "computed again in backward" in pipe.unsplit_nodes()[1][0].reason


class Positions(nn.Module):
    """Adds weights of the full shape, through views: their gradients are the one that came in."""

    def __init__(self, rows):
        super().__init__()
        self.one, self.two = weight(rows, 8), weight(rows * 2, 4)

    def forward(self, x):
        return ((x.view(-1, 8) + self.one).view(-1, 4) + self.two).view(-1, 8)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1", "zb_h2"])
def test_gradients_that_are_handed_on_share_no_memory_with_those_of_weights(schedule):
    """torch adds to a .grad in place once it is nobody else's; the stage before may be reading."""
    torch.manual_seed(0)
    stages = [nn.Linear(8, 8), Positions(2), Positions(2), nn.Sequential(Positions(2))]
    reference = nn.Sequential(*copy.deepcopy(stages))
    x, y = batch(2 * 8)
    with pipert.Pipeline(
        stages, schedule=schedule, num_microbatches=8, loss_fn=fn.mse_loss
    ) as pipe:
        for _ in range(3):
            pipe.step(x, target=y)
            plain_loop(reference, x, y, 8)
            assert_same_gradients(pipe, reference)


def test_a_deep_graph_whose_input_half_fails_dies_without_recursion():
    def failing(s, x):
        h = x * 1.0
        if h.requires_grad:
            h.register_hook(lambda g: 1 / 0)
        for _ in range(30_000):
            h = h @ s.w
        return h

    stages = [nn.Linear(2, 2), Stage(failing, w=weight(2, 2))]
    x = torch.randn(2, 2)
    schedule = in_halves(pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=1))
    with (
        pipert.Pipeline(
            stages, schedule=schedule, num_microbatches=1, loss_fn=lambda o: o.sum()
        ) as pipe,
        pytest.raises(pipert.PipelineError, match="division by zero"),
    ):
        pipe.step(x)


def test_a_stage_of_fully_shard_runs_its_whole_backward_in_the_input_half(one_process_group):
    """It reduces the weights' gradients where backward leaves the module's input."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    modules = [nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 8)]
    reference = nn.Sequential(*copy.deepcopy(modules))
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    fully_shard(modules[1], mesh=mesh)
    x, y = batch(2 * MICROBATCHES)
    with pipeline(modules) as pipe:
        pipe.step(x, target=y)
        plain_loop(reference, x, y, MICROBATCHES)
        unsplit = pipe.unsplit_nodes()
    for module, other in zip(modules, reference, strict=True):
        for p, q in zip(module.parameters(), other.parameters(), strict=True):
            gradient = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            torch.testing.assert_close(gradient, q.grad)
    assert [node.name for node in unsplit[1]] == ["RegisterPostBackwardFunctionBackward"]


# --- hooks --------------------------------------------------------------------------------------


def test_hooks_fire_once_a_microbatch_each_in_its_half():
    """Tensors of the path in the input half; weights in the weight half."""
    events = []

    def hooked(s, x):
        m = s.count
        s.count += 1
        x.register_hook(lambda g: events.append(("input", m)))
        h = s.linear(x)
        h.register_hook(lambda g: events.append(("output", m)))
        h.grad_fn.register_prehook(lambda g: events.append(("node", m)))
        h.retain_grad()
        return h.tanh()

    stage = Stage(hooked, linear=nn.Linear(8, 8), count=0)
    stage.linear.weight.register_hook(lambda g: events.append(("weight", g.shape[0])))
    stage.linear.weight.register_post_accumulate_grad_hook(lambda p: events.append(("added", 0)))
    schedule = pipert.Schedule(
        [["0F0", "1F0", "0F1", "1F1", "1I0", "1I1", "0I0", "0I1", "1W0", "1W1", "0W0", "0W1"]],
    )
    x, y = batch(4)
    with pipert.Pipeline(
        [nn.Linear(8, 8), stage],
        schedule=schedule,
        num_ranks=1,
        num_microbatches=2,
        loss_fn=fn.mse_loss,
    ) as pipe:
        pipe.step(x, target=y)
    path = [(name, m) for m in (0, 1) for name in ("output", "node", "input")]
    assert events == path + [("weight", 8), ("added", 0)] * 2


def test_hooks_that_change_gradients_change_the_bits_of_both_halves():
    def hooked(s, x):
        if x.requires_grad:  # that of the first stage doesn't
            x.register_hook(lambda g: g * 0.7)
        h = s.linear(x)
        h.register_hook(lambda g: g * 0.3)
        h.grad_fn.register_prehook(lambda g: (g[0] * 1.7,))
        return h.tanh()

    def build():
        return Stage(hooked, linear=nn.Linear(8, 8))

    stages = [build() for _ in range(3)]
    reference = nn.Sequential(*copy.deepcopy(stages))
    for stage in [*stages, *reference]:
        stage.linear.weight.register_hook(lambda g: g * 1.3)
    x, y = batch(9)
    with pipeline(stages) as pipe:
        result = pipe.step(x, target=y)
        assert same_bits(result.losses, plain_loop(reference, x, y, MICROBATCHES))
        assert_same_gradients(pipe, reference)


def test_module_backward_hooks_fire_once_a_microbatch():
    calls = Counter()

    def build():
        module = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        for i, layer in enumerate(module):
            layer.register_full_backward_hook(lambda *_, i=i: calls.update([("after", i)]))
            layer.register_full_backward_pre_hook(lambda *_, i=i: calls.update([("before", i)]))
        return module

    stages = [nn.Linear(8, 8), build(), nn.Linear(8, 8)]
    x, y = batch(9)
    with pipeline(stages) as pipe:
        pipe.step(x, target=y)
    assert calls == {(when, i): MICROBATCHES for when in ("before", "after") for i in range(3)}


@pytest.fixture
def one_process_group():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "order",
    [
        "0F0 1F0 1I0 0I0 1W0 0W0 0F1 1F1 1I1 1W1 0I1 0W1",
        "0F0 1F0 0F1 1F1 1I0 0I0 1I1 0I1 1W0 0W0 1W1 0W1",
    ],
    ids=["one microbatch at a time", "two in flight"],
)
def test_a_data_parallel_wrapper_reduces_each_microbatch_in_its_weight_half(
    order, one_process_group
):
    """DistributedDataParallel hangs its reductions on hooks of the weights."""
    torch.manual_seed(0)
    modules = [nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))]
    reference = nn.Sequential(*copy.deepcopy(modules))
    stages = [nn.parallel.DistributedDataParallel(module) for module in modules]
    x, y = batch(4)
    with pipert.Pipeline(
        stages,
        schedule=pipert.Schedule([order.split()]),
        num_ranks=1,
        num_microbatches=2,
        loss_fn=fn.mse_loss,
    ) as pipe:
        for _ in range(2):
            pipe.step(x, target=y)
            plain_loop(reference, x, y, 2)
        for p, q in zip(pipe.parameters(), reference.parameters(), strict=True):
            assert same_bits(p.grad, q.grad)


# --- losses -------------------------------------------------------------------------------------


def test_a_loss_may_differentiate_inside_itself():
    """A gradient penalty: the graph is kept inside the loss function, and differentiated twice."""
    stages = [nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())]

    def loss_fn(output, target):
        (slope,) = torch.autograd.grad(
            output.square().sum(), output, create_graph=True, retain_graph=True
        )
        return fn.mse_loss(output, target) + slope.square().mean()

    assert_same_as_plain_loop(stages, *batch(9), loss_fn)


# --- what lives between the halves --------------------------------------------------------------


class Kept:
    """What autograd saved, for as long as it does."""

    def __init__(self, tensor):
        self.tensor = tensor


def test_between_the_halves_only_what_weights_need_is_alive():
    alive = []
    counts = []

    def pack(tensor):
        kept = Kept(tensor)
        alive.append((tuple(tensor.shape), weakref.ref(kept)))
        return kept

    def saving(s, x):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            return (s.two(s.one(x).tanh()).exp() * 2).sin()

    def watching(s, x):
        counts.append(Counter(shape for shape, kept in alive if kept() is not None))
        return s.linear(x)

    schedule = pipert.Schedule(
        [
            [*["0F0", "1F0", "0F1", "1I0", "0I0", "0F2", "1W0", "0W0", "0F3"], "1F1", "1F2", "1F3"]
            + [f"{s}{kind}{m}" for m in (1, 2, 3) for s in (1, 0) for kind in "IW"]
        ],
    )
    stages = [
        Stage(watching, linear=nn.Linear(8, 8)),
        Stage(saving, one=nn.Linear(8, 12), two=nn.Linear(12, 10)),
    ]
    x, _ = batch(8)
    with pipert.Pipeline(
        stages,
        schedule=schedule,
        num_ranks=1,
        num_microbatches=4,
        loss_fn=lambda output: output.sum(),
    ) as pipe:
        pipe.step(x)
    none, after_forward, after_input, after_weight = counts
    assert none == {}
    assert after_forward[2, 10] == 2  # of exp and sin
    assert after_forward[2, 12] == 2  # of tanh, and the second layer's input
    assert after_input[2, 10] == 0
    assert after_input[2, 12] == 1
    assert after_input[2, 8] == 1
    assert after_weight == {}


# --- bad input ----------------------------------------------------------------------------------


def fails(stages, match, **options):
    x, y = batch(8)
    with pipeline(stages, **options) as pipe:
        with pytest.raises(pipert.PipelineError, match=match) as caught:
            pipe.step(x, target=y)
        return caught.value


def test_an_output_that_lost_its_gradient_is_an_error_that_names_the_stage():
    detached = Stage(lambda s, x: s.linear(x).detach(), linear=nn.Linear(8, 8))
    error = fails([nn.Linear(8, 8), detached, nn.Linear(8, 8)], "its input requires one")
    assert (error.stage, error.microbatch, error.action) == (1, 0, "1F0")
    error = fails([detached, nn.Linear(8, 8)], "has parameters that do")
    assert (error.stage, error.microbatch) == (0, 0)


def test_an_in_place_change_of_a_saved_tensor_is_an_error_that_names_stage_and_operation():
    def changing(s, x):
        h = s.linear(x).exp()
        s.held.append(h)
        out = h * 2
        h.detach().mul_(3)  # the same memory and version
        return out

    stages = [nn.Linear(8, 8), Stage(changing, linear=nn.Linear(8, 8), held=[]), nn.Linear(8, 8)]
    error = fails(stages, "output 0 of Exp, is at version 1")
    assert error.stage == 1
    assert error.microbatch == 0
    assert error.action == "1I0"


@pytest.mark.parametrize("delay", [0, 2])
def test_a_graph_that_crosses_microbatches_is_an_error_that_names_the_microbatch(delay):
    def remembering(s, x):
        h = s.linear(x)
        s.held.append(h)
        return h + s.held[0]

    stages = [
        nn.Linear(8, 8),
        Stage(remembering, linear=nn.Linear(8, 8), held=[]),
        nn.Linear(8, 8),
    ]
    error = fails(stages, "a second time", microbatches=2, delay=delay)
    assert (error.stage, error.microbatch, error.action) == (1, 1, "1W1")


def test_a_pipeline_can_be_used_after_a_half_failed():
    def failing(s, x):
        h = s.linear(x)
        if s.fail:
            h.register_hook(lambda g: 1 / 0)
        return h.tanh()

    stages = [nn.Linear(8, 8), Stage(failing, linear=nn.Linear(8, 8), fail=True), nn.Linear(8, 8)]
    x, y = batch(8)
    with pipeline(stages) as pipe:
        with pytest.raises(pipert.PipelineError, match="division by zero") as caught:
            pipe.step(x, target=y)
        assert (caught.value.stage, caught.value.action) == (1, "1I0")
        stages[1].fail = False
        for p in pipe.parameters():
            p.grad = None
        reference = nn.Sequential(*copy.deepcopy(stages))
        pipe.step(x, target=y)
        plain_loop(reference, x, y, MICROBATCHES)
        assert_same_gradients(pipe, reference)
