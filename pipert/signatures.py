"""What the signatures of the user's functions say: what must be given, and what may be."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn


def is_builder(given: Any) -> bool:
    """Whether it is a class of modules, or a function that can't take a stage's input."""
    if isinstance(given, type):
        return issubclass(given, nn.Module)
    if isinstance(given, nn.Module) or not callable(given):
        return False
    try:
        parameters = inspect.signature(given).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    return not any(p.kind is p.VAR_POSITIONAL or _is_required(p) for p in parameters)


def takes_two(function: Callable[..., Any]) -> bool:
    """Whether it can be called with two positional arguments, as far as it tells."""
    try:
        inspect.signature(function).bind(None, None)
    except ValueError:  # a builtin without a signature
        return True
    except TypeError:
        return False
    return True


def keywords_of(call: Callable[..., Any], is_first: bool) -> list[str] | None:
    """The keyword arguments that a stage takes; None: any.

    Those after the first stage don't take the name that the stage before fills by position.
    """
    try:
        parameters = list(inspect.signature(_forward(call)).parameters.values())
    except (TypeError, ValueError):
        return None
    by_position = inspect.Parameter.POSITIONAL_OR_KEYWORD
    if not is_first and parameters and parameters[0].kind is by_position:
        parameters = parameters[1:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in named]


def required_keywords(call: Callable[..., Any], names: Iterable[str]) -> list[str]:
    """Those of `names` that it must be given: parameters without a default."""
    try:
        parameters = inspect.signature(_forward(call)).parameters
    except (TypeError, ValueError):
        return []
    return [
        n for n in names if n in parameters and parameters[n].default is inspect.Parameter.empty
    ]


def takes_keywords(
    call: Callable[..., Any], kwargs: Mapping[str, Any], is_first: bool
) -> dict[str, Any]:
    """Of keyword arguments, those that a stage takes."""
    names = keywords_of(call, is_first)
    return {name: kwargs[name] for name in kwargs if names is None or name in names}


def parameter_names(call: Callable[..., Any]) -> list[str]:
    """The names of all parameters; none where there is no signature."""
    try:
        return list(inspect.signature(_forward(call)).parameters)
    except (TypeError, ValueError):
        return []


_CONTEXT_KEYWORDS = ("is_first_microbatch", "is_last_microbatch", "microbatch_index")


def context_keywords(call: Callable[..., Any]) -> list[str]:
    """What it asks for of its microbatch, by the names of its parameters."""
    try:
        parameters = inspect.signature(_forward(call)).parameters
    except (TypeError, ValueError):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [n for n in _CONTEXT_KEYWORDS if n in parameters and parameters[n].kind in named]


def needs_target(loss_fn: Callable[..., Any]) -> bool:
    """Whether the loss function must be given a second positional argument."""
    try:
        parameters = inspect.signature(_forward(loss_fn)).parameters.values()
    except (TypeError, ValueError):
        return True
    return sum(_is_required(p) for p in parameters) >= 2


def _forward(call: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(call, nn.parallel.DistributedDataParallel):  # hands on whatever it gets
        call = call.module
    return call.forward if isinstance(call, nn.Module) else call


def _is_required(parameter: inspect.Parameter) -> bool:
    positional = (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind in positional
