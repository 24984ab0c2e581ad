"""Lists of specs and builders: each stage is built on its own rank, and named before it is."""

import copy
import itertools

import pytest
import torch
from run_in_turn import run_in_turn
from torch import nn

import pipert
from pipert import LayerSpec, TiedLayerSpec
from pipert.split.layer_spec import BuiltStage
from pipert.stages import Tied

built = []


class Counted(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        if self.weight.device.type != "meta":
            built.append(self.in_features)


def specs(*sizes):
    return [LayerSpec(Counted, a, b) for a, b in itertools.pairwise(sizes)]


def test_nothing_is_built_before_its_rank_is():
    built.clear()
    stages = pipert.split(specs(1, 2, 3, 4, 5), 2, balance="uniform")
    assert built == []
    assert stages.names == [
        ["0.weight", "0.bias", "1.weight", "1.bias"],
        ["2.weight", "2.bias", "3.weight", "3.bias"],
    ]
    assert [n for n, _ in stages[1]().named_parameters()] == stages.names[1]
    assert built == [3, 4]


def test_specs_are_balanced_by_parameters_counted_on_meta():
    built.clear()
    stages = pipert.split(specs(64, 64, 2, 2, 2), 2)
    assert [stage.pipert_paths for stage in stages] == [["0"], ["1", "2", "3"]]
    assert built == []


def test_naming_draws_no_random_numbers():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    pipert.split(specs(2, 2, 2), 2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_pipeline_of_specs_trains_as_the_sequential_of_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    layers = [LayerSpec(nn.Linear, 4, 8), nn.ReLU, LayerSpec(nn.Linear, 8, 2)]
    x, y = torch.randn(8, 4), torch.randn(8, 2)
    with pipert.Pipeline(
        pipert.split(layers, 2), num_microbatches=2, loss_fn=nn.functional.mse_loss
    ) as pipe:
        pipe.load_state_dict(model.state_dict())
        pipe.step(x, target=y)
        gradients = {name: p.grad for name, p in pipe.named_parameters()}
    for part, target in zip(x.chunk(2), y.chunk(2), strict=True):
        (nn.functional.mse_loss(model(part), target) / 2).backward()
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(gradients[name], p.grad) for name, p in model.named_parameters())


def tied_layers(**options):
    embed = TiedLayerSpec("embed", nn.Embedding, 7, 4)
    head = TiedLayerSpec(
        "embed", nn.Embedding, 7, 4, forward_fn=lambda e, x: x @ e.weight.T, **options
    )
    return [embed, LayerSpec(nn.Linear, 4, 4), nn.Tanh, head]


def test_specs_of_one_key_are_tied_under_their_names_in_the_whole_model():
    stages = pipert.split(tied_layers(), 2, balance="uniform")
    assert stages.tied == (Tied(((0, "0.weight"), (1, "3.weight"))),)
    assert stages.names == [["0.weight", "1.weight", "1.bias"], ["3.weight"]]


def test_specs_of_one_key_on_one_stage_are_one_module():
    stages = pipert.split(tied_layers(), 1)
    assert stages.tied == ()
    stage = stages[0]()
    assert list(stage.state_dict()) == ["0.weight", "1.weight", "1.bias", "3.weight"]
    assert [name for name, _ in stage.named_parameters()] == ["0.weight", "1.weight", "1.bias"]
    tokens = torch.tensor([[1, 2], [3, 4]])
    embed, linear = stage[0], stage[1]
    expected = torch.tanh(linear(embed(tokens))) @ embed.weight.T
    assert torch.equal(stage(tokens), expected)
    twin = copy.deepcopy(stage).double()
    assert twin[3].weight is twin[0].weight
    assert twin(tokens).dtype == torch.float64


def test_another_forward_runs_in_place_of_the_layers_own():
    stages = pipert.split(tied_layers(), 2, balance="uniform")
    modules = [stage() for stage in stages]
    tokens = torch.tensor([[1, 2]])
    output = run_in_turn(pipert.Stages(modules), (tokens,))
    hidden = modules[0](tokens).tanh()
    assert torch.equal(output, hidden @ modules[1].state_dict()["3.weight"].T)


def test_several_weights_may_be_tied():
    layer = {"tied_weight_attr": ["weight", "bias"]}
    layers = [TiedLayerSpec("a", nn.Linear, 2, 2, **layer) for _ in range(3)]
    stages = pipert.split(layers, 3)
    assert set(stages.tied) == {
        Tied(((0, "0.weight"), (1, "1.weight"), (2, "2.weight"))),
        Tied(((0, "0.bias"), (1, "1.bias"), (2, "2.bias"))),
    }


def test_a_tied_weight_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"no parameter 'scale': expected one of weight, bias"):
        pipert.split([TiedLayerSpec("a", nn.Linear, 2, 2, tied_weight_attr="scale")] * 2, 2)


def test_what_builds_no_module_is_refused():
    with pytest.raises(TypeError, match="a layer is built by a class or a function, got 3"):
        LayerSpec(3)
    with pytest.raises(TypeError, match=r"model\[1\] must be a module, or .*; got int"):
        pipert.split([nn.ReLU(), LayerSpec(int)], 1)
    assert repr(LayerSpec(nn.Linear, 2, 3, bias=False)) == "LayerSpec(Linear, 2, 3, bias=False)"


def test_a_stage_of_modules_alone_is_there_already():
    stages = pipert.split([nn.Linear(1, 1), nn.Linear(1, 1), LayerSpec(nn.Linear, 1, 1)], 3)
    assert isinstance(stages[0], nn.Sequential)
    assert isinstance(stages[2], BuiltStage)
