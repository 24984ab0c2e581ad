"""Which sizes and strides of the input an exported graph holds for, as steps that C++ computes."""

import ast
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from pipert.native.error import NativeError

Step = tuple[Any, ...]

_BINARY: dict[type, str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.FloorDiv: "floordiv",
    ast.Mod: "mod",
    ast.Pow: "pow",
    ast.Eq: "eq",
    ast.NotEq: "ne",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
    ast.And: "and",
    ast.Or: "or",
    ast.USub: "neg",
    ast.Not: "not_",
}
_CALLS = {
    "max": "max",
    "min": "min",
    "Max": "max",
    "Min": "min",
    "Mod": "mod",
    "FloorDiv": "floordiv",
}


class SizeConditions:
    """The conditions of a graph.

    Args:
        program: what torch.export gave.
        num_inputs: tensors of the call; the graph's last placeholders.

    Attributes:
        steps: as `csrc/bindings/native_program.h` has them.
        conditions: the steps that must not be 0.

    Raises:
        NativeError: a condition is none of these.
    """

    def __init__(self, program: ExportedProgram, num_inputs: int) -> None:
        self.steps: list[Step] = []
        self.conditions: list[int] = []
        self._known: dict[Step, int] = {}
        self._symbols: dict[str, int] = {}  # the step that gives a symbol's value
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        inputs = [node.meta["val"] for node in placeholders[len(placeholders) - num_inputs :]]
        for index, tensor in enumerate(inputs):
            self._bind_symbols(index, tensor)
        for index, tensor in enumerate(inputs):
            self._check_tensor(index, tensor)
        self._check_ranges(program)
        guards = getattr(program, "_guards_code", None)
        if guards is None and self._symbols:
            raise NativeError("this torch doesn't tell which sizes a graph is for")
        for guard in guards or ():
            self._require(self._parse(guard))

    def _bind_symbols(self, index: int, tensor: Tensor) -> None:
        for kind, values in (("size", tensor.shape), ("stride", tensor.stride())):
            for dimension, value in enumerate(values):
                name = str(value)
                if isinstance(value, torch.SymInt) and name.isidentifier():
                    self._symbols.setdefault(name, self._step(kind, index, dimension))

    def _check_tensor(self, index: int, tensor: Tensor) -> None:
        for dimension, value in enumerate(tensor.shape):
            self._require_equal(self._step("size", index, dimension), value)
        for dimension, value in enumerate(tensor.stride()):
            # Where there is one element, the stride means nothing.
            size = self._step("size", index, dimension)
            is_single = self._step("le", size, self._constant(1))
            stride = self._step("stride", index, dimension)
            expected = self._parse(str(value))
            if stride != expected:
                self._require(self._step("or", is_single, self._step("eq", stride, expected)))

    def _check_ranges(self, program: ExportedProgram) -> None:
        for symbol, bounds in program.range_constraints.items():
            step = self._symbols.get(str(symbol))
            if step is None:  # the graph computes it
                continue
            for comparison, bound in (("ge", bounds.lower), ("le", bounds.upper)):
                if bound.is_Integer and abs(int(bound)) < 2**62:  # not infinite, or as good as
                    self._require(self._step(comparison, step, self._constant(int(bound))))

    def _require_equal(self, step: int, value: Any) -> None:
        expected = self._parse(str(value))
        if expected != step:
            self._require(self._step("eq", step, expected))

    def _require(self, step: int) -> None:
        if step not in self.conditions:
            self.conditions.append(step)

    def _step(self, *step: Any) -> int:
        if step not in self._known:
            self._known[step] = len(self.steps)
            self.steps.append(step)
        return self._known[step]

    def _constant(self, value: int) -> int:
        return self._step("constant", value)

    # --- Python's text of an expression ------------------------------------------------------

    def _parse(self, text: str) -> int:
        try:
            return self._expression(ast.parse(text, mode="eval").body)
        except (SyntaxError, KeyError, TypeError, ValueError) as error:
            raise NativeError(
                f"its graph holds under a condition that isn't known: {text}"
            ) from error

    def _expression(self, node: ast.expr) -> int:
        match node:
            case ast.Constant(value=bool() | int() as value):
                return self._constant(int(value))
            case ast.Name(id=name):
                return self._symbols[name]
            case ast.BinOp(left=left, op=op, right=right):
                return self._step(
                    _BINARY[type(op)], self._expression(left), self._expression(right)
                )
            case ast.UnaryOp(op=op, operand=operand):
                return self._step(_BINARY[type(op)], self._expression(operand))
            case ast.BoolOp(op=op, values=values):
                return self._fold(_BINARY[type(op)], values)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self._step(
                    _BINARY[type(op)], self._expression(left), self._expression(right)
                )
            case ast.Call(func=ast.Name(id=name), args=args):
                return self._fold(_CALLS[name], args)
            case ast.Subscript():
                return self._dimension(node)
        raise ValueError

    def _fold(self, op: str, values: list[ast.expr]) -> int:
        result, *others = [self._expression(value) for value in values]
        for other in others:
            result = self._step(op, result, other)
        return result

    def _dimension(self, node: ast.Subscript) -> int:
        """`L['tensors'][0].size()[1]`."""
        match node:
            case ast.Subscript(
                value=ast.Call(
                    func=ast.Attribute(
                        value=ast.Subscript(slice=ast.Constant(value=int() as tensor)),
                        attr=("size" | "stride") as kind,
                    )
                ),
                slice=ast.Constant(value=int() as dimension),
            ):
                return self._step(kind, tensor, dimension)
        raise ValueError
