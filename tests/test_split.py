"""split: which layers a stage gets, under which names, and what can't be cut."""

from collections import OrderedDict

import pytest
import torch
from plain_loop import mlp
from torch import nn
from torch.nn import functional

import pipert


def layers_of(stages):
    return [[name for name, _ in stage.named_modules() if name] for stage in stages]


def run(stages, x):
    for stage in stages:
        x = stage(x)
    return x


class Named(nn.Module):
    """Children that run one after the other, a ModuleList among them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x) + self.b(x)


# --- what comes out -----------------------------------------------------------------------------


@pytest.mark.parametrize("num_stages", [1, 2, 3, 8])
def test_the_stages_of_a_sequential_compute_what_it_computes(num_stages):
    model = mlp(4)
    x = torch.randn(3, 8)
    stages = pipert.split(model, num_stages)
    assert len(stages) == num_stages
    assert torch.equal(run(stages, x), model(x))


def test_stages_share_the_models_layers_and_names():
    model = mlp(3)
    stages = pipert.split(model, 3)
    parameters = {n: p for stage in stages for n, p in stage.named_parameters()}
    assert parameters.keys() == dict(model.named_parameters()).keys()
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert [name for names in stages.names for name in names] == list(model.state_dict())


def test_the_example_of_a_model_that_works_in_place_stays_as_it_is():
    class Shift(nn.Module):
        def forward(self, x):
            return x.add_(1.0)

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift, self.linear = Shift(), nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(self.shift(x))

    x = torch.zeros(2, 4)
    assert len(pipert.split(Shifted(), 2, example_args=(x,), by="structure")) == 2
    assert torch.equal(x, torch.zeros(2, 4))


def test_nested_sequentials_are_cut_inside_and_keep_their_paths():
    model = nn.Sequential(
        OrderedDict(
            stem=nn.Linear(4, 4),
            body=nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
        )
    )
    stages = pipert.split(model, at=["body.1.0"])
    assert layers_of(stages) == [
        ["stem", "body", "body.0"],
        ["body", "body.1", "body.1.0", "body.1.1"],
    ]
    x = torch.randn(2, 4)
    assert torch.equal(run(stages, x), model(x))


def test_at_may_name_a_container_whose_first_layer_begins_the_stage():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    assert layers_of(pipert.split(model, at=["1"])) == [["0"], ["1", "1.0", "1.1"]]


def test_at_and_num_stages_may_agree():
    assert len(pipert.split(mlp(2), num_stages=2, at=["2"])) == 2


def test_uniform_balance_gives_each_stage_as_many_layers():
    stages = pipert.split(mlp(4), 3, balance="uniform")
    assert [len(stage) for stage in stages] == [3, 3, 2]


def test_balance_may_be_the_number_of_layers_of_each_stage():
    stages = pipert.split(mlp(2), 2, balance=[3, 1])
    assert [len(stage) for stage in stages] == [3, 1]


def test_balance_by_parameters_looks_at_sizes_not_at_counts():
    model = nn.Sequential(nn.Linear(64, 64), *[nn.Linear(64, 2), nn.Linear(2, 2), nn.Linear(2, 2)])
    assert [len(stage) for stage in pipert.split(model, 2)] == [1, 3]


def test_a_layer_that_is_used_twice_stands_in_both_stages():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    x = torch.randn(2, 4)
    stages = pipert.split(model, at=["1"])
    assert torch.equal(run(stages, x), model(x))


# --- other models -------------------------------------------------------------------------------


def test_a_model_that_runs_its_children_in_order_is_cut_at_any_of_them():
    model = Named()
    x = torch.randn(3, 4)
    stages = pipert.split(model, at=["layers.1", "head"], example_args=(x,))
    assert layers_of(stages) == [
        ["embed", "layers", "layers.0"],
        ["layers", "layers.1", "layers.2", "layers.3"],
        ["head"],
    ]
    assert torch.equal(run(stages, x), model(x))
    names = [n for stage in stages for n in stage.state_dict()]
    assert names == list(model.state_dict())


def test_checking_leaves_the_models_modes_and_gradients_alone():
    model = Named()
    model.layers[1].eval()
    pipert.split(model, 2, example_args=(torch.randn(1, 4),))
    assert model.training
    assert not model.layers[1].training
    assert all(p.grad is None for p in model.parameters())


def test_checking_leaves_running_statistics_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    pipert.split(model, 2, example_args=(torch.randn(3, 4),))
    assert model[1].num_batches_tracked == 0


def test_a_model_that_does_not_run_in_order_is_refused():
    with pytest.raises(ValueError, match="Branching does not run its children one after the other"):
        pipert.split(Branching(), 2, example_args=(torch.randn(1, 4),), by="structure")


class Flips(torch.autograd.Function):
    """The identity, but for its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


@pytest.mark.parametrize(
    ("between", "text"),
    [
        (
            lambda model, x: functional.dropout(x, 0.5, model.training),
            "output differs .* in training",
        ),
        (lambda model, x: x.detach(), "gradient of embed.weight differs"),
        (lambda model, x: Flips.apply(x), "gradient of embed.weight differs"),
    ],
    ids=["dropout", "detach", "own_gradient"],
)
def test_what_a_forward_does_in_training_alone_is_not_lost(between, text):
    class Between(Named):
        def forward(self, x):
            x = self.embed(x)
            for layer in self.layers:
                x = layer(x)
            return self.head(between(self, x))

    model, example = Between(), (torch.randn(3, 4),)
    with pytest.raises(ValueError, match=text):
        pipert.split(model, 2, example_args=example, by="structure")
    stages = pipert.split(model, at=["layers.2"], example_args=example, check="gradients")
    assert stages.specs is not None  # it was traced


def test_what_a_forward_does_for_nothing_may_be_left_out():
    class Views(Named):
        def forward(self, x):
            return super().forward(x.view(-1, 4)).view(-1, 2)

    stages = pipert.split(Views(), 2, example_args=(torch.randn(3, 4),))
    assert stages.specs is None


def test_a_model_whose_children_do_not_fit_each_other_is_refused_with_the_cause():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.second = nn.Linear(3, 2)
            self.first = nn.Linear(4, 3)

        def forward(self, x):
            return self.second(self.first(x))

    with pytest.raises(ValueError, match=r"second -> first\): stage 0 fails when it does") as error:
        pipert.split(Reversed(), 2, example_args=(torch.randn(1, 4),), by="structure")
    assert isinstance(error.value.__cause__, RuntimeError)


def test_a_model_that_is_no_sequential_needs_example_args():
    with pytest.raises(ValueError, match=r"Named is not an nn\.Sequential: expected example_args"):
        pipert.split(Named(), 2)


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "expected num_stages or at, got neither"),
        ({"num_stages": 0}, r"num_stages must be from 1 to 4 \(the model's layers\), got 0"),
        ({"num_stages": 5}, r"num_stages must be from 1 to 4 \(the model's layers\), got 5"),
        ({"num_stages": 2, "at": ["1", "2"]}, "makes 3 stages, got num_stages=2"),
        ({"at": ["7"]}, "at names no layer: expected one of 0, 1, 2, 3; got '7'"),
        ({"at": ["0"]}, "at must name layers after the first, in order; got '0'"),
        ({"at": ["2", "1"]}, "at must name layers after the first, in order; got '1'"),
        ({"num_stages": 2, "balance": "memory"}, "expected example_args, the arguments of one"),
        ({"num_stages": 2, "balance": "layers"}, "balance must be 'parameters', 'memory', 'time'"),
        ({"num_stages": 2, "balance": [1, 2]}, "balance must be 2 positive numbers with the sum 4"),
        ({"num_stages": 2, "balance": [4, 0]}, "balance must be 2 positive numbers with the sum 4"),
        ({"num_stages": 2, "example_kwargs": {"mask": 1}}, "expected no example_kwargs, got mask"),
        ({"num_stages": 2, "example_args": (1, 2)}, "expected one example argument, got 2"),
    ],
)
def test_arguments_that_fit_nothing_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        pipert.split(mlp(2), **options)


def test_only_modules_and_lists_of_layers_can_be_split():
    with pytest.raises(
        TypeError, match=r"model must be an nn\.Module or a list of layers, got dict"
    ):
        pipert.split({"0": nn.Linear(1, 1)}, 1)
    with pytest.raises(TypeError, match=r"model\[1\] must be a module, or a function .*; got int"):
        pipert.split([nn.Linear(1, 1), 3], 1)


@pytest.mark.parametrize(
    ("layers", "options", "text"),
    [
        ([nn.Linear(1, 1), torch.relu], {}, r"model\[1\] must be a module, or .* relu.* raises"),
        (
            [pipert.LayerSpec(nn.Linear, 1)],
            {},
            r"model\[0\] must .*; LayerSpec\(Linear, 1\) raises",
        ),
        (mlp(2), {"at": [2]}, "at must be a list of paths such as .*, got a list of int"),
        (mlp(2), {"balance": lambda path: 1.0}, r"as balance\(path, layer\) does; got <function"),
    ],
)
def test_what_can_not_be_called_so_is_a_type_error(layers, options, text):
    with pytest.raises(TypeError, match=text):
        pipert.split(layers, 1, **options)


def test_a_list_of_layers_and_builders_is_cut_like_the_sequential_of_them():
    layers = [nn.Linear(2, 3), lambda: nn.Linear(3, 4), nn.ReLU, lambda: nn.Linear(4, 1)]
    stages = pipert.split(layers, 2)
    assert [name for names in stages.names for name in names] == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "3.weight",
        "3.bias",
    ]
    x = torch.randn(5, 2)
    assert stages[1]()(stages[0](x)).shape == (5, 1)


def test_a_sequential_with_a_forward_of_its_own_is_not_taken_for_its_layers():
    class Doubled(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    model = Doubled(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="expected example_args"):
        pipert.split(model, 2)
    with pytest.raises(ValueError, match="output differs"):
        pipert.split(model, 2, example_args=(torch.randn(3, 2),), by="structure")


def test_a_container_with_hooks_is_not_taken_apart():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    model[1].register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(ValueError, match="1 has hooks, and is cut between its children"):
        pipert.split(model, 2)


def test_parameters_of_the_model_itself_are_refused_by_name():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x)

    with pytest.raises(ValueError, match="scale belong to Owner itself"):
        pipert.split(Owner(), 1, example_args=(torch.randn(1, 2),), by="structure")


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="Sequential has no layers to cut between"):
        pipert.split(nn.Sequential(), 1)
