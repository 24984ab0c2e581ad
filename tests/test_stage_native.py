"""Native stages: the bits of their modules, without Python; and the module where that can't be."""

import copy
import ctypes
import random
import sys
import threading
import time

import pytest
import torch
from example_script import imported
from plain_loop import batch, same_bits
from torch import nn
from torch.utils.checkpoint import checkpoint

import pipert
from pipert import native

pytestmark = pytest.mark.timeout(120)
mse = nn.functional.mse_loss
MICROBATCHES = 3
UNSEEN = "module: no graph yet for inputs like these"


def pipeline(stages, loss_fn=mse, stage_kind="native", **options):
    options = {"num_microbatches": MICROBATCHES, "schedule": "1f1b", **options}
    return pipert.Pipeline(stages, loss_fn=loss_fn, stage_kind=stage_kind, **options)


def leaves(value):
    """The tensors of nested containers, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for element in value for leaf in leaves(element)] if value else []


def train(stages, batches, stage_kind, loss_fn=mse, **options):
    """Steps with an optimizer; all that can be seen of them, and how the last one ran."""
    seen = []
    with pipeline(stages, loss_fn, stage_kind, **options) as pipe:
        parameters = list(pipe.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=0.01) if parameters else None
        torch.manual_seed(5)
        for args, target, *kwargs in batches:
            result = pipe.step(*args, target=target, return_outputs=True, **dict(*kwargs))
            seen += [result.losses, *leaves(result.outputs)]
            seen += [p.grad.clone() for p in parameters if p.grad is not None]
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
        seen += [value.clone() for value in pipe.state_dict().values()]
        return seen, pipe.stage_kinds, pipe.loss_kind


def assert_native_equals_module(stages, batches=None, loss_fn=mse, **options):
    """Bit for bit, over several steps; and that all of it did run native in the end."""
    batches = batches or [((x,), y) for x, y in (batch(7, seed=seed) for seed in range(4))]
    expected, *_ = train(copy.deepcopy(stages), batches, "module", loss_fn, **options)
    found, kinds, loss_kind = train(stages, batches, "native", loss_fn, **options)
    assert kinds == dict.fromkeys(range(len(stages)), "native")
    assert loss_kind == "native"
    assert len(found) == len(expected)
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert same_bits(a, b), index


# --- the module's bits --------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        h = x.unsqueeze(1).expand(-1, 4, -1)
        return self.norm(x + self.attention(h, h, h, need_weights=False)[0].mean(1))


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv1d(1, 4, 3, padding=1), nn.Conv1d(4, 1, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.two(self.norm(self.one(x[:, None])).relu_()).squeeze(1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 8, batch_first=True)

    def forward(self, x):
        return self.lstm(x.unflatten(1, (4, 2)))[1][0].squeeze(0)


class Noisy(nn.Module):
    """Random operators, in place and not."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.dropout = nn.Dropout(0.3, inplace=True)

    def forward(self, x):
        h = self.dropout(self.linear(x))
        h = h + torch.rand(x.shape[0], 1) + torch.randn_like(h) * 0.1
        return nn.functional.dropout(h, 0.2) * torch.empty_like(h).bernoulli_(0.7)


class Scaled(nn.Module):
    """Sizes that take part in the arithmetic, constants, a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.mask = torch.arange(8.0)

    def forward(self, x):
        rows, width = x.shape
        h = self.linear(x).view(rows, 2, width // 2).reshape(rows * 2, -1)
        h = h * self.mask[:4] * (rows / width) + torch.tensor([1.0, 2.0, 3.0, 4.0])
        return h.view(rows, width) ** 2 / rows**0.5


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        with torch.no_grad():
            scale = self.linear(x).abs().mean()
        return self.linear(x) * scale + x.detach()


class InPlace(nn.Module):
    """Changes its input, through views too."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        h = self.linear(x)
        h[:, 0] = 1.0
        h.view(-1)[:2].mul_(2.0)
        return h.relu_()


class Indexed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(16, 8)

    def forward(self, x):
        ids = (x.abs() * 3).long().clamp(max=15)
        first, second = self.table(ids).chunk(2, dim=1)
        stacked = torch.stack([first.sum(1), second.sum(1)])
        return torch.cat([stacked[0], stacked[1]], dim=1)[:, torch.tensor([0, 2, 4, 6, 8, 1, 3, 5])]


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = self.linear(x)
        return h.float() + x


@pytest.mark.parametrize(
    "block",
    [
        lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True)),
        lambda: nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8), nn.Softmax(-1)),
        Attention,
        Convolution,
        Recurrent,
        Noisy,
        Scaled,
        Detached,
        InPlace,
        Indexed,
        Autocast,
    ],
)
def test_a_native_pipeline_has_the_modules_bits(block):
    torch.manual_seed(0)
    # Ranks that are threads draw from one generator: one stage alone may draw, for there to be an
    # order.
    assert_native_equals_module(
        [nn.Linear(8, 8), block(), nn.Sequential(nn.Linear(8, 8), nn.Tanh())]
    )


@pytest.mark.parametrize("schedule", ["gpipe", "zb_h1", "interleaved_1f1b"])
def test_every_kind_of_schedule_runs_native_stages(schedule):
    stages = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)]
    ranks = 2 if schedule == "interleaved_1f1b" else 4
    assert_native_equals_module(stages, schedule=schedule, num_ranks=ranks, num_microbatches=4)


def test_the_gpt_of_the_examples_runs_native():
    gpt = imported("gpt")
    torch.manual_seed(0)
    stages = pipert.split(gpt.gpt(), num_stages=2)
    text = torch.randint(256, (3, 4, gpt.CONTEXT + 1))
    batches = [((part[:, :-1],), part[:, 1:]) for part in text]
    with_names = [copy.deepcopy(stage) for stage in stages]
    assert_native_equals_module(with_names, batches, gpt.loss_fn, num_microbatches=2)


def test_a_transformer_takes_the_same_path_with_and_without_gradients():
    torch.manual_seed(0)
    stages = [nn.TransformerEncoderLayer(8, 2, 16, p, batch_first=True) for p in (0.1, 0.0)]
    x, y = torch.randn(6, 5, 8), torch.randn(6, 5, 8)
    assert_native_equals_module(copy.deepcopy(stages), [((x,), y)] * 3)
    with pipeline(copy.deepcopy(stages), stage_kind="module") as pipe:
        expected = pipe.eval().evaluate(x, target=y, return_outputs=True)
    with pipeline(stages) as pipe:
        pipe.eval()
        for _ in range(2):
            found = pipe.evaluate(x, target=y, return_outputs=True)
            assert same_bits(found.losses, expected.losses)
            assert same_bits(found.outputs, expected.outputs)


def test_containers_constants_and_none_cross_between_native_stages():
    class Give(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            h = self.linear(x)
            return {"pair": (h, [h * 2, None]), "n": 3, "ids": torch.arange(len(x)), "x": x}

    class Take(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(16, 8)

        def forward(self, value):
            h, (double, none) = value["pair"]
            assert none is None
            return h * value["n"] + double + self.table(value["ids"]) + value["x"]

    assert_native_equals_module([Give(), Take()])


def test_arguments_keywords_and_constants_reach_native_stages():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x, gate=None, *, power=1):
            return self.linear(x) * gate["a"] ** power

    class First(Gated):
        def forward(self, x, z, scale, gate=None):
            return self.linear(x + z) * scale * gate["a"]

    batches = [
        ((x, z, torch.tensor(0.5)), y, {"gate": {"a": z}, "power": 2})
        for (x, y), (z, _) in [(batch(7, seed=s), batch(7, seed=s + 9)) for s in range(3)]
    ]
    assert_native_equals_module([First(), Gated(), nn.Linear(8, 8)], batches)


def test_another_constant_needs_another_graph():
    def stage(x, power):
        return x**power

    x, _ = batch(6)
    with pipeline([stage], None) as pipe:
        for power in (2, 3, 2, 3, 2):
            assert same_bits(pipe(x, power), x**power)
        assert pipe.stage_kinds == {0: "native"}


def test_outputs_have_the_types_that_the_module_gives_them():
    def stage(x):
        return {"a": (x, [x + 1]), "n": 2, "none": None}

    x, _ = batch(4)
    with pipeline([stage], None, num_microbatches=2) as pipe:
        first = pipe.evaluate(x, return_outputs=True).outputs
        second = pipe.evaluate(x, return_outputs=True).outputs
        assert pipe.stage_kinds == {0: "native"}
    assert str(second) == str(first)


def test_loss_keywords_reach_a_native_loss():
    def loss_fn(output, target, *, weight, scale):
        return (mse(output, target, reduction="none") * weight).mean() * scale

    weight = torch.rand(8)
    results = {}
    for kind in ("module", "native"):
        torch.manual_seed(0)
        with pipeline([nn.Linear(8, 8), nn.Linear(8, 8)], loss_fn, kind) as pipe:
            for _ in range(3):
                x, y = batch(7)
                keywords = {"weight": weight, "scale": 2.0}
                results[kind] = pipe.step(x, target=y, loss_kwargs=keywords).losses
            assert pipe.loss_kind == kind
    assert same_bits(results["native"], results["module"])


def test_a_batch_that_is_already_cut_runs_native():
    x, y = batch(6)
    with pipeline([nn.Linear(8, 8), nn.Linear(8, 8)]) as pipe:
        losses = [
            pipe.step(microbatches=[*x.chunk(3)], target=[*y.chunk(3)]).losses for _ in range(2)
        ]
        assert pipe.stage_kinds == {0: "native", 1: "native"}
    assert same_bits(losses[0], losses[1])


# --- sizes --------------------------------------------------------------------------------------


@pytest.fixture
def exports(monkeypatch):
    """What has been exported: the calls' positional arguments."""
    made = []
    original = native.export

    def counting(call, args, kwargs):
        made.append(args)
        return original(call, args, kwargs)

    monkeypatch.setattr(native, "export", counting)
    return made


def test_batch_size_and_sequence_length_may_change_without_another_export(exports):
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(x).transpose(0, 1).flatten(0, 1).view(x.shape[1], -1, 8).mean(0)

    stages = [nn.Linear(8, 8), Sequence()]
    batches = [
        ((torch.randn(rows, length, 8),), torch.randn(rows, 8))
        for rows, length in [(7, 5), (8, 3), (6, 9), (31, 4)]
    ]
    assert_native_equals_module(stages, batches)
    assert len(exports) == 3  # the two stages and the loss


def test_a_branch_on_a_size_takes_the_right_way_for_each_size(exports):
    def stage(x):
        if x.shape[0] > 3:
            return x + 1
        return x * 2 if x.shape[0] % 2 == 0 else x * 3

    with pipeline([stage], None, num_microbatches=1) as pipe:
        for rows in (5, 2, 3, 1, 8, 4, 2, 3, 1, 9):
            x = torch.rand(rows, 2)
            expected = stage(x)
            assert same_bits(pipe(x), expected), rows
            assert same_bits(pipe(x), expected), rows
            assert pipe.stage_kinds == {0: "native"}
    assert len(exports) == 4  # over 3, even, odd, and the 1 that torch takes for special


def test_bits_of_a_size_are_bits(exports):
    def stage(x):
        rows = x.shape[0]
        return x * (rows & 6) + (rows | 8) + (True & (rows > 3))

    with pipeline([stage], None, num_microbatches=1) as pipe:
        for rows in (5, 6, 9, 14, 7):
            x = torch.rand(rows, 2)
            for _ in range(2):
                assert same_bits(pipe(x), stage(x)), rows
        assert pipe.stage_kinds == {0: "native"}


def test_equal_sizes_of_two_inputs_are_not_taken_for_granted():
    def stage(a, b):
        return a.sum(0) + b.sum(0) if a.shape[1] == b.shape[1] else a.sum(0) * 2

    with pipeline([stage], None, num_microbatches=1) as pipe:
        for widths in ((4, 4), (4, 3), (5, 5), (4, 3)):
            a, b = (torch.rand(2, width) for width in widths)
            for _ in range(2):
                assert same_bits(pipe(a, b), stage(a, b)), widths


def test_inputs_that_never_repeat_are_not_exported_without_end(exports):
    def stage(x, number):
        return x * number

    x = torch.ones(2, 2)
    with pipeline([stage], None, num_microbatches=1) as pipe:
        for number in range(80):
            assert pipe(x, number)[0, 0] == number
        assert pipe.stage_kinds[0] == "module: it has met more than 32 kinds of input"
    assert len(exports) == 32


# --- the module stays the user's ----------------------------------------------------------------


def test_parameters_that_are_replaced_frozen_or_loaded_are_the_ones_that_run():
    def edits(stages):
        yield
        yield
        stages[0].weight = nn.Parameter(torch.full((8, 8), 0.1))
        yield
        stages[1].requires_grad_(False)
        yield
        stages[1].requires_grad_(True)
        yield
        stages[1].load_state_dict({"weight": torch.eye(8), "bias": torch.ones(8)})
        yield
        stages[0].bias = None
        yield
        yield

    seen = {}
    for kind in ("module", "native"):
        torch.manual_seed(0)
        stages = [nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)]
        seen[kind] = []
        with pipeline(stages, stage_kind=kind) as pipe:
            for _ in edits(stages):
                x, y = batch(7)
                seen[kind].append(pipe.step(x, target=y).losses)
                seen[kind] += [p.grad.clone() for p in pipe.parameters() if p.grad is not None]
            assert set(pipe.stage_kinds.values()) == {kind}
    assert all(same_bits(a, b) for a, b in zip(seen["native"], seen["module"], strict=True))


def test_training_and_evaluation_mode_have_a_graph_each():
    stages = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(p)) for p in (0.5, 0.0)]
    seen = {}
    for kind in ("module", "native"):
        seen[kind] = []
        with pipeline(copy.deepcopy(stages), stage_kind=kind) as pipe:
            torch.manual_seed(3)
            for training in (True, True, False, False, True, False):
                x, y = batch(8)
                pipe.train(training)
                seen[kind].append(pipe.step(x, target=y).losses)
                seen[kind].append(pipe.evaluate(x, target=y, return_outputs=True).outputs)
            seen[kind] += [b.clone() for b in pipe.state_dict().values()]
            assert set(pipe.stage_kinds.values()) == {kind}
    assert all(same_bits(a, b) for a, b in zip(seen["native"], seen["module"], strict=True))


def test_autocast_around_the_step_is_the_graphs_too():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            h = self.linear(x)
            return nn.functional.layer_norm(h, (8,)).to(h.dtype)

    stages = [Casts(), Casts()]
    seen = {}
    for kind in ("module", "native"):
        seen[kind] = []
        with pipeline(copy.deepcopy(stages), stage_kind=kind) as pipe:
            for enabled in (True, True, False, False, True):
                x, y = batch(7)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                    result = pipe.step(x, target=y, return_outputs=True)
                seen[kind] += [result.losses, result.outputs]
            seen[kind] += [p.grad for p in pipe.parameters()]
            assert set(pipe.stage_kinds.values()) == {kind}
    assert all(same_bits(a, b) for a, b in zip(seen["native"], seen["module"], strict=True))


def test_an_export_leaves_no_trace_in_the_module():
    class Remembers(nn.Module):
        def forward(self, x):
            self.last = x
            return x * 2

    stage = Remembers()
    x, _ = batch(6)
    with pipeline([stage], None) as pipe:
        for _ in range(3):
            assert same_bits(pipe(x), x * 2)
            assert type(stage.last) is torch.Tensor
        assert pipe.stage_kinds == {0: "module: its forward sets last"}


# --- where the module runs ----------------------------------------------------------------------


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x * gradient  # not what autograd would compute


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Rebinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + 1
        return x * self.seen


class Hooked(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.linear.register_forward_hook(lambda module, args, output: output * 2)

    def forward(self, x):
        return self.linear(x)


def hooks_a_tensor(x):
    h = x * 1
    if h.requires_grad:
        h.register_hook(lambda gradient: gradient * 2)
    return h


outside = torch.ones(8, requires_grad=True)


def leaves_gradients_off(x):
    torch.set_grad_enabled(True)
    result = x * 2
    torch.set_grad_enabled(False)
    return result


def seeds(x):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return x * torch.rand(8)


def switches_both(x):
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        scale = x.mean()
    return x * scale.float()


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        (Square.apply, "uses a torch.autograd.Function (Square)"),
        (lambda x: x * 2 if x.sum() > 0 else x * 3, "data-dependent"),
        (lambda x: checkpoint(torch.sin, x, use_reentrant=False), "hooks on saved tensors"),
        (Counts(), "since the last pass attributes changed: calls"),
        (Rebinds(), "its forward sets seen"),
        (Hooked(), "Linear has hooks"),
        (hooks_a_tensor, "registers a hook on a tensor"),
        (lambda x: x * outside, "a tensor that is neither its input nor its module's"),
        (switches_both, "switches both autocast and gradients"),
        (leaves_gradients_off, "leaves gradients or autocast switched"),
        (seeds, "seeds torch's generator"),
        (lambda x: x * random.random(), "Python's random numbers"),
        (lambda x: torch.from_numpy(x.detach().numpy()) * x, "torch.export failed"),
        (torch.compile(nn.Linear(8, 8), backend="eager"), "OptimizedModule"),
        (lambda x, is_first_microbatch=None: x * 2, "its forward takes is_first_microbatch"),
    ],
    ids=lambda value: None if isinstance(value, str) else getattr(value, "__name__", None),
)
def test_what_a_graph_would_lose_runs_as_a_module_and_says_why(stage, reason):
    stages = [nn.Linear(8, 8), stage, nn.Linear(8, 8)]
    batches = [((x,), y) for x, y in (batch(7, seed=seed) for seed in range(3))]
    outside.grad = None
    random.seed(0)
    expected, *_ = train(copy.deepcopy(stages), batches, "module")
    random.seed(0)
    found, kinds, loss_kind = train(stages, batches, "native")
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))
    assert kinds[0] == kinds[2] == loss_kind == "native"
    assert kinds[1].startswith("module: ")
    assert reason in kinds[1]


def test_a_scripted_module_runs_as_it_is():
    x, _ = batch(6)
    stage = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    with pipeline([stage], None, num_microbatches=1) as pipe:
        for _ in range(2):
            assert same_bits(pipe(x), stage(x).detach())
        assert pipe.stage_kinds[0].endswith("is TorchScript")


def test_nothing_is_exported_while_another_pipeline_runs(exports):
    entered, leave = threading.Event(), threading.Event()

    def waits(x):
        entered.set()
        assert leave.wait(60)
        return x

    x, _ = batch(6)
    with pipeline([waits], None, "module") as busy, pipeline([lambda h: h * 2], None) as pipe:
        other = threading.Thread(target=busy, args=(x,))
        other.start()
        try:
            assert entered.wait(60)
            for _ in range(3):
                assert same_bits(pipe(x), x * 2)
            assert "another pipeline of this process was running" in pipe.stage_kinds[0]
            assert exports == []
        finally:
            leave.set()
            other.join()
        for _ in range(2):
            assert same_bits(pipe(x), x * 2)
        assert pipe.stage_kinds == {0: "native"}


def test_an_export_that_fails_says_nothing(capfd):
    with pipeline([lambda x: x * 2 if x.sum() > 0 else x], None) as pipe:
        for _ in range(3):
            pipe(torch.ones(6, 2))
        assert "data-dependent" in pipe.stage_kinds[0]
    assert capfd.readouterr() == ("", "")


def test_the_first_pass_of_an_input_runs_the_module():
    x, y = batch(6)
    with pipeline([nn.Linear(8, 8)]) as pipe:
        assert pipe.stage_kinds == {0: UNSEEN}
        pipe.step(x, target=y)
        assert pipe.stage_kinds == {0: UNSEEN}
        assert pipe.loss_kind == UNSEEN
        pipe.step(x, target=y)
        assert pipe.stage_kinds == {0: "native"}
        assert pipe.loss_kind == "native"


def test_kinds_can_be_mixed_and_stay_what_they_are():
    stages = [nn.Linear(8, 8) for _ in range(3)]
    batches = [((x,), y) for x, y in (batch(7, seed=seed) for seed in range(3))]
    expected, *_ = train(copy.deepcopy(stages), batches, "module")
    for kinds in (["native", "module", "native"], ["module", "native", "module"]):
        found, ran, loss_kind = train(copy.deepcopy(stages), batches, kinds)
        assert [*ran.values()] == kinds
        assert loss_kind == kinds[-1]
        assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


def python_loss(output, target):
    return Square.apply(output - target).mean()


def python_stage(x):
    return Square.apply(x)


@pytest.mark.parametrize(
    ("last", "loss_fn", "kinds"),
    [
        (
            nn.Linear(8, 8),
            python_loss,
            ("native", "module: it uses a torch.autograd.Function (Square)"),
        ),
        (python_stage, mse, ("module: it uses a torch.autograd.Function (Square)", "native")),
    ],
    ids=["native stage", "native loss"],
)
def test_stage_and_loss_may_run_differently(last, loss_fn, kinds):
    stages = [nn.Linear(8, 8), last]
    batches = [((x,), y) for x, y in (batch(7, seed=seed) for seed in range(3))]
    expected, *_ = train(copy.deepcopy(stages), batches, "module", loss_fn)
    found, ran, loss_kind = train(stages, batches, "native", loss_fn)
    assert (ran[1], loss_kind) == kinds
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


def test_an_argument_that_is_no_plain_value_runs_the_module():
    thing = object()
    x, _ = batch(6)
    with pipeline([lambda x, other: x if other is thing else None], None) as pipe:
        for _ in range(2):
            assert same_bits(pipe(x, thing), x)
        assert pipe.stage_kinds[0].startswith("module: an argument holds something else")


def test_an_error_names_the_operator_and_the_line():
    class Looks(nn.Module):
        def forward(self, x):
            ids = x.long()
            return torch.ones(3)[ids]  # the line

    with pipeline([Looks()], None, num_microbatches=1) as pipe:
        for _ in range(2):
            pipe(torch.zeros(4))
        assert pipe.stage_kinds == {0: "native"}
        with pytest.raises(pipert.PipelineError, match="stage 0, microbatch 0") as caught:
            pipe(torch.full((4,), 7.0))
        assert "aten::index" in str(caught.value)
        assert "# the line" in str(caught.value)
        assert same_bits(pipe(torch.zeros(4)), torch.ones(4))


def test_an_operator_of_the_users_own_runs_through_the_dispatcher():
    @torch.library.custom_op("pipert_test::triple", mutates_args=())
    def triple(x: torch.Tensor) -> torch.Tensor:
        return x * 3

    triple.register_fake(torch.empty_like)
    triple.register_autograd(lambda ctx, gradient: gradient * 3)
    assert_native_equals_module([nn.Linear(8, 8), lambda x: triple(x), nn.Linear(8, 8)])


def test_an_operator_written_in_python_may_fail():
    @torch.library.custom_op("pipert_test::fails", mutates_args=())
    def fails(x: torch.Tensor) -> torch.Tensor:
        if x.sum() < 0:
            raise KeyError("negative")
        return x.clone()

    fails.register_fake(torch.empty_like)
    with pipeline([lambda x: fails(x)], None, num_microbatches=1) as pipe:
        for _ in range(2):
            pipe(torch.ones(2))
        assert pipe.stage_kinds == {0: "native"}
        with pytest.raises(pipert.PipelineError) as caught:
            pipe(-torch.ones(2))
        assert isinstance(caught.value.__cause__, KeyError)
        assert pipe(torch.ones(2)).tolist() == [1, 1]


# --- no GIL -------------------------------------------------------------------------------------


def hold_the_gil(seconds):
    """Sleeps with the GIL held."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def test_a_step_goes_on_while_another_thread_holds_the_gil():
    torch.manual_seed(0)
    width = 384  # an action takes longer than a time slice: ranks overlap on a single core, too
    stages = [
        nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(6)])
        for _ in range(2)
    ]
    x, y = torch.randn(1024, width), torch.randn(1024, width)
    with pipeline(stages, num_microbatches=4, intra_op_threads=1) as pipe:
        optimizer = torch.optim.AdamW(pipe.parameters())
        for _ in range(3):
            pipe.step(x, target=y)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        assert set(pipe.stage_kinds.values()) == {"native"}
        held = {}

        def hold(asked):
            asked.wait()
            held["start"] = time.monotonic_ns()
            hold_the_gil(3.0)
            held["end"] = time.monotonic_ns()

        asked = threading.Event()
        holder = threading.Thread(target=hold, args=(asked,))
        holder.start()
        interval = sys.getswitchinterval()
        sys.setswitchinterval(60)  # it gets the GIL when this thread lets it go: the ranks are off
        try:
            asked.set()
            pipe.step(x, target=y)
        finally:
            sys.setswitchinterval(interval)
        holder.join()
        trace = pipe.trace()
    runs = [
        [
            (trace.origin_ns + e.started * 1e9, trace.origin_ns + e.ended * 1e9)
            for e in trace.events_of(rank)
            if e.kind == "run"
        ]
        for rank in (0, 1)
    ]
    inside = [
        [run for run in rank if held["start"] <= run[0] and run[1] <= held["end"]] for rank in runs
    ]
    # A rank that wanted the GIL would come to one action at most. The first may have begun before
    # the other thread had it.
    assert all(len(rank) >= 4 for rank in inside), (held, runs)
    assert any(a[0] < b[1] and b[0] < a[1] for a in inside[0] for b in inside[1]), (
        "the ranks never ran at the same time"
    )
