"""Tied: one parameter that several stages use, found or declared."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipert.near_names import near_names

_EXPECTED_GROUPS = (
    "tied must be groups of names of one parameter, such as [('embed.weight', 'head.weight')]"
)


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


def ties_by_name(groups: Iterable[Sequence[str]], names: Sequence[Sequence[str]]) -> list[Tied]:
    """The parameters that are declared to be one, by their names in the unpartitioned model.

    Args:
        groups: of names, each of one parameter.
        names: of parameters, by stage.

    Raises:
        TypeError, ValueError: a group isn't one, or names what isn't there.
    """
    if isinstance(groups, str) or not isinstance(groups, Iterable):
        raise TypeError(f"{_EXPECTED_GROUPS}; got {groups!r}")
    known = {name: None for of in names for name in of}
    ties = []
    for group in groups:
        if isinstance(group, str) or not all(isinstance(name, str) for name in group):
            raise TypeError(f"{_EXPECTED_GROUPS}; got {group!r}")
        if len(set(group)) < 2:
            raise ValueError(f"tied must have two names at least of each parameter, got {group}")
        for name in group:
            if name not in known:
                raise ValueError(
                    f"tied must name parameters of the model: got {name!r}, which no stage has"
                    + near_names(name, known)
                )
        uses = [(stage, name) for stage, of in enumerate(names) for name in of if name in group]
        ties.append(Tied(tuple(uses)))
    return ties
