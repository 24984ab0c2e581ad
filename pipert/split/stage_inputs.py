"""StageInputs: what a stage is called with, in its code."""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from pipert.split.example import Argument
from pipert.split.expected import expect_constant, expect_sizes
from pipert.split.sizes import constant_size
from pipert.split.stage_code import IN_CODE, StageCode
from pipert.split.stage_part import StagePart
from pipert.split.trace import Trace


class StageInputs:
    """Writes the beginning of a stage's code.

    Args:
        code: the stage's.
        trace: the whole.
        part: the stage's.
    """

    def __init__(self, code: StageCode, trace: Trace, part: StagePart) -> None:
        self._code = code
        self._graph = code.graph
        self._trace = trace
        self._part = part

    def take_values(self, names: Mapping[fx.Node, str]) -> None:
        """Positional arguments: values of other stages, by name."""
        reserved = {self._trace.arguments[node].name for node in self._part.arguments}
        reserved |= {argument.name for argument in self._trace.fixed}
        for node in self._part.inputs:
            name = re.sub(r"\W+", "_", names[node]).strip("_")
            while name in reserved or keyword.iskeyword(name) or not name.isidentifier():
                name = f"_{name}"
            reserved.add(name)
            made = self._graph.placeholder(name)
            if node in self._part.copies:
                made = self._graph.call_method("clone", (made,))
            self._code.take(node, made)

    def take_arguments(self, fixed: Sequence[Argument], first_read: set[fx.Node]) -> None:
        """Keyword arguments: of the batch.

        Args:
            fixed: those that the trace has made constants of, to be checked.
            first_read: those whose sizes are to be checked.
        """
        free = [(self._trace.arguments[node], node) for node in self._part.arguments]
        placeholders: dict[str, fx.Node] = {}
        for argument in [*(argument for argument, _ in free), *fixed]:
            if argument.name not in placeholders:
                placeholders[argument.name] = self._graph.placeholder(argument.name)
        for argument in fixed:
            self._expect(argument, self._inside(placeholders[argument.name], argument.path))
        for argument, node in free:
            made = self._inside(placeholders[argument.name], argument.path)
            self._code.take(node, made)
            if node in first_read and isinstance(argument.value, Tensor):
                sizes = tuple(map(constant_size, argument.value.shape))
                if sizes != (None,) * len(sizes):
                    self._graph.call_function(expect_sizes, (str(argument), made, sizes))

    def take_stand_ins(self) -> None:
        """What stands for tensors that the stage hasn't."""
        for node, stand_in in self._part.stand_ins.items():
            self._code.let_stand(node, stand_in)

    def _expect(self, argument: Argument, got: fx.Node) -> None:
        value = argument.value
        if isinstance(value, torch.SymInt):
            value = constant_size(value)
        if type(value) in IN_CODE:
            self._graph.call_function(expect_constant, (str(argument), got, value))

    def _inside(self, value: fx.Node, path: Sequence[Any]) -> fx.Node:
        """What lies in an argument, by pytree's keys."""
        for key in path:
            if isinstance(key, pytree.GetAttrKey):
                value = self._graph.call_function(getattr, (value, key.name))
            else:
                index = key.idx if isinstance(key, pytree.SequenceKey) else key.key
                value = self._graph.call_function(operator.getitem, (value, index))
        return value
