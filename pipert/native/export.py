"""From a callable and an example of its arguments to what C++ runs in its place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from pipert import _C
from pipert.native.error import NativeError
from pipert.native.lowering import Lowered, lower
from pipert.native.sizes import SizeConditions
from pipert.native.trace import Leaves, Traced, export_static, replace_tensors, trace


class Exported(NamedTuple):
    """What `csrc/bindings/native_function.cpp` reads.

    Attributes:
        graph: its parameters are set by the caller.
        output: what the call returns, with empty tensors.
        sources: for each parameter of the graph, the dict that has the tensor, and its name there.
        steps, conditions: which sizes and strides of the input the graph is for.
    """

    graph: _C.NativeGraph
    output: Any
    sources: list[tuple[dict[str, Any], str]]
    steps: list[tuple[Any, ...]]
    conditions: list[int]


def export(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exported:
    """Exports `call` as it is now, in the modes that this thread is in.

    Args:
        call: a module or function.
        args: an example of its positional arguments: tensors are not read, all else is constant.
        kwargs: likewise.

    Raises:
        NativeError: it can't run natively; the text says why.
    """
    example: Leaves = []
    replace_tensors((args, kwargs), example.append)
    traced = Traced(call, args, kwargs)
    _check_tensors(traced, example)
    program = trace(traced, example)
    try:
        sizes = SizeConditions(program, len(example))
    except NativeError:  # a condition that C++ can't check: then for these sizes alone
        program = export_static(traced, example)
        sizes = SizeConditions(program, len(example))
    sources, constants = _sources(traced, program)
    lowered = lower(program, len(example), list(sources), constants, traced.layers)
    return Exported(
        _build(lowered, len(example), len(sources)),
        traced.output,
        list(sources.values()),
        sizes.steps,
        sizes.conditions,
    )


def _build(lowered: Lowered, num_inputs: int, num_parameters: int) -> _C.NativeGraph:
    try:
        return _C.NativeGraph(
            num_inputs=num_inputs,
            num_parameters=num_parameters,
            num_registers=lowered.num_registers,
            instructions=lowered.instructions,
            outputs=lowered.outputs,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise NativeError(str(error)) from error


def _check_tensors(traced: Traced, example: Leaves) -> None:
    named = [*traced.named_parameters(), *traced.named_buffers()]
    for name, tensor in [*named, *(("an input", tensor) for tensor in example)]:
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            kind = type(tensor).__name__
            raise NativeError(f"{name.removeprefix('call.')} is a {kind}")


def _sources(
    traced: Traced, program: ExportedProgram
) -> tuple[dict[str, tuple[dict[str, Any], str]], dict[str, Tensor]]:
    """By placeholder: where the tensors that live outside of the graph are found; and constants."""
    sources: dict[str, tuple[dict[str, Any], str]] = {}
    constants: dict[str, Tensor] = {}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        name = getattr(spec.arg, "name", "")
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            sources[name] = _owner(traced, str(spec.target))
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            value = program.constants[str(spec.target)]
            owner = _owner(traced, str(spec.target), missing_ok=True)
            if owner is not None:
                if owner[0][owner[1]].requires_grad:
                    raise NativeError(f"{owner[1]} requires a gradient and is no parameter")
                sources[name] = owner
            elif all(_is_fresh(user) for user in nodes[name].users):
                constants[name] = value
            else:
                raise NativeError("it uses a tensor that is neither its input nor its module's")
        elif spec.kind is not InputKind.USER_INPUT:
            raise NativeError(f"its graph has an input of kind {spec.kind.name}")
    return sources, constants


def _is_fresh(node: torch.fx.Node) -> bool:
    """Whether it copies a tensor that the forward makes of Python numbers."""
    return node.target in (
        torch.ops.aten.lift_fresh_copy.default,
        torch.ops.aten.lift_fresh.default,
    )


def _owner(traced: Traced, path: str, missing_ok: bool = False) -> Any:
    if path in traced.places:
        return traced.places[path]
    *parents, name = path.split(".")
    module: Any = traced
    for parent in parents:
        module = getattr(module, parent, None)
    for table in ("_parameters", "_buffers", "__dict__"):
        found = getattr(module, table, {}) if isinstance(module, nn.Module) else {}
        if isinstance(found.get(name), Tensor):
            return found, name
    if missing_ok:
        return None
    raise NativeError(f"there is no tensor {path.removeprefix('call.')}")
