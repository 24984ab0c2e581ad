"""Checkpoints of transformers, whose tensors have other names and shapes than its models."""

import copy
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipert.checkpoints.checkpoint_files import CheckpointFiles


def open_checkpoint(model: nn.Module, path: "str | os.PathLike[str]") -> "TransformersCheckpoint":
    """A checkpoint for `materialize`, as `model.save_pretrained` writes it, or as the hub has it.

    Tensors are renamed, stacked and split as `from_pretrained` does it, by transformers' own rules,
    each when a stage asks for it.

    Args:
        model: the whole one; it may be on the meta device.
        path: a folder, a safetensors file, or an index of such files.
    """
    return TransformersCheckpoint(model, CheckpointFiles(path))


@dataclass
class _Recipe:
    """What tensors of the model are made of.

    Attributes:
        first: the name by which transformers knows the outcome.
        sources: names in the files, with the pattern of the rule that each matched.
        rule: None: the one source as it is.
    """

    first: str
    rule: Any = None
    sources: list[tuple[str, str | None]] = field(default_factory=list)


class TransformersCheckpoint:
    """The tensors of a transformers model, made of those in its files when they are asked for.

    Args:
        model: the whole model.
        files: of the checkpoint.

    Attributes:
        names: of the model's tensors that it has.
    """

    def __init__(self, model: nn.Module, files: CheckpointFiles) -> None:
        self._files = files
        self._config = model.config
        self._recipes = _recipes(model, files.names)
        self.names = self._recipes.keys()
        self._made: tuple[_Recipe, Mapping[str, Tensor]] | None = None

    @property
    def bytes_read(self) -> int:
        """Of the files, so far."""
        return self._files.bytes_read

    def check(self, name: str, target: Tensor) -> None:
        """Checks a tensor that is in the files as it is. Others show when they are made."""
        recipe = self._recipes[name]
        if recipe.rule is None:
            self._files.check(recipe.sources[0][0], target)

    def read_into(self, name: str, target: Tensor) -> None:
        """Copies the tensor into `target`.

        Raises:
            ValueError: it has another shape.
        """
        recipe = self._recipes[name]
        if recipe.rule is None:
            self._files.read_into(recipe.sources[0][0], target)
            return
        if self._made is None or self._made[0] is not recipe:
            self._made = (recipe, self._make(recipe))
        made = self._made[1].get(name)
        if made is None or made.shape != target.shape:
            raise ValueError(
                f"{name} must have shape {tuple(target.shape)}, got "
                f"{None if made is None else tuple(made.shape)} of {recipe.sources[0][0]} and "
                f"{len(recipe.sources) - 1} more"
            )
        with torch.no_grad():
            target.copy_(made)

    def close(self) -> None:
        """Closes the files; they open again when they are asked."""
        self._made = None
        self._files.close()

    def _make(self, recipe: _Recipe) -> Mapping[str, Tensor]:
        rule = copy.deepcopy(recipe.rule)
        for source, pattern in recipe.sources:
            rule.add_tensor(recipe.first, source, pattern, self._files.read(source))
        made = rule.convert(recipe.first, model=None, config=self._config)
        return {name: of[0] if isinstance(of, list) else of for name, of in made.items()}


def _recipes(model: Any, given: Iterable[str]) -> dict[str, _Recipe]:
    """By name in the model. Names that it ignores are left out; others that it lacks are kept."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        dot_natural_key,
        rename_source_key,
    )

    state = dict(model.state_dict())
    rules = get_model_conversion_mapping(model)
    renamings: list[Any] = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    converters: list[Any] = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    recipes: dict[str, _Recipe] = {}
    for source in sorted(given, key=dot_natural_key):
        prefix = model.base_model_prefix
        name, pattern = rename_source_key(source, renamings, converters, prefix, state)
        if name not in state and source in state:
            name, pattern = source, None
        if name not in state and _is_ignored(model, source, name):
            continue
        recipe = recipes.setdefault(name, _Recipe(name, by_pattern.get(pattern or "")))
        recipe.sources.append((source, pattern))
        if recipe.rule is not None:
            for other in recipe.rule.target_patterns[1:]:
                recipes[name.replace(recipe.rule.target_patterns[0], other)] = recipe
    return recipes


def _is_ignored(model: Any, *names: str) -> bool:
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns for name in names)
