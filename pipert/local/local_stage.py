"""LocalStage: one stage of this process, made of what the user gave."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipert._C import Placement
from pipert.local.copies import LocalCopies
from pipert.signatures import is_builder, keywords_of, required_keywords
from pipert.stages import Stages


@dataclass
class LocalStage:
    """One stage of this process.

    Attributes:
        index: its number in the pipeline.
        piece: its number in the model: the same in both copies of it, if there are two.
        is_first: whether it is where its copy begins.
        is_last: whether it is where its copy ends.
        call: the module or function.
        prefix: what stands before its parameters' names in the unpartitioned model.
        spread: whether a tuple from the stage before becomes several positional arguments.
        keywords: the keyword arguments that it takes; None: any.
        required: those of them that a wired stage must be given.
    """

    index: int
    piece: int
    is_first: bool
    is_last: bool
    call: Callable[..., Any]
    prefix: str
    spread: bool
    keywords: list[str] | None = None
    required: Sequence[str] = ()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names as in the unpartitioned model."""
        if isinstance(self.call, nn.Module):
            for name, parameter in self.call.named_parameters():
                yield self.prefix + name, parameter

    def state_dict(self) -> dict[str, Tensor]:
        """Names as in the unpartitioned model."""
        if not isinstance(self.call, nn.Module):
            return {}
        return {self.prefix + name: value for name, value in self.call.state_dict().items()}


def make_stage(stages: Sequence[Any], index: int, placement: Placement) -> LocalStage:
    """Makes stage `index` of the pipeline of what the user gave; runs its builder if it is one.

    Raises:
        TypeError: it is neither a module, a function nor a builder of one.
    """
    piece = index % placement.stages_per_copy
    given = stages[piece]
    call = given() if is_builder(given) else given
    if not callable(call):
        raise TypeError(
            f"stages[{piece}] must be a module, a function, or a function without arguments that "
            f"builds one; got {type(call).__name__}"
        )
    # nn.Sequential takes exactly one value, so a tuple is one value to it.
    spread = not isinstance(call, nn.Sequential)
    keywords, required = keywords_of(call, placement.is_first(index)), []
    if isinstance(stages, Stages) and stages.specs is not None:
        spread = True
        keywords = list(stages.specs[piece].arguments)
        required = required_keywords(call, keywords)
    return LocalStage(
        index=index,
        piece=piece,
        is_first=placement.is_first(index),
        is_last=placement.is_last(index),
        call=call,
        prefix="" if isinstance(stages, Stages) else f"{piece}.",
        spread=spread,
        keywords=keywords,
        required=required,
    )


def make_second(
    first: LocalStage,
    index: int,
    placement: Placement,
    copies: LocalCopies,
    device: torch.device,
) -> LocalStage:
    """Makes stage `index`, the second copy of `first`. A function serves as both."""
    call = first.call
    if isinstance(call, nn.Module):
        call = copies.add(call, first.piece, device)
    return replace(
        first,
        index=index,
        is_first=placement.is_first(index),
        is_last=placement.is_last(index),
        call=call,
    )
