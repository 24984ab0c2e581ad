"""Stand-ins for the modules of other stages: they hand a stage's first layer its hidden state."""

import copy
import threading
from typing import Any

from torch import Tensor, nn


class HandOver(threading.local):
    """The hidden state that a stage's stand-ins give, while its forward runs on this thread."""

    hidden: Tensor | None = None
    was_taken = False

    def giving(self, hidden: Tensor) -> "_Giving":
        """While the context lasts, `hidden` is what the stand-ins give."""
        return _Giving(self, hidden)

    def take(self) -> Tensor:
        """The hidden state."""
        assert self.hidden is not None
        return self.hidden

    def enter(self) -> Tensor:
        """The hidden state, for the stage's first layer."""
        self.was_taken = True
        return self.take()

    def __reduce__(self) -> Any:
        return HandOver, ()


class _Giving:
    def __init__(self, hand_over: HandOver, hidden: Tensor) -> None:
        self._hand_over, self._hidden = hand_over, hidden

    def __enter__(self) -> None:
        self._hand_over.hidden, self._hand_over.was_taken = self._hidden, False

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self._hand_over.hidden = None
        if kind is None and not self._hand_over.was_taken:
            raise RuntimeError(
                "the model's forward left out the layer before the stage's first: expected a model "
                "that runs all of its layers (no layer dropping)"
            )


class StandIn(nn.Module):
    """Stands for a module of another stage, at its place.

    Args:
        shape: a copy of that module on the meta device, for who asks for its attributes.
        returns_tuple: whether that module returns a tuple.
    """

    def __init__(self, shape: nn.Module, returns_tuple: bool = False) -> None:
        super().__init__()
        self.__dict__["_shape"] = shape
        self._returns_tuple = returns_tuple

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The hidden state as it came."""
        value = args[0] if args else kwargs.get("hidden_states")
        return (value, None) if self._returns_tuple else value

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return getattr(self.__dict__["_shape"], name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "StandIn":
        memo[id(self.__dict__["_shape"])] = self.__dict__["_shape"]  # nobody writes to it
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied


class Giver(StandIn):
    """Stands for a module before the stage's first layer: gives the hidden state.

    Args:
        shape, returns_tuple: as of a StandIn.
        hand_over: has the hidden state.
        is_entry: whether the stage's first layer is the next.
    """

    def __init__(
        self,
        shape: nn.Module,
        hand_over: HandOver,
        is_entry: bool = False,
        returns_tuple: bool = False,
    ) -> None:
        super().__init__(shape, returns_tuple)
        self._hand_over = hand_over
        self._is_entry = is_entry

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The hidden state of the stage before."""
        value = self._hand_over.enter() if self._is_entry else self._hand_over.take()
        return (value, None) if self._returns_tuple else value


class Entry:
    """A forward pre-hook of the model's first layer, where a later stage begins with it.

    Args:
        hand_over: has the hidden state.
    """

    def __init__(self, hand_over: HandOver) -> None:
        self._hand_over = hand_over

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments, with the hidden state as the first."""
        hidden = self._hand_over.enter()
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}
