"""What a traced stage can make of sizes, arguments and buffers isn't sent to it."""

import pytest
import torch
from test_split_trace import assert_same, split
from torch import Tensor, nn

import pipert

WIDTH, WORDS, LONGEST = 8, 11, 16


class Rotary(nn.Module):
    """Tables of sines; of the hidden states it takes the type and device alone."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", torch.rand(WIDTH // 2), persistent=False)

    def forward(self, hidden: Tensor, positions: Tensor):
        angles = positions[:, :, None].float() @ self.frequencies[None, None, :]
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, hidden, mask, tables, scale):
        q, k, v = self.qkv(hidden).chunk(3, -1)
        cos, sin = tables
        scores = (q * cos) @ (k * sin).transpose(1, 2) * scale
        return hidden + scores.masked_fill(~mask, -1e9).softmax(-1) @ v


class Decoder(nn.Module):
    """Its mask, positions, tables and scales are read by all layers."""

    def __init__(self, num_layers=4):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.rotary = Rotary()
        self.layers = nn.ModuleList([Layer() for _ in range(num_layers)])
        self.head = nn.Linear(WIDTH, WORDS)
        self.register_buffer("scales", torch.rand(LONGEST))

    def forward(self, ids, padding=None):
        hidden = self.embed(ids)
        positions = torch.arange(ids.shape[1], device=ids.device)
        mask = positions[:, None] >= positions
        if padding is not None:
            mask = mask & (padding != 0)[:, None, :]
        tables = self.rotary(hidden, positions[None])
        scale = self.scales[: ids.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, mask, tables, scale)
        return self.head(hidden)


def words(rows=3, length=5):
    return torch.randint(0, WORDS, (rows, length))


def test_masks_positions_and_tables_are_made_in_each_stage():
    model = Decoder()
    stages = split(model, words(), at=["layers.1", "layers.3"], check="gradients")
    assert [(v.name, v.readers) for v in stages.values] == [("layers.0", (1,)), ("layers.2", (2,))]
    assert stages.specs[1].arguments == ()
    assert "layers_0.size(1)" in stages[1].code
    assert "self.rotary(layers_0, unsqueeze" in stages[1].code
    assert all(stage.rotary is model.rotary for stage in stages)
    assert_same(model, stages, words(4, 7))


def test_what_is_made_of_an_argument_makes_stages_take_the_argument():
    model, ids = Decoder(), words()
    stages = split(model, ids, (ids != 0).long(), at=["layers.1", "layers.3"], check="gradients")
    assert [spec.inputs for spec in stages.specs] == [(), ("layers.0",), ("layers.2",)]
    assert [spec.arguments for spec in stages.specs] == [("ids", "padding"), *[("padding",)] * 2]
    assert_same(model, stages, ids, (words() > 2).long())


def test_layers_are_numbered_alike_wherever_tables_are_made():
    def layers(at):
        stages = split(Decoder(), words(), at=at)
        return [path for stage in stages for path in stage.meta["layers"]]

    plain = ["embed", *(f"layers.{i}" for i in range(4)), "head"]
    assert layers(["layers.0"]) == layers(["layers.1", "layers.3"]) == plain


def test_a_stage_does_not_make_what_only_later_ones_read():
    stages = split(Decoder(), words(), at=["layers.0", "layers.2"])
    assert "rotary" not in stages[0].code
    assert "rotary" in stages[1].code
    assert "rotary" in stages[2].code


class Reads(nn.Module):
    """Both layers add what `glue` makes of the arguments."""

    def __init__(self, glue, **modules):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.glue = glue
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        made = self.glue(self, x)
        return self.b(self.a(x + made) + made) + made


class Counts(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls = self.calls + 1
        return x + 1


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.mean.copy_(x.mean(0))
        return x - self.mean


def with_hook(module):
    module.register_forward_hook(lambda *_: None)
    return module


def written_later(self, x):
    made = x * 2
    made[:, 0] = 3
    return made


@pytest.mark.parametrize(
    ("glue", "module"),
    [
        (lambda self, x: torch.rand_like(x), None),
        (lambda self, x: x @ x.T @ x, None),
        (written_later, None),
        (lambda self, x: nn.functional.dropout(x, 0.5, self.training), None),
        (lambda self, x: self.module(x), nn.Dropout(0.5)),
        (lambda self, x: self.module(x), nn.Linear(4, 4)),
        (lambda self, x: self.module(x), Remembers()),
        (lambda self, x: self.module(x), Counts()),
        (lambda self, x: self.module(x), with_hook(nn.Tanh())),
    ],
    ids=[
        *("random", "costly", "written", "dropout", "module"),
        *("parameters", "buffer", "attribute", "hook"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_what_could_differ_or_costs_is_made_once_and_sent(glue, module, training):
    model = Reads(glue, module=module).train(training)
    stages = split(model, torch.randn(3, 4), at=["b"])
    assert len(stages.values) == 2
    assert stages.specs[1].arguments == ()
    assert_same(model, stages, torch.randn(3, 4))


def double(self, x):
    with torch.no_grad():
        return self.module(x) * 2


@pytest.mark.parametrize("glue", [double, lambda self, x: self.module(x).cumsum(0)])
def test_what_cannot_differ_is_made_again(glue):
    model = Reads(glue, module=nn.Tanh())
    stages = split(model, torch.randn(3, 4), at=["b"])
    assert [value.name for value in stages.values] == ["add_1"]
    assert stages.specs[1].arguments == ("x",)
    assert_same(model, stages, torch.randn(5, 4))


def test_a_size_that_no_value_shows_is_read_off_the_argument():
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            positions = torch.arange(x.shape[1]).float()
            return self.b(self.a(x).sum(1) + positions.sum()) * positions.mean()

    model = Pools()
    stages = split(model, torch.randn(3, 6, 4), at=["b"])
    assert stages.specs[1].inputs == ("add",)
    assert stages.specs[1].arguments == ("x",)
    assert_same(model, stages, torch.randn(2, 9, 4))


class Adds(torch.autograd.Function):
    """Hands on the first, and has the second as a loss of its own: its values aren't read."""

    @staticmethod
    def forward(ctx, x, loss):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient, torch.ones(())


class Auxiliary(nn.Module):
    def forward(self, x, loss):
        return Adds.apply(x, loss)


@pytest.mark.parametrize("add", [lambda x, loss: Adds.apply(x, loss), Auxiliary()])
def test_what_an_autograd_function_does_not_read_may_have_a_gradient(add):
    class Losses(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.add = nn.Linear(4, 4), nn.Linear(4, 4), add

        def forward(self, x):
            return self.b(self.add(x, self.a(x).sum())) * 2

    model = Losses()
    stages = split(model, torch.randn(3, 4), at=["b"], check="gradients")
    assert stages.values[0].differentiable
    assert_same(model, stages, torch.randn(3, 4))


def test_tables_that_have_to_travel_have_no_gradient():
    """They ask the hidden states for their type, which is no reason for one to come back."""

    class Counting(Rotary):
        def forward(self, hidden, positions):
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(hidden, positions)

    model = Decoder()
    model.rotary = Counting()
    stages = split(model, words(), at=["layers.2"], check="gradients")
    sent = {value.name: value.differentiable for value in stages.values}
    assert sent == {"rotary.0": False, "rotary.1": False, "layers.1": True}


def test_pipelines_train_with_what_their_stages_make():
    model, ids = Decoder(), words(4)
    logits = model(ids)
    logits.square().mean().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    stages = split(model, ids, at=["layers.1", "layers.3"])
    with pipert.Pipeline(
        stages, num_microbatches=1, loss_fn=lambda out: out.square().mean()
    ) as pipe:
        pipe.step(ids)
    assert all(torch.equal(p.grad, expected[name]) for name, p in model.named_parameters())


def test_the_first_stage_may_take_all_arguments_and_send_them():
    model, ids = Decoder(), words()
    at, padding = ["layers.1", "layers.3"], (ids != 0).long()
    stages = split(model, ids, padding, at=at, send_arguments=True, check="gradients")
    assert [spec.arguments for spec in stages.specs] == [("ids", "padding"), (), ()]
    assert [v.readers for v in stages.values if not v.differentiable] == [(1, 2)]  # the mask
    assert_same(model, stages, ids, (words() > 2).long())


def test_arguments_that_are_sent_may_be_numbers_and_read_as_they_are():
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, more, n):
            hidden = self.b(self.a(x).sum(1)) * n
            return self.c(hidden) * more["scale"] + torch.arange(x.shape[1] * n).sum() + n

    model = Scales()
    args = torch.randn(3, 6, 4), {"scale": torch.randn(3, 4)}, 5
    stages = split(model, *args, at=["b", "c"], send_arguments=True)
    assert [spec.arguments for spec in stages.specs] == [("x", "more", "n"), (), ()]
    assert "more['scale']" in stages.specs[2].inputs
    assert_same(model, stages, torch.randn(2, 7, 4), {"scale": torch.randn(2, 4)}, 3)
