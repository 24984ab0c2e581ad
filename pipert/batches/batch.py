"""Batch: what a caller gives to one pass."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple


class Microbatch(NamedTuple):
    """One entry of `Pipeline.step(microbatches=[...])`, with arguments by position and by name.

    Attributes:
        args: by position.
        kwargs: by name.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = MappingProxyType({})


class Batch(NamedTuple):
    """The arguments of `Pipeline.step`, unchecked; it says what each of them means."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any = None
    loss_kwargs: Mapping[str, Any] | None = None
    microbatches: Sequence[Any] | None = None
    loss_weights: Sequence[float] | None = None
    global_count: float | None = None

    @property
    def is_cut(self) -> bool:
        """Whether it came as microbatches."""
        return self.microbatches is not None

    def arguments(self) -> tuple[Any, Any]:
        """Positional and keyword arguments; if it is cut, a list of each, by microbatch.

        Raises:
            ValueError, TypeError: there is no telling which microbatch gets what.
        """
        if self.microbatches is None:
            return self.args or None, self.kwargs or None
        if self.args or self.kwargs:
            raise ValueError("expected microbatches or arguments of the batch, got both")
        if not isinstance(self.microbatches, Sequence) or isinstance(self.microbatches, str):
            raise TypeError(
                f"microbatches must be a sequence with one entry for each, got "
                f"{type(self.microbatches).__name__}"
            )
        args: list[Any] = []
        kwargs: list[Any] = []
        for index, microbatch in enumerate(self.microbatches):
            if isinstance(microbatch, Microbatch):
                _check_kinds(microbatch, index)
                args.append(microbatch.args)
                kwargs.append(dict(microbatch.kwargs))
            elif isinstance(microbatch, dict):
                args.append(())
                kwargs.append(microbatch)
            else:
                args.append(microbatch if isinstance(microbatch, tuple) else (microbatch,))
                kwargs.append({})
        return args, kwargs


def _check_kinds(microbatch: Microbatch, index: int) -> None:
    args, kwargs = microbatch
    if not isinstance(args, tuple) or not isinstance(kwargs, Mapping):
        raise TypeError(
            f"microbatches[{index}] must have a tuple of args and a dict of kwargs, got "
            f"{type(args).__name__} and {type(kwargs).__name__}"
        )
