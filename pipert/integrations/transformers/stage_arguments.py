"""Which arguments of a transformers model's forward each of its stages takes."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

# What stages don't take: caches, and what would have to be gathered from all layers.
_CACHES = ("cache", "cache_params", "cache_position", "past_key_values", "use_cache")
_RECORDS = ("output_attentions", "output_hidden_states", "output_router_logits")
_LEFT_OUT = {*_CACHES, *_RECORDS, "return_dict"}
# Of the embeddings alone.
_EMBEDDED = {"bool_masked_pos", "input_ids", "inputs_embeds", "pixel_values"}
# Arguments that forwards with **kwargs hand on to attention, and to the loss.
_OF_ATTENTION = ("cu_seq_lens_k", "cu_seq_lens_q", "is_causal", "max_length_k", "max_length_q")
_OF_LOSS = ("num_items_in_batch",)


@dataclass(frozen=True)
class StageArguments:
    """What the forwards of a model and of its base model take.

    Attributes:
        positional: by the model, in order.
        first, middle, last: by each kind of stage.
        received_as: what stands for the hidden state in a call of a later stage.
        last_received_as: in a call of the last stage.
        fixed: what stages but the last are always given.
        last_fixed: what the last one is, and the model where it is compared with the stages.
    """

    positional: tuple[str, ...]
    first: tuple[str, ...]
    middle: tuple[str, ...]
    last: tuple[str, ...]
    received_as: str | None
    last_received_as: str | None
    fixed: Mapping[str, Any]
    last_fixed: Mapping[str, Any]


def arguments_of(model: nn.Module, base: nn.Module) -> StageArguments:
    """Reads the signatures of both forwards.

    Raises:
        ValueError: the model can't be given a hidden state.
    """
    whole, positional, is_open = _signature(model)
    inner, _, inner_is_open = _signature(base)
    if is_open and inner_is_open:
        whole += [name for name in (*_OF_ATTENTION, *_OF_LOSS) if name not in whole]
        inner += [name for name in _OF_ATTENTION if name not in inner]
    usable = [name for name in whole if name not in _LEFT_OUT]
    first = tuple(name for name in usable if name in inner)
    middle = tuple(name for name in first if name not in _EMBEDDED)
    last = tuple(name for name in usable if name not in _EMBEDDED)
    received_as = "inputs_embeds" if "inputs_embeds" in inner else _main_input(model, inner)
    last_received_as: str | None = received_as
    if type(model).__name__.endswith("ForSequenceClassification") and "input_ids" in usable:
        # It looks for the last token that isn't padding.
        last, last_received_as = ("input_ids", *last), None
    elif received_as is not None and received_as not in whole and not is_open:
        raise ValueError(
            f"the forward of {type(model).__name__} must take {received_as}, by which the last "
            f"stage gives its base model a hidden state; it takes {', '.join(whole)}; cut the "
            "model by tracing"
        )
    without_cache = {"use_cache": False} if "use_cache" in inner else {}
    return StageArguments(
        positional=tuple(positional),
        first=first,
        middle=middle,
        last=last,
        received_as=received_as,
        last_received_as=last_received_as,
        fixed=without_cache,
        last_fixed=without_cache if "use_cache" in whole or is_open else {},
    )


def refuse_arguments(model: nn.Module, kwargs: Mapping[str, Any], because: str) -> None:
    """Refuses caches, and what would have to be gathered from all layers.

    Args:
        model: whose config may ask for the latter, too.
        kwargs: of its forward.
        because: why stages can't gather, for the message.

    Raises:
        ValueError: one is asked for.
    """
    config = getattr(model, "config", None)
    for name in _RECORDS:
        if getattr(config, name, False) or kwargs.get(name):
            raise ValueError(f"expected {name}=False, got True: {because}")
    for name in _CACHES:
        if kwargs.get(name) not in (None, False):
            raise ValueError(
                f"expected no {name}, got one: stages don't keep what their layers did for later "
                "tokens; they are for whole sequences"
            )


def _main_input(model: nn.Module, names: list[str]) -> str | None:
    name = getattr(model, "main_input_name", None)
    return name if name in names else None


def _signature(module: nn.Module) -> tuple[list[str], list[str], bool]:
    """All names, those that can be given by position, and whether it takes any."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    by_position = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return by_position + by_name, by_position, any(p.kind is p.VAR_KEYWORD for p in parameters)
