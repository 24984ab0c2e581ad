"""Losses: what a Pipeline takes for its loss function, beside a function."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from pipert.signatures import needs_target


def loss_of_output(output: Any) -> Tensor:
    """The loss that the model itself returns, as transformers' models do if given labels.

    It is the output's `.loss`, its entry "loss", its first element, or itself.

    Raises:
        TypeError, ValueError: there is none in the output.
    """
    loss = output
    if isinstance(output, Mapping):
        loss = output.get("loss")
    elif isinstance(output, tuple | list):
        loss = output[0] if output else None
    elif not isinstance(output, Tensor):
        loss = getattr(output, "loss", None)
    if loss is None:
        raise ValueError(
            f"loss_fn='output' needs a loss in the model's output, a {type(output).__name__}: "
            "expected .loss, ['loss'] or a first element, got none (were labels given?)"
        )
    if not isinstance(loss, Tensor):
        raise TypeError(
            "loss_fn='output' needs a tensor for the loss in the model's output, got "
            f"{type(loss).__name__}"
        )
    return loss


class SeveralLosses(nn.Module):
    """Several loss functions, whose losses are added up; each is a metric too.

    Args:
        functions: by name.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Tensor]]) -> None:
        super().__init__()
        self._functions = dict(functions)
        for index, function in enumerate(self._functions.values()):
            if isinstance(function, nn.Module):
                self.add_module(str(index), function)

    def forward(self, output: Any, *target: Any, **loss_kwargs: Any) -> dict[str, Tensor]:
        """The losses of one microbatch, by name."""
        return {
            name: function(output, *target, **loss_kwargs)
            for name, function in self._functions.items()
        }

    def needs_target(self) -> bool:
        """Whether one of the functions must be given a target."""
        return any(needs_target(function) for function in self._functions.values())


def make_loss(loss_fn: Any) -> Callable[..., Any] | None:
    """What computes the loss, of what the user gave.

    Args:
        loss_fn: a function or module, a dict of them, "output", or None.

    Raises:
        TypeError, ValueError: it is something else.
    """
    if isinstance(loss_fn, str):
        if loss_fn != "output":
            raise ValueError(f"loss_fn must be 'output' if it is a word, got {loss_fn!r}")
        return loss_of_output
    if isinstance(loss_fn, Mapping):
        if not loss_fn:
            raise ValueError("loss_fn must have at least one loss function, got an empty dict")
        for name in loss_fn:
            if not isinstance(name, str):
                raise TypeError(f"loss_fn must have losses by name, got the key {name!r}")
            _as_function(loss_fn[name], f"loss_fn[{name!r}]")
        return SeveralLosses(loss_fn)
    return None if loss_fn is None else _as_function(loss_fn, "loss_fn")


def loss_needs_target(loss_fn: Callable[..., Any]) -> bool:
    """Whether it must be given one. Of what `make_loss` has made."""
    return loss_fn.needs_target() if isinstance(loss_fn, SeveralLosses) else needs_target(loss_fn)


def _as_function(given: Any, what: str) -> Callable[..., Any]:
    if callable(given) and not isinstance(given, type):
        function: Callable[..., Any] = given
        return function
    name = given.__name__ if isinstance(given, type) else type(given).__name__
    raise TypeError(f"{what} must be a function or a module (not a class of modules), got {name}")
