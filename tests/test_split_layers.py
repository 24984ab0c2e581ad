"""split(layers=): the user says which layers run in which order, and what runs around them."""

import copy

import pytest
import torch
from run_in_turn import run_in_turn
from torch import nn

import pipert
from pipert import LayerList


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x, mask=None):
        y = self.up(x).tanh()
        return x + (y if mask is None else y * mask)


class Decoder(nn.Module):
    """Embedding, positions, layers in a wrapper, norm, and a head tied to the embedding."""

    def __init__(self, num_layers=4):
        super().__init__()
        self.scale = 0.5
        self.inner = nn.Module()
        self.inner.layers = nn.ModuleList(Block() for _ in range(num_layers))
        self.inner.norm = nn.LayerNorm(4)
        self.embed = nn.Embedding(11, 4)
        self.positions = nn.Parameter(torch.randn(3, 4))
        self.register_buffer("shift", torch.randn(4))

    def start(self, tokens):
        return self.embed(tokens) * self.scale + self.positions

    def forward(self, tokens, mask=None):
        x = self.start(tokens)
        for layer in self.inner.layers:
            x = layer(x, mask)
        return (self.inner.norm(x) + self.shift) @ self.embed.weight.T


AROUND = LayerList(
    "inner.layers",
    before=lambda model, tokens: model.start(tokens),
    each=lambda layer, x, mask=None: layer(x, mask),
    after=lambda model, x: (model.inner.norm(x) + model.shift) @ model.embed.weight.T,
)


@pytest.fixture
def tokens():
    return torch.randint(11, (4, 3))


def plain_gradients(model, tokens, target, **kwargs):
    model.zero_grad()
    for part, wanted in zip(tokens.chunk(2), target.chunk(2), strict=True):
        nn.functional.mse_loss(model(part, **kwargs), wanted).div(2).backward()
    return {name: p.grad for name, p in model.named_parameters()}


# --- paths ----------------------------------------------------------------------------------------


class Unordered(nn.Module):
    """Registers its children in another order than it runs them."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.body = nn.Module()
        self.body.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.body.first = nn.Linear(4, 4)

    def forward(self, x):
        x = self.body.first(x)
        for layer in self.body.layers:
            x = layer(x)
        return self.head(x)


def test_layers_are_named_in_the_order_in_which_they_run():
    model, x = Unordered(), torch.randn(2, 4)
    with pytest.raises(ValueError, match="does not run its children one after the other"):
        pipert.split(model, 2, example_args=(x,), by="structure")
    stages = pipert.split(
        model, 2, layers=["body.first", "body.layers", "head"], example_args=(x,), balance=[2, 3]
    )
    assert torch.equal(run_in_turn(stages, (x,)), model(x))
    assert sorted(name for names in stages.names for name in names) == sorted(model.state_dict())
    assert str(stages).splitlines()[1].split()[1:3] == ["body.first,", "body.layers.0"]


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Module()
        self.b = nn.Linear(4, 4)
        self.a.x = nn.Linear(4, 4)
        self.a.y = nn.Linear(4, 4)

    def forward(self, value):
        return self.a.y(self.b(self.a.x(value)))


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_layers_of_one_module_may_run_before_and_after_another(num_stages):
    model, x = Around(), torch.randn(2, 4)
    stages = pipert.split(model, num_stages, layers=["a.x", "b", "a.y"], example_args=(x,))
    assert torch.equal(run_in_turn(stages, (x,)), model(x))
    assert sorted(name for names in stages.names for name in names) == sorted(model.state_dict())
    with pipert.Pipeline(
        stages, num_microbatches=2, loss_fn=nn.functional.mse_loss, rng_seed=1
    ) as pipe:
        assert pipe.step(x, target=x).loss is not None


def test_a_layer_may_run_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(self.b(self.a(x)))

    model, x = Twice(), torch.randn(2, 4)
    for num_stages in (1, 2, 3):
        stages = pipert.split(model, num_stages, layers=["a", "b", "a"], example_args=(x,))
        assert torch.equal(run_in_turn(stages, (x,)), model(x))


def test_one_path_opens_the_modules_that_it_is_in():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Module()
            self.inner.embed = nn.Linear(4, 4)
            self.inner.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.inner.norm = nn.LayerNorm(4)
            self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, x):
            x = self.inner.embed(x)
            for layer in self.inner.layers:
                x = layer(x)
            return self.head(self.inner.norm(x))

    model, x = Wrapper(), torch.randn(2, 4)
    stages = pipert.split(
        model, at=["inner.layers.1", "head"], layers="inner.layers", example_args=(x,)
    )
    assert [stage.split()[1:-3] for stage in str(stages).splitlines()[1:]] == [
        ["inner.embed,", "inner.layers.0"],
        ["inner.layers.1-2,", "inner.norm"],
        ["head.0-1"],
    ]
    assert torch.equal(run_in_turn(stages, (x,)), model(x))


def test_named_layers_of_a_model_on_meta_are_taken_at_their_word():
    with torch.device("meta"):
        model = Unordered()
    stages = pipert.split(model, 2, layers=["body.first", "body.layers", "head"])
    assert len(stages) == 2
    with pytest.raises(ValueError, match="expected example_args"):
        pipert.split(model, 2)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["body.first", "tail"], r"layers must name modules of Unordered: got .*|'tail'"),
        ("body.blocks", r"layers must name modules of Unordered"),
        (["body.layers"], "body.first.weight, .* belong to Unordered itself, or to what doesn't"),
        (["body.first", "head"], "body.layers.0.weight"),
        (["head", "body.first"], "body.layers.0.weight|output differs"),
    ],
)
def test_paths_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        pipert.split(Unordered(), 1, layers=layers, example_args=(torch.randn(1, 4),))


def test_layers_must_be_paths():
    with pytest.raises(TypeError, match="layers must be paths such as"):
        pipert.split(Unordered(), 1, layers=[3])
    with pytest.raises(ValueError, match="model is a list of layers: expected no layers="):
        pipert.split([nn.Linear(1, 1)], 1, layers=["0"])


# --- what runs around them ------------------------------------------------------------------------


@pytest.mark.parametrize("num_stages", [1, 2, 3, 6])
def test_stages_run_before_layers_and_after_as_the_model_does(num_stages, tokens):
    model = Decoder()
    mask = torch.rand(3, 4)
    stages = pipert.split(
        model,
        num_stages,
        layers=AROUND,
        example_args=(tokens,),
        example_kwargs={"mask": mask},
        balance="uniform",
    )
    value = tokens
    for stage in stages:
        value = stage(value, mask=mask)
    assert torch.equal(value, model(tokens, mask))
    assert set().union(*stages.names) == set(model.state_dict())


def test_a_stage_has_what_it_uses_and_no_more(tokens):
    model = Decoder()
    stages = pipert.split(model, 3, layers=AROUND, example_args=(tokens,), balance="uniform")
    assert stages.names == [
        ["positions", "inner.layers.0.up.weight", "inner.layers.0.up.bias", "embed.weight"],
        [f"inner.layers.{i}.up.{name}" for i in (1, 2) for name in ("weight", "bias")],
        [
            "shift",
            "inner.layers.3.up.weight",
            "inner.layers.3.up.bias",
            "inner.norm.weight",
            "inner.norm.bias",
            "embed.weight",
        ],
    ]
    assert stages[0].embed.weight is stages[2].embed.weight is model.embed.weight
    assert type(stages[1]) is Decoder
    assert not hasattr(stages[1], "embed")
    assert "0      embed, positions, inner.layers.0  " in str(stages)


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
def test_gradients_equal_the_plain_models(schedule, tokens):
    model = Decoder()
    target = torch.randn(4, 3, 11)
    mask = torch.tensor(0.3)
    stages = pipert.split(model, 3, layers=AROUND, example_args=(tokens,))
    with pipert.Pipeline(
        stages, schedule=schedule, num_microbatches=2, loss_fn=nn.functional.mse_loss
    ) as pipe:
        pipe.step(tokens, mask=mask, target=target)
        with pytest.raises(TypeError, match="'tokens_too'"):
            pipe.step(tokens, tokens_too=1, target=target)
    piped = {name: p.grad.clone() for name, p in model.named_parameters()}
    plain = plain_gradients(model, tokens, target, mask=mask)
    for name, gradient in plain.items():
        if name == "embed.weight":  # two stages add to it, in their own order
            torch.testing.assert_close(piped[name], gradient)
        else:
            assert torch.equal(piped[name], gradient), name


def test_cuts_go_by_what_runs_before_and_after(tokens):
    model = Decoder()
    stages = pipert.split(
        model, at=["inner.layers.2", "inner.norm"], layers=AROUND, example_args=(tokens,)
    )
    assert [
        sorted({n.split(".")[-3] for n in names if "layers" in n}) for names in stages.names
    ] == [
        ["0", "1"],
        ["2", "3"],
        [],
    ]
    with pytest.raises(ValueError, match=r"did you mean 'inner\.norm'"):
        pipert.split(model, at=["inner.norn"], layers=AROUND, example_args=(tokens,))


def test_pieces_are_profiled_with_their_arguments(tokens):
    model = Decoder()
    options = {"example_args": (tokens,), "example_kwargs": {"mask": torch.rand(3, 4)}}
    stages = pipert.split(model, 2, layers=AROUND, balance="time", **options)
    assert min(stages.costs.forward) > 0
    with torch.device("meta"):
        model = Decoder()
    stages = pipert.split(model, 2, layers=AROUND, balance="time", **options)
    assert stages.costs.is_estimated


def test_parts_can_be_copied_and_hooked_alone(tokens):
    model = Decoder()
    stages = pipert.split(model, 2, layers=AROUND, example_args=(tokens,))
    twin = copy.deepcopy(stages[0])
    assert torch.equal(twin(tokens), stages[0](tokens))
    assert twin.embed.weight is not stages[0].embed.weight
    stages[0].register_forward_hook(lambda *_: None)
    assert not model._forward_hooks
    assert not stages[1]._forward_hooks


def test_layers_draw_the_same_random_numbers_whatever_the_cuts(tokens):
    class Dropped(Block):
        def forward(self, x, mask=None):
            return nn.functional.dropout(super().forward(x, mask), training=self.training)

    model = Decoder()
    model.inner.layers = nn.ModuleList(Dropped() for _ in range(4))
    losses = []
    for sizes in ([2, 4], [4, 2], [1, 2, 2, 1]):
        stages = pipert.split(model, balance=sizes, layers=AROUND, example_args=(tokens,))
        with pipert.Pipeline(
            stages, num_microbatches=2, loss_fn=nn.functional.mse_loss, rng_seed=3
        ) as pipe:
            losses.append(pipe.step(tokens, target=torch.zeros(4, 3, 11)).loss)
    assert losses[0] == losses[1] == losses[2]


def test_functions_that_compute_something_else_are_refused(tokens):
    other = LayerList(AROUND.path, before=AROUND.before, after=AROUND.after, each=lambda at, x: x)
    with pytest.raises(ValueError, match="not what its LayerList runs: output differs"):
        pipert.split(Decoder(), 2, layers=other, example_args=(tokens,))


def test_a_parameter_that_nothing_uses_is_refused(tokens):
    model = Decoder()
    model.unused = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"unused\.weight, unused\.bias belong to Decoder itself"):
        pipert.split(model, 2, layers=AROUND, example_args=(tokens,))


def test_a_list_without_layers_or_with_hooks_around_it_is_refused(tokens):
    with pytest.raises(ValueError, match="must be of a ModuleList with entries, got 'embed'"):
        pipert.split(Decoder(), 1, layers=LayerList("embed"), example_args=(tokens,))
    with pytest.raises(ValueError, match="layers must name modules of Decoder"):
        pipert.split(Decoder(), 1, layers=LayerList("layers"), example_args=(tokens,))
    with pytest.raises(ValueError, match="expected example_args, the arguments of one microbatch"):
        pipert.split(Decoder(), 1, layers=AROUND)
    with pytest.raises(TypeError, match="a LayerList is of a model, got list"):
        pipert.split([nn.Linear(1, 1)], 1, layers=AROUND, example_args=(tokens,))
    model = Decoder()
    model.inner.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="inner has hooks"):
        pipert.split(model, 1, layers=AROUND, example_args=(tokens,))
