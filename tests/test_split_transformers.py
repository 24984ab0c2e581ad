"""Transformers models through `pipert.split`: which way they take, what a trace makes of them."""

import pytest
import torch
from run_in_turn import run_in_turn
from toy_models import TOY_MODELS

import pipert

pytest.importorskip("transformers", reason="transformers isn't installed")


def gradients_of(model, call):
    model.zero_grad()
    call().loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def split(name, **options):
    toy = TOY_MODELS[name]
    model = toy.make()
    options = {"at": toy.cuts[3], "example_kwargs": toy.batch(2), "by": "trace", **options}
    return toy, model, pipert.split(model, **options)


# One of each kind; the matrix of docs/models.md has them all.
@pytest.mark.parametrize("name", ["llama", "mixtral", "t5", "whisper"])
def test_traced_stages_give_the_plain_gradients_at_any_batch_size(name):
    toy, model, stages = split(name)
    assert {key for stage in stages for key in stage.state_dict()} == set(model.state_dict())
    assert all(value.differentiable for value in stages.values)  # masks and tables don't travel
    for rows in (1, 3):
        batch = toy.batch(rows)
        expected = gradients_of(model, lambda batch=batch: model(**batch))
        got = gradients_of(model, lambda batch=batch: run_in_turn(stages, (), batch))
        assert expected.keys() == got.keys()
        assert all(torch.equal(gradient, got[key]) for key, gradient in expected.items())


def test_labels_go_to_the_stages_that_read_them():
    _, _, stages = split("t5")
    assert "labels" not in stages.specs[0].arguments
    assert "labels" in stages.specs[-1].arguments


def test_a_fixed_batch_must_be_allowed():
    with pytest.raises(ValueError, match="CLIPModel fixes the batch dimension at 2"):
        split("clip")
    _, model, stages = split("clip", fixed_batch=True, check="gradients")
    assert len(stages) == 3
    assert model is not None


def test_a_model_with_a_plan_is_cut_by_it_unless_cuts_are_named():
    toy = TOY_MODELS["llama"]
    planned = pipert.split(toy.make(), 2, example_kwargs=toy.batch(2))
    assert [value.name for value in planned.values] == ["hidden_0"]
    traced = pipert.split(toy.make(), at=["model.layers.2"], example_kwargs=toy.batch(2))
    assert "model.layers.1" in [value.name for value in traced.values]


def test_caches_are_off_in_stages_whatever_the_config_says():
    toy = TOY_MODELS["llama"]
    model = toy.make()
    model.config.use_cache = True
    stages = pipert.split(model, 2, example_kwargs=toy.batch(2), by="trace", check="gradients")
    assert all("use_cache" not in spec.arguments for spec in stages.specs)
    assert run_in_turn(stages, (), toy.batch(2)).past_key_values is None


def test_what_layers_would_record_is_refused():
    option = "output_hidden_states"
    toy = TOY_MODELS["llama"]
    kwargs = {**toy.batch(2), option: True}
    with pytest.raises(ValueError, match=f"expected {option}=False, got True: LlamaForCausalLM"):
        pipert.split(toy.make(), 2, example_kwargs=kwargs, by="trace")
    model = toy.make()
    setattr(model.config, option, True)
    with pytest.raises(ValueError, match=f"expected {option}=False, got True"):
        pipert.split(model, 2, example_kwargs=toy.batch(2), by="trace")


def test_a_cache_is_refused():
    toy = TOY_MODELS["llama"]
    kwargs = {**toy.batch(2), "use_cache": True}
    with pytest.raises(ValueError, match="expected no use_cache, got one"):
        pipert.split(toy.make(), 2, example_kwargs=kwargs, by="trace")
