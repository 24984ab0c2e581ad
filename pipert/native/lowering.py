"""From torch.export's graph to the plain tuples that `csrc/bindings/native_program.h` describes."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from pipert import _C
from pipert.native.error import NativeError
from pipert.native.layer_marks import MARK

Argument = tuple[str, Any]

_SCALARS: dict[Any, str] = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.floordiv: "floordiv",
    operator.truediv: "truediv",
    operator.mod: "mod",
    operator.pow: "pow",
    operator.neg: "neg",
    operator.eq: "eq",
    operator.ne: "ne",
    operator.lt: "lt",
    operator.le: "le",
    operator.gt: "gt",
    operator.ge: "ge",
    operator.and_: "and_",
    operator.or_: "or_",
    abs: "abs",
    math.trunc: "int",
    torch.sym_max: "max",
    torch.sym_min: "min",
    torch.sym_not: "not_",
    torch.sym_float: "float",
    torch._sym_sqrt: "sqrt",  # type: ignore[attr-defined]
}

# What holds by the input's signature.
_CHECKS = {torch.ops.aten._assert_tensor_metadata.default}


@dataclass
class Lowered:
    """What `_C.NativeGraph` is made of."""

    num_registers: int
    instructions: list[tuple[Any, ...]] = field(default_factory=list)
    outputs: list[Argument] = field(default_factory=list)


def lower(
    program: ExportedProgram,
    num_inputs: int,
    parameters: Sequence[str],
    constants: dict[str, Tensor],
    layers: Sequence[_C.LayerHook],
) -> Lowered:
    """Lowers a graph. Registers: the inputs, then the parameters, then what is computed.

    Args:
        program: what torch.export gave.
        num_inputs: tensors of the call; the graph's last placeholders.
        parameters: placeholders that are read from the module at each pass.
        constants: by placeholder.
        layers: hooks, by index of their marks in the graph.

    Raises:
        NativeError: the graph has something that C++ doesn't run.
    """
    lowering = _Lowering(num_inputs + len(parameters), layers)
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    inputs = placeholders[len(placeholders) - num_inputs :]
    for index, node in enumerate(inputs):
        lowering.values[node] = ("register", index)
    indices = {name: num_inputs + index for index, name in enumerate(parameters)}
    for node in placeholders[: len(placeholders) - num_inputs]:
        if node.name in indices:
            lowering.values[node] = ("register", indices[node.name])
        else:
            lowering.values[node] = ("constant", constants[node.name])
    lowering.result.outputs = lowering.run(program.graph_module)
    if lowering.num_entered != len(layers):
        raise NativeError("its graph doesn't say where its layers begin")
    return lowering.result


class _Lowering:
    def __init__(self, num_registers: int, layers: Sequence[_C.LayerHook]) -> None:
        self.values: dict[fx.Node, Any] = {}  # an argument, or a list of several results
        self.result = Lowered(num_registers)
        self.layers = layers
        self.num_entered = 0

    def run(self, module: fx.GraphModule) -> list[Argument]:
        """Appends the instructions of a graph whose placeholders have values."""
        for node in module.graph.nodes:
            if node.op == "output":
                return [self._argument(value) for value in _flat(node.args[0])]
            if node.op == "get_attr":
                self.values[node] = _attribute(module, str(node.target))
            elif node.op == "call_function":
                self._call(node)
            elif node.op != "placeholder":
                raise NativeError(f"its graph has a {node.op}")
        raise NativeError("its graph has no output")

    def _call(self, node: fx.Node) -> None:
        target: Any = node.target
        if isinstance(target, torch._ops.OpOverload):
            self._operator(node, target)
        elif target is operator.getitem:
            self._item(node)
        elif target in _SCALARS:
            arguments = [self._argument(value) for value in node.args]
            output = self._register(node)
            self.result.instructions.append(("scalar", _SCALARS[target], arguments, [output]))
        elif target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            self._inline(node, ("grad_mode", node.args[0]), node.args[1], node.args[2:])
        elif target is torch.ops.higher_order.wrap_with_autocast:
            device, dtype, enabled, cache = node.args[:4]
            cache = torch.is_autocast_cache_enabled() if cache is None else cache
            dtype = torch.get_autocast_dtype(str(device)) if dtype is None else dtype
            mode = ("autocast", device, dtype, enabled, cache)
            self._inline(node, mode, node.args[4], node.args[5:])
        else:
            raise NativeError(f"it calls {getattr(target, '__name__', target)}")

    def _operator(self, node: fx.Node, op: torch._ops.OpOverload) -> None:
        if op in _CHECKS:
            return
        if op is MARK:
            self._layer(node.args[0])
            return
        if op is torch.ops.aten.sym_size.int:
            tensor, dimension = node.args
            size = ("size", self._argument(tensor), dimension, [self._register(node)])
            self.result.instructions.append(size)
            return
        schema = op._schema
        arguments = []
        for position, argument in enumerate(schema.arguments):
            if position < len(node.args):
                value = node.args[position]
            else:
                value = node.kwargs.get(argument.name, argument.default_value)
            arguments.append(self._argument(value))
        results = schema.returns
        if len(results) > 1:
            outputs = [self._next() for _ in results]
            self.values[node] = [("register", output) for output in outputs]
        else:
            outputs = [self._register(node)] if results else []
        self.result.instructions.append(
            ("call", schema.name, schema.overload_name, arguments, outputs, _origin(node))
        )

    def _layer(self, index: Any) -> None:
        hook = self.layers[index]
        self.result.instructions.append(("layer", hook.owner, hook.layers))
        self.num_entered += 1

    def _item(self, node: fx.Node) -> None:
        source, position = node.args
        found = self.values[source]  # type: ignore[index]
        if isinstance(found, list):
            self.values[node] = found[position]  # type: ignore[index]
            return
        output = self._register(node)
        self.result.instructions.append(("item", found, position, [output]))

    def _inline(
        self, node: fx.Node, mode: tuple[Any, ...], submodule: Any, arguments: Sequence[Any]
    ) -> None:
        module = self.values[submodule]
        inner = [inner for inner in module.graph.nodes if inner.op == "placeholder"]
        for placeholder, value in zip(inner, arguments, strict=True):
            self.values[placeholder] = self._argument(value)
        self.result.instructions.append(mode)
        self.values[node] = self.run(module)
        self.result.instructions.append(("leave",))

    def _argument(self, value: Any) -> Argument:
        if isinstance(value, fx.Node):
            found: Argument = self.values[value]
            return found
        if isinstance(value, (list, tuple)) and any(isinstance(v, fx.Node) for v in value):
            return "list", [self._argument(v) for v in value]
        return "constant", value

    def _register(self, node: fx.Node) -> int:
        index = self._next()
        scalars = (bool, int, float, torch.SymInt, torch.SymFloat, torch.SymBool)
        kind = "scalar" if isinstance(node.meta.get("val"), scalars) else "register"
        self.values[node] = (kind, index)
        return index

    def _next(self) -> int:
        self.result.num_registers += 1
        return self.result.num_registers - 1


def _flat(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def _attribute(module: fx.GraphModule, path: str) -> Any:
    found = getattr(module, path)
    if not isinstance(found, fx.GraphModule):
        raise NativeError(f"its graph has the attribute {path}")
    return found


def _origin(node: fx.Node) -> str:
    """The line of the module, as an error's addition."""
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    places = [i for i, line in enumerate(lines) if line.strip().startswith("File ")]
    if not places or "/pipert/native/" in lines[places[-1]]:  # a function: torch tells modules only
        return ""
    return ", " + ": ".join(line.strip() for line in lines[places[-1] : places[-1] + 2])
