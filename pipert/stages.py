"""The stages of a pipeline: what users give, and what one process makes of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipert._C import Placement
from pipert.copies import LocalCopies
from pipert.signatures import is_builder, keywords_of


class Stages(Sequence[Any]):
    """The pieces of a model in order, with the names that their parameters have in it.

    What `pipert.split` returns. Any sequence of modules, functions or builders does as well.

    Attributes:
        names: by stage, the names of its parameters and buffers in the unpartitioned model.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = tuple(modules)
        self.names = [list(module.state_dict(keep_vars=True)) for module in self._modules]

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: Any) -> Any:
        return self._modules[index]

    def __str__(self) -> str:
        rows = [
            f"stage {i}: {sum(p.numel() for p in module.parameters())} parameters in "
            + ", ".join(name for name, _ in leaf_children(module))
            for i, module in enumerate(self._modules)
        ]
        return "\n".join(rows)


def leaf_children(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The children of nested Sequentials, by path."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if type(child) is nn.Sequential and len(child) > 0:
            yield from leaf_children(child, f"{path}.")
        else:
            yield path, child


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
    """

    index: int
    piece: int
    is_first: bool
    is_last: bool
    call: Callable[..., Any]
    prefix: str
    spread: bool
    keywords: list[str] | None = None

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
    is_sequential = isinstance(call, nn.Sequential)
    return LocalStage(
        index=index,
        piece=piece,
        is_first=placement.is_first(index),
        is_last=placement.is_last(index),
        call=call,
        prefix="" if isinstance(stages, Stages) else f"{piece}.",
        # nn.Sequential takes exactly one value, so a tuple is one value to it.
        spread=not is_sequential,
        keywords=keywords_of(call, placement.is_first(index)),
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


def check_tied(stages: Sequence[Any], placement: Placement) -> None:
    """Refuses a weight that stages in different processes share: each would train its own copy.

    Builders are not looked into.

    Raises:
        ValueError: names the stages.
    """
    owners: dict[nn.Parameter, int] = {}
    for index, stage in enumerate(stages):
        if not isinstance(stage, nn.Module):
            continue
        for name, parameter in stage.named_parameters():
            owner = owners.setdefault(parameter, index)
            size = placement.stages_per_copy
            if any(
                placement.rank_of(begin + owner) != placement.rank_of(begin + index)
                for begin in range(0, placement.num_stages, size)
            ):
                raise ValueError(
                    f"stages {owner} and {index} share the weight {name}, and are in different "
                    "processes: expected stages with weights of their own, or one process"
                )
