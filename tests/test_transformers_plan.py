"""split_by_plan: transformers models cut without tracing compute what they did, bit for bit."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from run_in_turn import run_in_turn
from torch import Tensor, nn
from toy_models import TOY_MODELS, ToyModel, unpadded_text

import pipert
from pipert.integrations.transformers import (
    has_plan,
    leaf_functions_of,
    open_checkpoint,
    split_by_plan,
)
from pipert.stages import Tied

transformers = pytest.importorskip("transformers", reason="transformers isn't installed")

LLAMA = TOY_MODELS["llama"]
WITHOUT_PLAN = {"bart", "clip", "resnet", "t5", "whisper"}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_training(toy: ToyModel, options: dict[str, Any] | None = None, **how: Any) -> None:
    """Output and gradients of the stages, and of the plain model."""
    plain, model = toy.make(**(options or {})), toy.make(**(options or {}))
    batch = toy.batch(4)
    expected = plain(**batch)
    got = run_in_turn(split_by_plan(model, **how), kwargs=batch)
    assert type(got) is type(expected)
    assert got.keys() == expected.keys()
    for key in expected:
        assert torch.equal(got[key], expected[key]), key
    expected.loss.backward()
    got.loss.backward()
    assert_same_gradients(gradients(model), gradients(plain))


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(got[name], gradient), name


def test_pipert_is_imported_without_transformers():
    code = "import pipert, sys; import pipert.integrations.transformers; "
    code += "assert not any(name.split('.')[0] == 'transformers' for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_stages_hold_the_model_s_own_parameters_under_their_names():
    model = LLAMA.make()
    stages = split_by_plan(model, 3)
    own = dict(model.named_parameters())
    names = [name for stage in stages for name, _ in stage.named_parameters()]
    assert sorted(names) == sorted(own)
    for stage in stages:
        for name, parameter in stage.named_parameters():
            assert parameter is own[name]
    assert [name for of in stages.names for name in of] == list(model.state_dict())


def test_specs_say_what_each_stage_takes_and_runs():
    stages = split_by_plan(LLAMA.make(), at=["model.layers.1", "model.layers.3"])
    first, middle, last = stages.specs
    assert first.layers == ("model.embed_tokens", "model.layers.0")
    assert middle.layers == ("model.layers.1", "model.layers.2")
    assert last.layers == ("model.layers.3", "model.norm", "lm_head")
    assert "input_ids" in first.arguments
    assert "input_ids" not in (*middle.arguments, *last.arguments)
    assert "labels" in last.arguments
    assert "labels" not in (*first.arguments, *middle.arguments)
    for spec in stages.specs:
        assert {"attention_mask", "position_ids"} <= set(spec.arguments)
        assert not {"use_cache", "past_key_values", "output_attentions"} & set(spec.arguments)
    assert stages.arguments[:2] == ("input_ids", "attention_mask")
    assert [value.name for value in stages.values] == ["hidden_0", "hidden_1"]
    assert stages.skip_edges == []


def test_one_stage_is_the_whole_model():
    assert_same_training(LLAMA, num_stages=1)


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "llama", "mamba"])
def test_embeddings_and_head_can_be_stages_of_their_own(name):
    """Gemma scales what its embeddings give, outside of them."""
    tail = {"gpt2": "transformer.ln_f", "mamba": "backbone.norm_f"}.get(name, "model.norm")
    layers = TOY_MODELS[name].cuts[2][0].rpartition(".")[0]
    assert_same_training(TOY_MODELS[name], at=[f"{layers}.0", f"{layers}.2", tail])


@pytest.mark.parametrize("balance", ["parameters", "uniform", [2, 1, 1], [0, 4, 0]])
def test_every_balance_computes_the_same(balance):
    assert_same_training(LLAMA, num_stages=3, balance=balance)


def test_a_function_says_what_modules_cost():
    costs = {"model.layers.0": 6, "model.layers.1": 2, "model.layers.2": 2, "model.layers.3": 2}
    stages = split_by_plan(LLAMA.make(), 2, balance=lambda path, module: costs.get(path, 0))
    assert stages.specs[0].layers == ("model.embed_tokens", "model.layers.0")


def test_a_long_head_gets_no_layers_by_time_and_costs_go_with_the_stages():
    """On the meta device: estimates are the same each time. The mask has padding."""
    model, batch = LLAMA.make("meta", vocab_size=4096), LLAMA.batch(2)
    stages = pipert.split(model, 3, example_kwargs=batch, balance="time")
    assert stages.specs[2].layers == ("model.norm", "lm_head")
    costs = stages.costs
    assert costs.is_estimated
    assert costs.forward[2] > costs.forward[1] > 0
    assert costs.weight[2] > 0
    hidden = 2 * 8 * 32 * 4
    assert costs.bytes == [hidden, hidden, 0]
    assert [value.bytes for value in stages.values] == [hidden, hidden]
    schedule = pipert.Schedule.build("1f1b", num_ranks=3, num_microbatches=4)
    assert schedule.simulate(costs).makespan > sum(costs.forward)
    assert "time (estimated)" in str(stages)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mamba"])
def test_layers_are_measured_and_a_rank_s_memory_is_limited(name):
    toy = TOY_MODELS[name]
    stages = split_by_plan(toy.make(), 2, example_kwargs=toy.batch(2), balance="memory")
    kept = stages.costs.activation_bytes
    assert not stages.costs.is_estimated
    assert min(*kept, *stages.costs.forward, *stages.costs.weight) > 0
    how = {"num_stages": 2, "example_kwargs": toy.batch(2), "memory_limit": 1000}
    with pytest.raises(ValueError, match="no cuts keep the limit"):
        split_by_plan(toy.make(), **how)


def test_a_rank_of_a_v_that_has_embeddings_and_head_gets_no_layers_if_they_cost_half():
    stages = split_by_plan(
        LLAMA.make(),
        placement="v",
        num_stages=4,
        balance=lambda path, module: 3 if path in ("model.embed_tokens", "lm_head") else 2,
    )
    layers = [sum("layers" in path for path in spec.layers) for spec in stages.specs]
    assert layers[0] == layers[3] == 0


def test_the_last_stage_returns_the_outputs_that_are_asked_for():
    batch = LLAMA.batch(2)
    expected = LLAMA.make()(**batch).logits
    stages = pipert.split(LLAMA.make(), 2, example_kwargs=batch, outputs=["logits"])
    got = run_in_turn(stages, kwargs=batch)
    assert list(got) == ["logits"]
    assert torch.equal(got.logits, expected)
    with pytest.raises(ValueError, match="returns: expected some of loss, logits; got 'logit'"):
        split_by_plan(LLAMA.make(), 2, example_kwargs=batch, outputs=["logit"])


def test_arguments_by_position_have_the_model_s_names():
    model, plain = LLAMA.make(), LLAMA.make()
    batch = LLAMA.batch(2)
    args = (batch["input_ids"], batch["attention_mask"])
    got = run_in_turn(split_by_plan(model, 2, example_args=args), args)
    assert torch.equal(got.logits, plain(*args).logits)


def test_position_ids_reach_every_layer():
    model, plain = LLAMA.make(), LLAMA.make()
    batch = {**LLAMA.batch(2), "position_ids": torch.arange(8)[None].expand(2, -1) + 3}
    got = run_in_turn(split_by_plan(model, 3), kwargs=batch)
    assert torch.equal(got.loss, plain(**batch).loss)


def test_a_base_model_is_cut_too():
    base, plain = LLAMA.make().model, LLAMA.make().model
    stages = split_by_plan(base, at=["layers.2"])
    ids = LLAMA.batch(2)["input_ids"]
    got = run_in_turn(stages, (ids,))
    assert torch.equal(got.last_hidden_state, plain(ids).last_hidden_state)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("llama", "LlamaForSequenceClassification"),
        ("gpt2", "GPT2ForSequenceClassification"),
        ("bert", "BertForSequenceClassification"),
        ("llama", "LlamaForTokenClassification"),
        ("bert", "BertForQuestionAnswering"),
    ],
)
def test_other_heads_compute_the_same(name, model):
    """Decoders that classify look for the last token that isn't padding."""
    toy = TOY_MODELS[name]
    options = {**toy.options, "num_labels": 3, "pad_token_id": 0, "classifier_dropout": 0.0}
    ids = toy.batch(4)["input_ids"]
    ids[0, 5:] = 0
    batch: dict[str, Tensor] = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    if model.endswith("QuestionAnswering"):
        options["num_labels"] = 2
        batch |= {"start_positions": torch.arange(4), "end_positions": torch.arange(4)}
    elif model.endswith("TokenClassification"):
        batch["labels"] = ids % 3
    else:
        batch["labels"] = torch.arange(4) % 3
    headed = ToyModel(model, toy.config, options, lambda rows: batch)
    assert_same_training(headed, num_stages=2, example_kwargs=batch)


def test_dropout_draws_as_in_the_plain_model():
    options = {"resid_pdrop": 0.5, "embd_pdrop": 0.5}
    plain, model = TOY_MODELS["gpt2"].make(**options), TOY_MODELS["gpt2"].make(**options)
    batch = TOY_MODELS["gpt2"].batch(2)
    stages = split_by_plan(model, 2, example_kwargs=batch)
    torch.manual_seed(5)
    expected = plain(**batch).loss
    torch.manual_seed(5)
    assert torch.equal(run_in_turn(stages, kwargs=batch).loss, expected)
    for stage in stages:
        stage.eval()
    assert torch.equal(run_in_turn(stages, kwargs=batch).loss, plain.eval()(**batch).loss)


def test_gradient_checkpointing_of_the_model_works_in_stages():
    model, plain = LLAMA.make(), LLAMA.make()
    model.gradient_checkpointing_enable()
    batch = LLAMA.batch(2)
    plain(**batch).loss.backward()
    run_in_turn(split_by_plan(model, 3), kwargs=batch).loss.backward()
    assert_same_gradients(gradients(model), gradients(plain))


@pytest.mark.parametrize("name", ["gpt2", "bert", "gemma", "opt"])
def test_tied_weights_are_found(name):
    toy = TOY_MODELS[name]
    model = toy.make()
    (tied,) = split_by_plan(model, 3).tied
    assert isinstance(tied, Tied)
    assert [stage for stage, _ in tied.uses] == [0, 2]
    first, last = (model.get_parameter(path) for _, path in tied.uses)
    assert first is last


def test_a_deep_copy_of_a_stage_shares_nothing_with_it():
    model = LLAMA.make()
    stages = split_by_plan(model, 2)
    copied = copy.deepcopy(stages[1])
    hidden = torch.randn(2, 8, 32)
    assert torch.equal(copied(hidden).logits, stages[1](hidden).logits)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not torch.equal(copied(hidden).logits, stages[1](hidden).logits)


def test_rotary_tables_are_each_stage_s_own():
    """Stages may be on different devices."""
    first, last = split_by_plan(LLAMA.make(), 2)
    assert first.get_buffer("model.rotary_emb.inv_freq") is not last.get_buffer(
        "model.rotary_emb.inv_freq"
    )


def test_a_stage_that_failed_runs_again():
    stages = split_by_plan(LLAMA.make(), 2)
    with pytest.raises(RuntimeError):
        stages[1](torch.randn(2, 8, 7))
    hidden = torch.randn(2, 8, 32)
    assert stages[1](hidden).logits.shape == (2, 8, 64)


def test_the_model_works_as_before_and_trains_the_same_weights():
    model = LLAMA.make()
    batch = LLAMA.batch(2)
    expected = model(**batch).loss
    stages = split_by_plan(model, 4)
    assert torch.equal(model(**batch).loss, expected)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert torch.equal(run_in_turn(stages, kwargs=batch).loss, model(**batch).loss)


def test_meta_models_are_cut_without_running():
    stages = split_by_plan(LLAMA.make("meta"), 3, example_kwargs=LLAMA.batch(2))
    assert all(p.is_meta for stage in stages for p in stage.parameters())


@pytest.mark.parametrize(
    "name", ["bert", "gemma2", "gpt2", "llama", "mamba", "mixtral", "opt", "qwen2_moe", "vit"]
)
@pytest.mark.parametrize("max_shard_size", ["50GB", "10KB"])
def test_a_checkpoint_of_transformers_is_loaded_stage_by_stage(tmp_path, name, max_shard_size):
    toy = TOY_MODELS[name]
    plain = toy.make()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_(std=0.05)
    plain.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors").exists() == (max_shard_size == "50GB")
    meta = toy.make("meta")
    stages = pipert.materialize(split_by_plan(meta, 3), open_checkpoint(meta, tmp_path))
    modules = pipert.Stages(
        [build() for build in stages],
        specs=stages.specs,
        values=stages.values,
        arguments=stages.arguments,
    )
    batch = toy.batch(2)
    assert torch.equal(run_in_turn(modules, kwargs=batch).loss, plain(**batch).loss)


@pytest.mark.parametrize("name", sorted(TOY_MODELS.keys() - WITHOUT_PLAN))
def test_first_values_do_not_depend_on_the_partition(name):
    toy = TOY_MODELS[name]

    def values(num_stages: int) -> dict[str, Tensor]:
        stages = pipert.materialize(split_by_plan(toy.make("meta"), num_stages), seed=3)
        modules = [build() for build in stages]
        return {key: v for module in modules for key, v in module.state_dict().items()}

    expected, got = values(1), values(4)
    assert got.keys() == expected.keys() == toy.make("meta").state_dict().keys()
    for key, value in expected.items():
        assert torch.equal(got[key], value), key
        # Drawn as the model draws them.
        like = toy.make().state_dict()[key]
        assert (value.float().std(correction=0) == 0) == (like.float().std(correction=0) == 0), key


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "expected num_stages or at, got neither"),
        ({"num_stages": 5}, "num_stages must be from 1 to 4"),
        ({"num_stages": 0}, "num_stages must be from 1 to 4"),
        ({"num_stages": 3, "at": ["model.layers.1"]}, "makes 2 stages, got num_stages=3"),
        ({"at": ["model.layer.1"]}, r"got 'model\.layer\.1': did you mean 'model\.layers\.1'"),
        ({"at": ["model.layers.2", "model.layers.1"]}, "in order; got 'model.layers.1'"),
        ({"at": ["model.embed_tokens"]}, "at must name layers"),
        ({"num_stages": 2, "balance": [1, 2]}, "2 numbers with the sum 4"),
        ({"num_stages": 3, "balance": [2, 0, 2]}, "positive but for the first and the last"),
        ({"num_stages": 2, "balance": "best"}, "balance must be 'parameters'"),
        ({"num_stages": 2, "balance": lambda *layer: -1}, r"for layer model\.embed_tokens got -1"),
        ({"num_stages": 2, "balance": "time"}, "expected example_args or example_kwargs, the arg"),
        ({"num_stages": 3, "placement": "v"}, "a V has two stages on each rank"),
        ({"at": ["model.layers.1"], "memory_limit": 1}, "memory_limit is for cuts that split"),
        ({"num_stages": 2, "example_kwargs": {"use_cache": True}}, "expected no use_cache"),
        (
            {"num_stages": 2, "example_kwargs": {"output_attentions": True}},
            "expected output_attentions=False",
        ),
    ],
)
def test_cuts_that_cannot_be_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        split_by_plan(LLAMA.make(), **how)


@pytest.mark.parametrize("option", ["output_hidden_states", "output_router_logits"])
def test_configs_that_ask_for_all_layers_are_refused(option):
    model = TOY_MODELS["mixtral"].make()
    setattr(model.config, option, True)
    with pytest.raises(ValueError, match=f"expected {option}=False, got True: a stage has"):
        split_by_plan(model, 2)


def test_layers_that_are_dropped_at_random_are_refused():
    with pytest.raises(ValueError, match="expected a config with layerdrop=0"):
        split_by_plan(TOY_MODELS["opt"].make(layerdrop=0.1), 2)


def test_a_forward_that_leaves_out_layers_is_an_error_of_the_stage():
    model = LLAMA.make()
    stages = split_by_plan(model, 2)
    stages[1].get_submodule("model").config = copy.copy(model.config)
    stages[1].get_submodule("model").config.num_hidden_layers = 0
    with pytest.raises(RuntimeError, match="left out the layer before the stage's first"):
        stages[1](torch.randn(2, 8, 32))


@pytest.mark.parametrize("name", sorted(WITHOUT_PLAN))
def test_models_without_a_plan_say_so(name):
    model = TOY_MODELS[name].make("meta")
    assert not has_plan(model)
    with pytest.raises(ValueError, match=r"has no plan: expected .* cut it by tracing"):
        split_by_plan(model, 2)


def test_hooks_that_would_run_on_every_stage_are_refused():
    model = LLAMA.make()
    model.model.register_forward_hook(lambda *given: None)
    with pytest.raises(ValueError, match="model has hooks, and is cut between its layers"):
        split_by_plan(model, 2)


def test_a_layer_s_hooks_still_run():
    model = LLAMA.make()
    calls: list[int] = []
    model.model.layers[2].register_forward_hook(lambda *given: calls.append(1))
    run_in_turn(split_by_plan(model, 3), kwargs=LLAMA.batch(2))
    assert calls == [1]


def test_parameters_without_a_place_are_refused():
    model = LLAMA.make()
    model.model.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"model\.extra has parameters and no place in the plan"):
        split_by_plan(model, 2)
    model = LLAMA.make()
    model.model.register_parameter("extra", nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match="extra belong to model itself"):
        split_by_plan(model, 2)


def test_stages_that_compute_something_else_are_found_with_an_example():
    class Louder(transformers.LlamaForCausalLM):
        """Does something before its base model, which stages before the last would leave out."""

        def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **others: Any) -> Any:
            if inputs_embeds is None:
                inputs_embeds = self.model.embed_tokens(input_ids) * 2
            return super().forward(inputs_embeds=inputs_embeds, **others)

    torch.manual_seed(0)
    model = Louder(transformers.LlamaConfig(**LLAMA.options, use_cache=False))
    batch = unpadded_text(2)
    without_labels = {"input_ids": batch["input_ids"]}
    message = r"the stages of Louder don't compute what it does: output\['logits'\] differs"
    with pytest.raises(ValueError, match=f"{message} by up to .*; cut it by tracing"):
        split_by_plan(model, 2, example_kwargs=without_labels)
    message = r"expected \['loss'\], \['logits'\], got \['logits'\]; cut it by tracing"
    with pytest.raises(ValueError, match=message):
        split_by_plan(model, 2, example_kwargs=batch)
    assert len(split_by_plan(model, 2, example_kwargs=batch, check=False)) == 2


def test_a_forward_that_takes_no_hidden_state_is_refused():
    class Closed(transformers.LlamaForCausalLM):
        def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
            return super().forward(input_ids, labels=labels)

    model = Closed(transformers.LlamaConfig(**LLAMA.options))
    with pytest.raises(ValueError, match="the forward of Closed must take inputs_embeds"):
        split_by_plan(model, 2)


def test_mask_functions_are_found():
    names = {function.__name__ for function in leaf_functions_of(TOY_MODELS["gemma2"].make("meta"))}
    assert {"create_causal_mask", "create_sliding_window_causal_mask"} <= names
    assert leaf_functions_of(nn.Linear(2, 2)) == ()
