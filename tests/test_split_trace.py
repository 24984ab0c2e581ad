"""Splitting by tracing: stages in turn give the plain outputs and gradients, bit for bit."""

import copy
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
import torch.utils._pytree as pytree
from plain_loop import mlp, plain_loop
from run_in_turn import run_in_turn
from torch import Tensor, nn
from torch.nn import functional

import pipert
from pipert.stages import SkipEdge, Tied


def outputs_and_gradients(model, call):
    """Flat outputs, and gradients of the sum of them by name."""
    model.zero_grad()
    torch.manual_seed(3)
    outputs = pytree.tree_leaves(call())
    roots = [out for out in outputs if isinstance(out, Tensor) and out.requires_grad]
    torch.autograd.backward(roots, [torch.ones_like(out) for out in roots])
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return outputs, gradients


def assert_same(model, stages, *args, **kwargs):
    expected, expected_gradients = outputs_and_gradients(model, lambda: model(*args, **kwargs))
    got, gradients = outputs_and_gradients(model, lambda: run_in_turn(stages, args, kwargs))
    assert len(expected) == len(got)
    for one, other in zip(expected, got, strict=True):
        assert type(one) is type(other)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
    assert expected_gradients.keys() == gradients.keys()
    for name, gradient in expected_gradients.items():
        assert torch.equal(gradient, gradients[name]), name
    assert expected_gradients


def split(model, *args, at=None, num_stages=None, **options):
    kwargs = options.pop("kwargs", {})
    return pipert.split(model, num_stages, at, args, kwargs, by="trace", **options)


class UNet(nn.Module):
    """Each level down is added to the level up, over what lies between."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.middle = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.up = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])

    def forward(self, x):
        kept = []
        for layer in self.down:
            x = layer(x).relu()
            kept.append(x)
        x = self.middle(x)
        for layer in self.up:
            skipped = kept.pop()
            x = layer(x * skipped) + skipped
        return x


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.dropout = nn.Dropout(0.2)

    def forward(self, hidden, memory=None, mask=None, position_bias=None):
        scores = hidden @ (hidden if memory is None else memory).transpose(1, 2)
        if position_bias is None:
            position_bias = self.other(hidden).mean(-1, keepdim=True)
        scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(mask, -1e9)
        values = self.own(hidden if memory is None else memory)
        return hidden + self.dropout(scores.softmax(-1) @ values), position_bias


class Stack(nn.Module):
    def __init__(self, embed):
        super().__init__()
        self.embed = embed
        self.block = nn.ModuleList([Attends() for _ in range(2)])
        self.norm = nn.LayerNorm(8)

    def forward(self, ids, memory=None, mask=None):
        hidden = functional.dropout(self.embed(ids), 0.1, training=self.training)
        bias = None
        for block in self.block:
            hidden, bias = block(hidden, memory, mask=mask, position_bias=bias)
        return self.norm(hidden)


class EncoderDecoder(nn.Module):
    """As T5: one embedding three times, biases from the first blocks, labels shifted in place."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Embedding(11, 8)
        self.encoder = Stack(self.shared)
        self.decoder = Stack(self.shared)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.shared.weight

    def forward(self, ids, labels, mask=None):
        if mask is not None:
            mask = mask[:, None, :].expand(-1, ids.shape[1], -1) == 0
        memory = self.encoder(ids, mask=mask)
        shifted = labels.new_zeros(labels.shape)
        shifted[:, 1:] = labels[:, :-1].clone()
        shifted[:, 0] = 1
        shifted.masked_fill_(shifted == -100, 0)
        hidden = self.decoder(shifted, memory, mask)
        logits = self.head(hidden)
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return OrderedDict(loss=loss, logits=logits, cache=None)


def words(rows=3, length=5):
    return torch.randint(0, 11, (rows, length))


# --- skips, ties, arguments ---------------------------------------------------------------------


def test_values_that_jump_over_stages_travel_on_skip_edges():
    model = UNet()
    stages = split(model, torch.randn(3, 6), at=["down.2", "middle", "up.1"])
    assert stages.skip_edges == [SkipEdge(0, 2, ("relu_1",)), SkipEdge(0, 3, ("relu", "relu_1"))]
    assert_same(model, stages, torch.randn(5, 6))


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5, 7])
def test_a_model_with_skips_is_cut_anywhere(num_stages):
    model = UNet()
    stages = split(model, torch.randn(2, 6), num_stages=num_stages)
    assert len(stages) == num_stages
    assert_same(model, stages, torch.randn(4, 6))


@pytest.mark.parametrize("at", [["decoder"], ["encoder.block.1", "decoder.block.0", "head"]])
@pytest.mark.parametrize("has_mask", [False, True])
def test_an_encoder_and_a_decoder_share_one_embedding(at, has_mask):
    torch.manual_seed(0)
    model = EncoderDecoder()
    kwargs = {"labels": words()}
    if has_mask:
        kwargs["mask"] = torch.ones(3, 5, dtype=torch.long)
    stages = split(model, words(), at=at, kwargs=kwargs, check="gradients")
    other = {"labels": words(4, 7)}
    if has_mask:
        other["mask"] = torch.tensor([[1] * 4 + [0] * 3] * 4)
    assert_same(model, stages, words(4, 7), **other)


class Shows(UNet):
    """Returns what its first level makes, too."""

    def forward(self, x):
        early = self.down[0](x).relu()
        return {"up": super().forward(x), "shown": [early, early + 1]}


def test_outputs_that_nobody_wants_do_not_travel():
    x = torch.randn(3, 6)
    model = Shows()
    both = split(model, x, at=["middle", "up.2"])
    few = split(model, x, at=["middle", "up.2"], outputs=["up"], check="gradients")
    carried = {edge[:2]: edge.values for edge in both.skip_edges}
    pruned = {edge[:2]: edge.values for edge in few.skip_edges}
    assert len(pruned[0, 2]) < len(carried[0, 2])
    got = run_in_turn(few, (x,))
    assert torch.equal(got["up"], model(x)["up"])
    assert got["shown"] == [None, None]
    assert "add" not in few[0].code


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        (
            ["upp"],
            ValueError,
            "returns: expected some of up, shown; got 'upp': did you mean",
        ),
        ([0], ValueError, "got 0"),
        ([], ValueError, "outputs must name one at least"),
        ("up", TypeError, "outputs must be names in what forward returns"),
    ],
)
def test_outputs_that_are_not_there_are_refused(outputs, error, message):
    with pytest.raises(error, match=message):
        split(Shows(), torch.randn(3, 6), at=["middle"], outputs=outputs)


def test_a_model_of_one_output_returns_that():
    with pytest.raises(ValueError, match="UNet returns one value"):
        split(UNet(), torch.randn(3, 6), at=["middle"], outputs=[0])
    with pytest.raises(ValueError, match="outputs are for cuts by tracing and by plan"):
        pipert.split(mlp(4), 2, outputs=[0])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_stages_cut_at_names_have_costs_where_a_balance_asks_for_them(device):
    x = torch.randn(3, 6)
    with torch.device(device):
        model = UNet()
    at = ["middle", "up.1"]
    assert split(model, x, at=at).costs is None
    stages = split(model, x, at=at, balance="time")
    costs = stages.costs
    assert costs.is_estimated == (device == "meta")
    # One half may be all of a backward that takes microseconds: they are told apart by difference.
    halves = [sum(both) for both in zip(costs.input, costs.weight, strict=True)]
    assert min(*costs.forward, *halves) > 0
    assert costs.input[0] == 0  # x needs no gradient
    # x, and what three ReLUs return.
    assert costs.activation_bytes[0] == 4 * x.nbytes
    # One value that the last stage alone reads; one that both do, whose gradient stage 1 relays.
    alone, both = [(0, [2]), (2, [0])], [(0, [1, 2]), (1, [0]), (2, [1])]
    assert costs.skips == [(*ends, x.nbytes) for ends in (*alone, *both)]
    schedule = pipert.Schedule.build("1f1b", num_ranks=3, num_microbatches=4)
    assert schedule.simulate(costs).makespan > sum(costs.forward)
    with pytest.raises(ValueError, match="memory_limit is for cuts that split chooses"):
        split(model, x, at=at, memory_limit=1e6)


def test_what_depends_on_arguments_alone_is_computed_where_it_is_read():
    stages = split(EncoderDecoder(), words(), words(), at=["decoder"])
    assert stages.specs[0].arguments == ("ids",)
    assert stages.specs[1].arguments == ("labels",)
    assert "masked_fill_" in stages[1].code


def test_a_parameter_of_several_stages_is_found_to_be_tied():
    model = EncoderDecoder()
    stages = split(model, words(), words(), at=["decoder", "head"])
    (tied,) = stages.tied
    assert set(tied.uses) == {  # under all its names
        (0, "shared.weight"),
        (0, "encoder.embed.weight"),
        (1, "decoder.embed.weight"),
        (2, "head.weight"),
    }


def test_stages_hold_the_models_own_modules_and_all_of_its_state():
    model = EncoderDecoder()
    stages = split(model, words(), words(), at=["decoder.block.1"])
    assert stages[1].get_submodule("decoder.block.1") is model.decoder.block[1]
    names = {name for stage in stages for name in stage.state_dict()}
    assert names == set(model.state_dict())
    parameters = {n: p for stage in reversed(stages) for n, p in stage.named_parameters()}
    assert all(parameters[n] is p for n, p in model.named_parameters())


def test_state_that_no_stage_uses_has_a_place_all_the_same():
    model = UNet()
    model.middle.unused = nn.Linear(2, 2)
    model.middle.forward = lambda x: model.middle[1](model.middle[0](x))
    model.extra = nn.Parameter(torch.ones(2))
    stages = split(model, torch.randn(3, 6), at=["up.0"])
    assert {name for stage in stages for name in stage.state_dict()} == set(model.state_dict())


class Pair(NamedTuple):
    first: Tensor
    rest: dict


class Nested(nn.Module):
    """Tensors in containers, integers, None and flags, in and out."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.c = nn.Linear(4, 4)

    def forward(self, pair, *more, scale, flag=True, **extra):
        x, (y, _) = pair["x"], pair["rest"]
        x = self.a(x) * scale if flag else x
        z = self.b(y + more[0]) * x.shape[0]
        rows = x.size(0) * 2 + scale
        w = self.c(z + x) + torch.arange(x.shape[1], device=x.device)
        return Pair(
            w, {"z": [z, (more[1], None)], "rows": rows, "n": 3, "extra": extra["e"] * rows}
        )


def nested(rows, scale=5):
    x, y, m, n, e = (torch.randn(rows, 4) for _ in range(5))
    return ({"x": x, "rest": (y, None)}, m, n), {"scale": scale, "flag": True, "e": e}


def test_arguments_and_outputs_may_be_nested_and_not_tensors():
    model = Nested()
    args, kwargs = nested(3)
    stages = split(model, *args, at=["b", "c"], kwargs=kwargs, check="gradients")
    assert stages.arguments == ("pair", "more_0", "more_1")
    args, kwargs = nested(6, scale=9)
    assert isinstance(run_in_turn(stages, args, kwargs), Pair)
    assert_same(model, stages, *args, **kwargs)


def test_a_size_is_read_off_a_tensor_that_the_stage_has():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, y):
            hidden = self.a(x)
            return self.b(hidden + y.sum()) * (x.shape[0] + y.shape[0])

    model = Sized()
    stages = split(model, torch.randn(3, 4), torch.randn(5), at=["b"])
    assert stages.specs[1].inputs == ("add",)
    assert stages.specs[1].arguments == ("y",)
    assert "add.size(0)" in stages[1].code
    assert_same(model, stages, torch.randn(4, 4), torch.randn(6))


def test_the_same_tensor_given_twice_may_be_two_later():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, y):
            return self.b(self.a(x)) * y

    model, x = Two(), torch.randn(3, 4)
    stages = split(model, x, x, at=["b"])
    assert_same(model, stages, torch.randn(3, 4), torch.randn(3, 4))


def test_values_say_who_makes_them_and_whether_gradients_come_back():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            h = self.a(x)
            return self.b(h.detach() + 1) * (h > 0) * h

    stages = split(Masked(), torch.randn(3, 4), at=["b"], check="gradients")
    assert [(v.name, v.differentiable, v.bytes) for v in stages.values] == [
        ("a", True, 48),
        ("add", False, 48),
    ]


# --- modes, state, devices ----------------------------------------------------------------------


def test_dropout_outside_of_layers_follows_the_stages_mode():
    torch.manual_seed(0)
    model = EncoderDecoder()
    stages = split(model, words(), words(), at=["decoder.block.0"])
    assert "self.decoder.training" in stages[0].code
    args = words(), words()
    assert_same(model, stages, *args)
    model.eval()
    for stage in stages:
        stage.eval()
    assert_same(model, stages, *args)


def test_buffers_are_the_models_own_and_written_once():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("scale", torch.full((4,), 2.0), persistent=False)
            self.a, self.norm, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)

        def forward(self, x):
            self.seen += x.shape[0]
            return self.b(self.norm(self.a(x)) * self.scale)

    model = Counts()
    stages = split(model, torch.randn(3, 4), at=["b"])
    assert model.seen == 0
    assert model.norm.num_batches_tracked == 0
    run_in_turn(stages, (torch.randn(5, 4),))
    assert model.seen == 5
    assert model.norm.num_batches_tracked == 1
    assert {name for stage in stages for name in stage.state_dict()} == set(model.state_dict())
    copied = copy.deepcopy(stages[0])
    assert "scale" not in copied.state_dict()
    x = torch.randn(2, 4)
    assert torch.equal(copied(x=x)[0], stages[0](x=x)[0])


def test_regions_without_gradients_and_with_autocast_stay_regions():
    class Regions(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            with torch.no_grad():
                features = functional.dropout(self.frozen(x), 0.5, self.training)
            h = self.a(features)
            with torch.autocast("cpu", torch.bfloat16):
                h = self.b(h) @ self.weight
            return h.float() + features

    model = Regions()
    stages = split(model, torch.randn(3, 4), at=["a"], check="gradients")
    assert not next(v for v in stages.values if v.maker == 0).differentiable
    assert_same(model, stages, torch.randn(6, 4))
    assert "with_grad_mode" in stages[0].code
    assert torch.is_grad_enabled()


def test_hooks_of_leaves_run_once_and_in_the_stage():
    model, calls = UNet(), []
    model.up[1].register_forward_hook(lambda *_: calls.append("hook"))
    stages = split(model, torch.randn(3, 6), at=["up.0"], check=False)
    calls.clear()
    run_in_turn(stages, (torch.randn(3, 6),))
    assert calls == ["hook"]


class Bottleneck(nn.Linear):
    """Of a class of ours: torch compiles no forward of its own classes by itself."""

    def forward(self, x):
        return torch.tanh(functional.linear(x, self.weight, self.bias))


def test_leaves_of_a_stage_may_be_compiled():
    model, compiled = UNet(), []
    model.middle = Bottleneck(6, 6)
    stages = split(model, torch.randn(2, 6), at=["middle", "up.0"])

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    model.middle.compile(backend=backend)
    run_in_turn(stages, (torch.randn(5, 6),))
    assert len(compiled) == 1
    assert_same(model, stages, torch.randn(5, 6))


def test_a_stage_without_parameters_is_a_stage():
    model, x, target = UNet(), torch.randn(5, 6), torch.randn(5, 6)
    plain = copy.deepcopy(model)
    stages = split(model, torch.randn(2, 6), at=["middle.1", "up.0"])
    assert [len(list(stage.parameters())) for stage in stages] == [8, 0, 6]
    assert_same(model, stages, x)
    losses = plain_loop(plain, x, target, 2)
    with pipert.Pipeline(stages, num_microbatches=2, loss_fn=functional.mse_loss) as pipe:
        assert torch.equal(pipe.step(x, target=target).losses, losses)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, model.get_parameter(name).grad), name


def test_a_layer_that_is_called_again_stands_in_both_stages():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Tanh()])

        def forward(self, x):
            for _ in range(2):
                for layer in self.layers:
                    x = layer(x)
            return x

    model = Again()
    stages = split(model, torch.randn(3, 4), num_stages=4, balance="uniform")
    assert [spec.layers for spec in stages.specs] == [("layers.0",), ("layers.1",)] * 2
    assert Tied(((0, "layers.0.weight"), (2, "layers.0.weight"))) in stages.tied
    assert_same(model, stages, torch.randn(5, 4))


def test_tracing_leaves_the_model_as_it_is():
    model = EncoderDecoder()
    before = {n: (dict(m.__dict__), m.training) for n, m in model.named_modules()}
    args, random = (words(), words()), torch.get_rng_state()
    split(model, *args, at=["decoder"], check="gradients")
    assert torch.equal(torch.get_rng_state(), random)
    assert {n: (dict(m.__dict__), m.training) for n, m in model.named_modules()} == before
    assert all(p.grad is None for p in model.parameters())


def test_models_on_meta_are_traced_and_run_where_they_are_put():
    with torch.device("meta"):
        meta = Nested()
    args, kwargs = nested(3)
    stages = split(meta, *args, at=["b"], kwargs=kwargs)
    model = Nested()
    for stage in stages:
        stage.to_empty(device="cpu")
        stage.load_state_dict(model.state_dict(), strict=False)
    args, kwargs = nested(4)
    expected, got = model(*args, **kwargs), run_in_turn(stages, args, kwargs)
    assert torch.equal(expected.first, got.first)


# --- mutation -----------------------------------------------------------------------------------


class Writes(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


def write_then_pass_on(self, x):
    h = self.a(x)
    h.mul_(2)
    return self.c(self.b(h)) + h


def write_what_an_earlier_stage_made(self, x):
    h = self.a(x)
    y = self.b(h.relu())
    h.add_(y)
    return self.c(y) * h


def write_to_a_view(self, x):
    h = self.a(x) * 1
    h[:, 0] = 3
    return self.c(self.b(h)) + h


@pytest.mark.parametrize("at", [["b"], ["c"], ["b", "c"]])
@pytest.mark.parametrize(
    "forward", [write_then_pass_on, write_what_an_earlier_stage_made, write_to_a_view]
)
def test_writes_in_place_are_seen_by_later_stages(forward, at):
    model = Writes(forward)
    stages = split(model, torch.randn(3, 4), at=at, check="gradients")
    assert_same(model, stages, torch.randn(5, 4))


# --- the result ---------------------------------------------------------------------------------


def test_a_stage_is_readable_python():
    model = UNet()
    stages = split(model, torch.randn(3, 6), at=["up.2"])
    assert 'getattr(self.up, "2")(' in stages[1].code
    assert stages[1].code.count("torch.ops.aten") == 1


def test_stages_are_copied_with_what_they_share():
    model = EncoderDecoder().eval()
    stages = split(model, words(), words(), at=["decoder"])
    memo = {}
    copies = [copy.deepcopy(stage, memo) for stage in stages]
    assert copies[0].shared.weight is copies[1].decoder.embed.weight
    assert copies[0].shared.weight is not model.shared.weight
    ids = words()
    assert torch.equal(copies[0](ids=ids)[0], stages[0](ids=ids)[0])


def test_a_model_is_traced_where_its_children_do_not_run_in_order():
    model = UNet()
    stages = pipert.split(model, 3, example_args=(torch.randn(3, 6),))
    assert stages.specs is not None
    assert_same(model, stages, torch.randn(3, 6))


def test_a_model_is_cut_by_structure_where_its_children_run_in_order():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp(2)

        def forward(self, x):
            return self.layers(x)

    stages = pipert.split(Chain(), 2, example_args=(torch.randn(3, 8),))
    assert stages.specs is None


class Probe(nn.Module):
    """A head on layers that learn nothing."""

    def __init__(self):
        super().__init__()
        self.body, self.more, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        with torch.no_grad():
            features = self.more(self.body(x))
        return self.head(features)


@pytest.mark.parametrize("balance", ["parameters", "time"])
def test_children_in_order_between_which_gradients_end_are_no_chain(balance):
    model, x = Probe(), torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"the gradient of body\.weight differs"):
        pipert.split(model, 2, example_args=(x,), by="structure")
    stages = pipert.split(model, 2, example_args=(x,), balance=balance, check="gradients")
    assert [spec.layers for spec in stages.specs] == [("body", "more"), ("head",)]
    assert not stages.values[0].differentiable
    assert_same(model, stages, torch.randn(5, 4))


def test_leaf_functions_run_as_they_are_in_the_stage():
    model = Masks()
    mask = torch.ones(3, 4)
    stages = split(model, torch.randn(3, 4), mask, at=["b"], leaf_functions=[mask_or_none])
    x = torch.randn(5, 4)
    assert_same(model, stages, x, torch.ones(5, 4))
    assert_same(model, stages, x, torch.eye(5)[:, :4])


def mask_or_none(mask):
    """No mask where it hides nothing, which a trace can't know."""
    if not isinstance(mask, torch._subclasses.FakeTensor) and bool(mask.all()):
        return None
    return mask == 0


class Masked(nn.Linear):
    def forward(self, x, mask):
        y = super().forward(x)
        return y if mask is None else y.masked_fill(mask, 0)


class Masks(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Masked(4, 4), Masked(4, 4)

    def forward(self, x, mask):
        mask = mask_or_none(mask)
        return self.b(self.a(x, mask), mask)


class Scale(torch.autograd.Function):
    """Scales by a parameter, and its gradients by 10; says where the largest stood."""

    @staticmethod
    def forward(ctx, x, by):
        ctx.save_for_backward(x, by)
        return x * by, x.argmax(-1)

    @staticmethod
    def backward(ctx, gradient, _):
        x, by = ctx.saved_tensors
        return 10 * gradient * by, 10 * (gradient * x).sum()


class Scales(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.by = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        x = torch.utils.checkpoint.checkpoint(self.a, x, use_reentrant=True)
        x, largest = Scale.apply(x, self.by)
        return self.b(x) + largest[:, None]


def test_autograd_functions_keep_their_own_backward():
    model, x = Scales(), torch.randn(3, 4, requires_grad=True)
    stages = split(model, x, at=["b"], check=False)
    assert_same(model, stages, torch.randn(5, 4, requires_grad=True))
    assert [value.differentiable for value in stages.values] == [True, False]
