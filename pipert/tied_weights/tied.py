"""Tied: one parameter that several stages use, found or declared."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Tied:
    """One parameter that several stages use.

    Attributes:
        uses: (stage, the parameter's name in the unpartitioned model), by stage, at least two. The
            first one's stage owns it, and its name is the parameter's.
    """

    uses: tuple[tuple[int, str], ...]


def find_ties(modules: Iterable[Any], prefixes: Sequence[str] | None = None) -> list[Tied]:
    """The parameters that several of these have as one object.

    Args:
        modules: by stage; what isn't a module has no parameters.
        prefixes: of the names of each stage's parameters; None: there are none.
    """
    uses: dict[nn.Parameter, list[tuple[int, str]]] = {}
    for stage, module in enumerate(modules):
        if isinstance(module, nn.Module):
            prefix = "" if prefixes is None else prefixes[stage]
            for name, parameter in module.named_parameters(remove_duplicate=False):
                first = getattr(parameter, "twin_of", parameter)  # see Ties
                uses.setdefault(first, []).append((stage, prefix + name))
    return [Tied(tuple(of)) for of in uses.values() if len({stage for stage, _ in of}) > 1]


def merge_ties(ties: Iterable[Tied]) -> tuple[Tied, ...]:
    """The same, those that have a use in common made one, in the order of their first uses."""
    merged: list[list[tuple[int, str]]] = []
    for tied in ties:
        uses = list(tied.uses)
        for other in [other for other in merged if not set(other).isdisjoint(uses)]:
            merged.remove(other)
            uses = other + uses
        merged.append(list(dict.fromkeys(uses)))
    return tuple(
        Tied(tuple(sorted(uses, key=lambda use: use[0]))) for uses in sorted(merged, key=min)
    )


def check_ties(ties: Iterable[Tied], names: Sequence[Sequence[str]]) -> list[Tied]:
    """The same ties.

    Args:
        ties: as they were declared.
        names: of parameters, by stage.

    Raises:
        ValueError: they aren't ties, or name what isn't there.
    """
    ties = list(ties)
    for tied in ties:
        if len(set(tied.uses)) < 2:
            raise ValueError(f"a tied parameter must have two uses at least, got {tied.uses}")
        for stage, name in tied.uses:
            if not 0 <= stage < len(names):
                raise ValueError(
                    f"a tied parameter must be used by stages from 0 to {len(names) - 1}, got "
                    f"{name} in stage {stage}"
                )
            if name not in names[stage]:
                raise ValueError(
                    f"stage {stage} has no parameter {name} that could be tied"
                    + near_names(name, names[stage])
                )
    return ties


def near_names(name: str, names: Iterable[str]) -> str:
    """The end of an error message, about names that are like this one; empty where none is."""
    near = difflib.get_close_matches(name, names, n=3)
    return f": did you mean {' or '.join(near)}?" if near else ""
