"""What a traced stage expects of the batch: that what the trace took for constant is so."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx


def expect_constant(name: str, got: Any, expected: Any) -> None:
    """Refuses another value of an argument than the model was split with.

    Raises:
        ValueError: says both.
    """
    if type(got) is not type(expected) or got != expected:
        raise ValueError(
            f"expected {name}={expected!r}, which the model was split with, got {_short(got)}: "
            "split it once more with the other one"
        )


def expect_sizes(name: str, got: Tensor, expected: tuple[int | None, ...]) -> None:
    """Refuses another size where the model made a constant of it.

    Args:
        name: of the argument.
        got: the argument.
        expected: the size of each dimension; None: any.

    Raises:
        ValueError: says both.
    """
    sizes = tuple(got.shape)
    if len(sizes) != len(expected) or any(
        wanted is not None and size != wanted for size, wanted in zip(sizes, expected, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(
            f"expected {name} of shape ({wanted}), which the model was split for, got {sizes}: "
            "split it once more with an example of that size"
        )


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return repr(value)


fx.node.has_side_effect(expect_constant)
fx.node.has_side_effect(expect_sizes)
