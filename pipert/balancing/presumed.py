"""Presumed: what a forward on the meta device finds where it asks for the value of a truth."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Presumed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every truth that is asked for is true: of a padding mask, that nothing is masked.

    So a model that looks at its mask's values to choose how to compute is estimated at full rows.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs an operator, or answers."""
        is_asked = func is torch.ops.aten._local_scalar_dense.default
        if is_asked and args[0].is_meta and args[0].dtype is torch.bool:
            return True
        return func(*args, **(kwargs or {}))
