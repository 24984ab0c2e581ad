"""Stage code: a part of a trace as a module that calls the model's own modules."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from pipert.split.graph_nodes import (
    NO_GRAD,
    is_item,
    is_leaf,
    is_region,
    is_tensor,
    leaf_of,
    region_of,
)
from pipert.split.leaf_call import Slot
from pipert.split.purity import MODES
from pipert.split.regions import with_autocast, with_grad_mode
from pipert.split.stage_module import StageModule, device_of
from pipert.split.trace import Trace
from pipert.split.tree_code import path_to, write_tree

IN_CODE = (
    bool,
    complex,
    float,
    int,
    str,
    torch.device,
    torch.dtype,
    torch.layout,
    torch.memory_format,
    type(None),
)


class StageCode:
    """Writes nodes of a trace into the graph of a stage, or of a region in one.

    Args:
        trace: the whole.
        holder: the stage's module, which gets what the code needs.
        graph: to write to.
        sizes: how the stage gets those that it needs; see StagePart.
    """

    def __init__(
        self,
        trace: Trace,
        holder: StageModule,
        graph: fx.Graph,
        sizes: Mapping[fx.Node, tuple[fx.Node, int] | None],
    ) -> None:
        self.graph = graph
        self._trace = trace
        self._holder = holder
        self._new: dict[fx.Node, Any] = {}
        self._sizes = sizes
        self._attributes: dict[str, fx.Node] = {}
        example = [a.value for a in trace.arguments.values() if isinstance(a.value, Tensor)]
        self._device = device_of(trace.model, example)
        self._on_device: fx.Node | None = None  # a tensor whose device the stage runs on

    def take(self, node: fx.Node, made: fx.Node) -> None:
        """Lets `made`, with which the stage is called, stand here for a node."""
        self._new[node] = made
        if self._on_device is None and is_tensor(self._trace, node):
            self._on_device = made

    def let_stand(self, node: fx.Node, stand_in: fx.Node) -> None:
        """Lets one node stand for another that isn't here."""
        self._new.setdefault(node, self._new[stand_in])

    def write(self, node: fx.Node) -> None:
        """Writes one node."""
        if is_leaf(node):
            made = self._call(node)
        elif is_item(node) and is_leaf(node.args[0]):  # type: ignore[arg-type]
            made = self._result(node)
        elif is_region(node):
            made = self._region(node)
        else:
            args, kwargs = self._arguments(node)
            made = self.graph.create_node("call_function", node.target, args, kwargs, node.name)
        if "stack_trace" in node.meta:
            made.meta["stack_trace"] = node.meta["stack_trace"]
        self._new[node] = made

    def own(self, value: Any) -> Any:
        """What stands here for a node, or a tree of nodes and constants, of the trace."""
        if isinstance(value, fx.Node):
            if value not in self._new:
                self._new[value] = self._found(value)
            return self._new[value]
        if isinstance(value, list | tuple):
            return type(value)(map(self.own, value))
        if isinstance(value, dict):
            return {key: self.own(entry) for key, entry in value.items()}
        if isinstance(value, slice):
            return slice(self.own(value.start), self.own(value.stop), self.own(value.step))
        return self.constant(value)

    def constant(self, value: Any) -> Any:
        """A constant in code if it has a place there, else an attribute of the stage."""
        if isinstance(value, torch.device) and self._is_stages(value):
            return self._live_device() or value
        if type(value) in IN_CODE:
            return value
        if isinstance(value, nn.Module):
            return self.module(value)
        name = getattr(value, "__name__", type(value).__name__)
        return self.attribute(self._holder.place_constant(value, name.lower()))

    def attribute(self, path: str) -> fx.Node:
        """An attribute of the stage."""
        if path not in self._attributes:
            self._attributes[path] = self.graph.get_attr(path)
        return self._attributes[path]

    def module(self, module: nn.Module) -> fx.Node:
        """One of the model's modules, as a value."""
        path = next((p for p, m in self._trace.model.named_modules() if m is module), None)
        if path is None:
            return self.attribute(self._holder.place_constant(module, "module"))
        self._holder.place_module(path)
        return self.attribute(path)

    def call_module(self, path: str, args: Any, kwargs: Any) -> fx.Node:
        """Calls one of the model's modules."""
        return self.graph.call_module(path, args, kwargs)

    def _found(self, node: fx.Node) -> Any:
        """What nothing here has computed: state of the model, or a size that is found elsewhere."""
        if node in self._trace.states:
            self._holder.place_state(self._trace.states[node])
            return self.attribute(self._trace.states[node])
        if node in self._trace.constants:
            return self.attribute(
                self._holder.place_constant(self._trace.constants[node], "constant")
            )
        if node.op == "get_attr":
            value = getattr(self._trace.module, str(node.target))
            return self.attribute(self._holder.place_constant(value, str(node.target)))
        source = self._sizes[node]
        if source is not None:
            return self.graph.call_method("size", (self.own(source[0]), source[1]))
        if node.target is torch.ops.aten.sym_size.int:
            return self.graph.call_method("size", self.own(node.args))
        return self.graph.call_function(node.target, self.own(node.args))  # type: ignore[arg-type]

    def _call(self, node: fx.Node) -> fx.Node:
        call = leaf_of(self._trace, node)
        _, tensors, sizes = node.args
        lists = (self.own(tensors), self.own(sizes))
        leaves = [
            lists[leaf.is_size][leaf.index] if isinstance(leaf, Slot) else self.constant(leaf)
            for leaf in call.inputs.leaves
        ]
        args, kwargs = write_tree(self.graph, call.inputs.spec, leaves, self.constant)
        if call.is_module:
            return self.call_module(call.path, args, kwargs)
        return self.graph.call_function(call.target, args, kwargs)

    def _result(self, node: fx.Node) -> fx.Node:
        """One tensor of what a leaf returns."""
        leaf, index = node.args
        assert isinstance(leaf, fx.Node)
        outputs = leaf_of(self._trace, leaf).outputs
        assert outputs is not None
        place = outputs.leaves.index(Slot(index))  # type: ignore[arg-type]
        result = self.own(leaf)
        path = path_to(outputs, place)
        if path is None:
            result = self.graph.call_function(pytree.tree_leaves, (result,))
            path = [place]
        for key in path:
            result = self.graph.call_function(operator.getitem, (result, key))
        return result  # type: ignore[no-any-return]

    def _region(self, node: fx.Node) -> fx.Node:
        body, inputs = region_of(self._trace, node)
        code = _RegionCode(self, [n for n in body.graph.nodes if n.op == "placeholder"])
        for inner in body.graph.nodes:
            if inner.op == "call_function":
                code.write(inner)
        results = next(n for n in body.graph.nodes if n.op == "output").args[0]
        code.graph.output(tuple(map(code.own, results)))
        module = fx.GraphModule(nn.Module(), code.graph, "Region")
        own_body = self.attribute(self._holder.place_region(module))
        how = node.args[:1] if node.target is NO_GRAD else node.args[:4]
        what = with_grad_mode if node.target is NO_GRAD else with_autocast
        args = (*how, own_body, *self.own(inputs), *code.borrowed)
        return self.graph.call_function(what, args)

    def _arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of an ATen operator; its training flag becomes the module's."""
        args, kwargs = list(self.own(node.args)), self.own(dict(node.kwargs))
        schema = getattr(node.target, "_schema", None)
        for i, argument in enumerate(schema.arguments if schema is not None else ()):
            if argument.name not in MODES:
                continue
            owner = self._owner(node)
            module = self._trace.model.get_submodule(owner)
            if i < len(args) and args[i] is module.training:
                self._holder.container(owner)
                args[i] = self.attribute(f"{owner}.training" if owner else "training")
        return tuple(args), kwargs

    def _owner(self, node: fx.Node) -> str:
        """The path of the module whose forward a node comes from."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = str(stack[-1][0]) if stack else "model"
        return path.removeprefix("model").removeprefix(".")

    def _is_stages(self, device: torch.device) -> bool:
        wanted = self._device
        return (
            wanted is not None
            and device.type == wanted.type
            and (device.index in (None, wanted.index))
        )

    def _live_device(self) -> fx.Node | None:
        """The device that the stage runs on."""
        if self._on_device is None:
            name = next((n for n, _ in self._holder.module.named_parameters()), None)
            if name is None:
                return None
            self._on_device = self.attribute(name)
        if "device" not in self._attributes:
            self._attributes["device"] = self.graph.call_function(
                getattr, (self._on_device, "device")
            )
        return self._attributes["device"]


class _RegionCode(StageCode):
    """Writes the graph inside of a region. What it needs of the stage, it is given as arguments.

    Attributes:
        borrowed: those arguments, in the stage's graph.
    """

    def __init__(self, stage: StageCode, placeholders: list[fx.Node]) -> None:
        super().__init__(stage._trace, stage._holder, fx.Graph(), {})
        self._stage = stage
        self.borrowed: list[fx.Node] = []
        self._last_input: fx.Node | None = None
        for node in placeholders:
            self._last_input = self._new[node] = self.graph.placeholder(node.name)

    def attribute(self, path: str) -> fx.Node:
        """An attribute of the stage, as an argument."""
        return self._borrow(path, self._stage.attribute(path))

    def call_module(self, path: str, args: Any, kwargs: Any) -> fx.Node:
        """Calls a module that is an argument."""
        return self.graph.call_method("__call__", (self.attribute(path), *args), kwargs)

    def _live_device(self) -> fx.Node | None:
        device = self._stage._live_device()
        return None if device is None else self._borrow("device", device)

    def _borrow(self, name: str, node: fx.Node) -> fx.Node:
        if name not in self._attributes:
            self.borrowed.append(node)
            with self.graph.inserting_after(self._last_input):
                self._last_input = self.graph.placeholder(name.replace(".", "_"))
            self._attributes[name] = self._last_input
        return self._attributes[name]
