"""The functions of transformers that make attention masks."""

import re
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

_MAKES_MASKS = re.compile(r"create_\w*masks?(_for_generate)?")


def leaf_functions_of(model: nn.Module) -> tuple[Callable[..., Any], ...]:
    """The functions that a trace of `model` is not to look into: those that make its masks.

    They decide by the values of their arguments whether there is a mask at all: traced through they
    give another graph than the plain model runs. For `split(leaf_functions=...)`.
    """
    found: dict[Callable[..., Any], None] = {}
    for name in sorted({type(module).__module__ for module in model.modules()}):
        if not name.startswith("transformers."):
            continue
        for attribute, function in vars(sys.modules[name]).items():
            if callable(function) and _MAKES_MASKS.fullmatch(attribute):
                found[function] = None
    return tuple(found)
