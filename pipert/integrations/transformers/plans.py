"""Plan: which modules of a transformers model come before its layers, and which behind."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Plan:
    """Where the modules of a base model stand. Paths are relative to it.

    Attributes:
        first: before the layers: embeddings, and what else makes the first layer's input.
        layers: the nn.ModuleList of layers.
        last: behind the layers: norms and poolers.
        returns_tuples: whether layers return tuples, with the hidden state first.
    """

    first: tuple[str, ...]
    layers: str
    last: tuple[str, ...]
    returns_tuples: bool = False

    @property
    def children(self) -> set[str]:
        """The children of the base model that have places."""
        return {path.partition(".")[0] for path in (*self.first, self.layers, *self.last)}


_BERT = Plan(("embeddings", "embeddings_project"), "encoder.layer", ("pooler",))
_GPT2 = Plan(("wte", "wpe", "drop"), "h", ("ln_f",))
_VIT = Plan(("embeddings",), "layers", ("layernorm", "pooler"))
_MAMBA = Plan(("embeddings",), "layers", ("norm_f",))
_BLOOM = Plan(("word_embeddings", "word_embeddings_layernorm"), "h", ("ln_f",), True)

# For model types whose config has no base_model_pp_plan.
_PLANS = {
    "bert": _BERT,
    "bloom": _BLOOM,
    "camembert": _BERT,
    "deit": _VIT,
    "distilbert": Plan(("embeddings",), "transformer.layer", ()),
    "electra": _BERT,
    "falcon": _BLOOM,
    "gpt2": _GPT2,
    "gpt_neo": replace(_GPT2, returns_tuples=True),
    "mamba": _MAMBA,
    "mamba2": _MAMBA,
    "opt": Plan(
        ("decoder.embed_tokens", "decoder.embed_positions", "decoder.project_in"),
        "decoder.layers",
        ("decoder.final_layer_norm", "decoder.project_out"),
    ),
    "roberta": _BERT,
    "vit": _VIT,
    "xlm-roberta": _BERT,
}


def has_plan(model: nn.Module) -> bool:
    """Whether `split_by_plan` knows how `model` is built."""
    return _find_plan(base_of(model)) is not None


def plan_of(model: nn.Module) -> Plan:
    """How `model` is built: from its config's base_model_pp_plan, else from pipert's own table.

    Raises:
        ValueError: neither says.
    """
    base = base_of(model)
    plan = _find_plan(base)
    if plan is None:
        kind = getattr(getattr(base, "config", None), "model_type", None)
        raise ValueError(
            f"{type(model).__name__} (model type {kind!r}) has no plan: expected a config with "
            "base_model_pp_plan, or one of the model types "
            f"{', '.join(sorted(_PLANS))}; cut it by tracing"
        )
    return plan


def base_of(model: nn.Module) -> nn.Module:
    """The model without its head; itself, if it has none."""
    base = getattr(model, base_prefix(model), None) if base_prefix(model) else None
    return base if isinstance(base, nn.Module) else model


def base_prefix(model: nn.Module) -> str:
    """The path of the model without its head; empty, if it has none."""
    prefix = getattr(model, "base_model_prefix", "")
    return prefix if isinstance(getattr(model, prefix, None), nn.Module) else ""


def _find_plan(base: nn.Module) -> Plan | None:
    config = getattr(base, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False):
        return None
    given = getattr(config, "base_model_pp_plan", None)
    plan = _from_config(base, given) if given else _PLANS.get(getattr(config, "model_type", ""))
    if plan is None or not isinstance(find_module(base, plan.layers), nn.ModuleList):
        return None
    return plan


def _from_config(base: nn.Module, given: dict[str, Any]) -> Plan | None:
    """The plan's one list of layers, with what stands before it and behind it."""
    paths = list(given)
    lists = [
        i for i, path in enumerate(paths) if isinstance(find_module(base, path), nn.ModuleList)
    ]
    if len(lists) != 1:
        return None
    (at,) = lists
    return Plan(tuple(paths[:at]), paths[at], tuple(paths[at + 1 :]))


def find_module(module: nn.Module, path: str) -> nn.Module | None:
    """What is at `path`; None: no module."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, nn.Module) else None
