"""Merging: the outputs of microbatches, put together as their spec says."""

import copy
import dataclasses
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipert.batches.specs import Spec


def merge_outputs(pieces: Sequence[Any], spec: Spec) -> Any:
    """Puts the microbatches' outputs together.

    Without a spec, tensors are concatenated along dimension 0, those without dimensions stacked;
    tuples, lists, dicts and dataclasses are merged element by element, and stay what they are;
    anything else, and what doesn't fit together, becomes a list of its values.

    Args:
        pieces: by microbatch, at least one.
        spec: of the output.

    Raises:
        ValueError: the spec doesn't fit the outputs; the message says where.
    """
    if spec.kind != "default":
        return _merge(pieces, spec, "the output")
    try:
        return _merge(pieces, spec, "the output")
    except (RuntimeError, TypeError, ValueError, KeyError):  # of different shapes or structures
        return list(pieces)


def _merge(pieces: Sequence[Any], spec: Spec, what: str) -> Any:
    first = pieces[0]
    if spec.kind == "custom":
        return spec.rest(list(pieces))
    if spec.kind == "whole":
        return first
    _check_kinds(pieces, what)
    if isinstance(first, Tensor):
        _check_leaf(spec, what, "a tensor")
        return _join(pieces, spec, what)
    if _kind(first) is Mapping:
        named = [_named(piece) for piece in pieces]
        _check_keys(spec, named, what)
        return _with(
            first,
            {
                key: _merge([p[key] for p in named], _part(spec, key), f"{what}[{key!r}]")
                for key in named[0]
            },
        )
    if isinstance(first, tuple | list):
        names = list(getattr(first, "_fields", ()))
        _check_elements(spec, first, names, what)
        each = [
            _merge(list(values), _part(spec, names[i] if names else i, i), f"{what}[{i}]")
            for i, values in enumerate(zip(*pieces, strict=True))
        ]
        return type(first)(*each) if names else type(first)(each)
    _check_leaf(spec, what, f"a {type(first).__name__}")
    return list(pieces)


def _join(pieces: Sequence[Tensor], spec: Spec, what: str) -> Tensor:
    if pieces[0].dim() == 0:
        return torch.stack(list(pieces))
    if spec.kind == "default":
        return torch.cat(list(pieces))
    try:
        return torch.cat(list(pieces), dim=spec.dim)
    except (RuntimeError, IndexError) as error:
        shapes = ", ".join(str(list(piece.shape)) for piece in pieces[:3])
        raise ValueError(
            f"{spec.name} puts {what} together along dimension {spec.dim}, the microbatches' are "
            f"of shapes {shapes}{', ...' if len(pieces) > 3 else ''}"
        ) from error


def _part(spec: Spec, key: Any, position: int = 0) -> Spec:
    """The spec of an element; below a leaf, the leaf."""
    part = spec
    if spec.kind == "named":
        part = spec.rest.get(key, Spec("default", spec.name))
    elif spec.kind == "sequence":
        part = spec.rest[position]
    return part


def _check_kinds(pieces: Sequence[Any], what: str) -> None:
    if len(set(map(type, pieces))) == 1:
        return
    for index, piece in enumerate(pieces):
        if _kind(piece) is not _kind(pieces[0]):
            raise ValueError(
                f"{what} of microbatch {index} is a {type(piece).__name__}, that of microbatch 0 "
                f"a {type(pieces[0]).__name__}"
            )


def _kind(value: Any) -> type | None:
    """Of what is merged inside; None: it becomes an entry of a list, whatever it is."""
    if isinstance(value, Tensor):
        return Tensor
    if isinstance(value, Mapping) or _has_fields(value):
        return Mapping
    return type(value) if isinstance(value, tuple | list) else None


def _has_fields(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _named(value: Any) -> Mapping[Any, Any]:
    """The elements of a dict, or the fields of a dataclass."""
    if isinstance(value, Mapping):  # some are dataclasses as well
        return value
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def _with(first: Any, elements: Mapping[Any, Any]) -> Any:
    """One like `first`, with these elements."""
    if type(first) is dict:
        return elements
    merged = copy.copy(first)
    for key, element in elements.items():
        if isinstance(merged, MutableMapping):
            merged[key] = element
        else:
            object.__setattr__(merged, key, element)  # of frozen ones too
    return merged


def _check_leaf(spec: Spec, what: str, kind: str) -> None:
    if spec.kind in ("named", "sequence"):
        raise ValueError(f"{spec.name} has specs for elements, {what} is {kind}")


def _check_keys(spec: Spec, pieces: Sequence[Mapping[Any, Any]], what: str) -> None:
    if spec.kind == "sequence":
        raise ValueError(f"{spec.name} has specs by position, {what} is a dict")
    keys = ", ".join(map(repr, pieces[0])) or "nothing"
    for key in spec.rest if spec.kind == "named" else ():
        if key not in pieces[0]:
            raise ValueError(f"{spec.name} has a spec for {key!r}, {what} has {keys}")
    for index, piece in enumerate(pieces):
        if piece.keys() != pieces[0].keys():
            raise ValueError(
                f"{what} of microbatch {index} has {', '.join(map(repr, piece))}, that of "
                f"microbatch 0 has {keys}"
            )


def _check_elements(spec: Spec, first: Sequence[Any], names: Sequence[str], what: str) -> None:
    if spec.kind == "sequence" and len(spec.rest) != len(first):
        raise ValueError(
            f"{spec.name} has specs for {len(spec.rest)} elements, {what} has {len(first)}"
        )
    if spec.kind == "named":
        for key in spec.rest:
            if key not in names:
                kind = "its elements have no names" if not names else f"has {', '.join(names)}"
                raise ValueError(f"{spec.name} has a spec for {key!r}, {what}: {kind}")
