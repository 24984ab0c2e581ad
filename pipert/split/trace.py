"""Trace: a model's forward as a graph, with its leaves as calls that nothing looks into."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from pipert.split.example import Argument, Example
from pipert.split.export_noise import no_export_noise
from pipert.split.hooks import refuse_hooks
from pipert.split.leaf_calls import LeafCalls
from pipert.split.points import Point
from pipert.split.sizes import constant_size, hint_of
from pipert.split.trace_errors import cannot_trace, check_runs, fixed_batch


@dataclass
class Trace:
    """What one export of a model says.

    Attributes:
        model: the unpartitioned one.
        module: of the graph; graphs inside of it are its attributes.
        calls: of leaves, by number.
        points: of cuts, by number.
        arguments: of the batch, by placeholder, in order.
        fixed: those of them of which the trace has made constants.
        states: by placeholder: the names of parameters and buffers in the model.
        constants: by placeholder: tensors that forward makes of literals.
        results: what forward returns, flat: nodes and constants.
        result_spec: its structure.
        positional: the names of forward's positional arguments, in order.
    """

    model: nn.Module
    module: fx.GraphModule
    calls: LeafCalls
    points: Sequence[Point]
    arguments: dict[fx.Node, Argument]
    fixed: list[Argument]
    states: dict[fx.Node, str]
    constants: dict[fx.Node, Tensor]
    results: list[Any]
    result_spec: pytree.TreeSpec
    positional: tuple[str, ...]


def trace(
    model: nn.Module,
    example: Example,
    points: Sequence[Point] = (),
    opened: Iterable[str] = (),
    leaf_functions: Iterable[Callable[..., Any]] = (),
    batch_is_fixed: bool = False,
) -> Trace:
    """Traces the model's forward with torch.export, not strict.

    Args:
        model: any; its state and mode stay as they are.
        example: of its arguments, with at least two rows.
        points: where it is to be cut.
        opened: paths of modules to look into, beside those that the points lie in. Every other
            module is a leaf.
        leaf_functions: functions not to look into.
        batch_is_fixed: whether the batch may have no other size than the example's.

    Raises:
        ValueError: forward can't be traced, or allows one batch size alone.
    """
    _refuse_sharded(model)
    paths = [*opened, *(path for point in points for path in _ancestors(point.path))]
    open_modules = {model, *map(model.get_submodule, paths)}
    marks = [(model.get_submodule(point.path), point.behind) for point in points]

    def export(calls: LeafCalls) -> tuple[ExportedProgram, pytree.TreeSpec]:
        with calls.recording(leaves_of(model, open_modules), leaf_functions, marks):
            return _export(model, example)

    while True:
        calls = LeafCalls()
        try:
            program, result_spec = export(calls)
        except ValueError:
            check_runs(model, *example.rebuilt(example.free))
            raise
        inside = _originals(model, calls.splits_inside) - open_modules
        if not inside:
            break
        open_modules |= inside
    made = _made(model, example, program, result_spec, calls, points)
    if not batch_is_fixed:
        _check_batch(made, lambda: export(LeafCalls()))
    return made


def leaves_of(model: nn.Module, opened: set[nn.Module]) -> dict[str, nn.Module]:
    """The modules that a trace doesn't look into, by the first of their paths."""
    found: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()

    def walk(module: nn.Module, prefix: str) -> None:
        refuse_hooks(module, prefix.rstrip("."), "cut inside")
        for name, child in module._modules.items():
            if child is None or child in seen:
                continue
            seen.add(child)
            if child in opened or is_list(child):
                walk(child, f"{prefix}{name}.")
            else:
                found[f"{prefix}{name}"] = child

    walk(model, "")
    return found


def is_list(module: nn.Module) -> bool:
    """Whether it only holds modules, and is never called."""
    return isinstance(module, nn.ModuleList | nn.ModuleDict)


def _refuse_sharded(model: nn.Module) -> None:
    """Their hooks gather parameters before forward, and a trace's tensors have nothing in them."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for name, module in model.named_modules():
        if isinstance(module, fsdp.FSDPModule | fsdp.FullyShardedDataParallel):
            raise ValueError(
                f"{name or type(model).__name__} is sharded already, and can't be traced: split "
                "the model first, then call fully_shard on the modules of a rank's own stages"
            )


def _ancestors(path: str) -> list[str]:
    return [path[:i] for i, letter in enumerate(path) if letter == "."]


def _originals(model: nn.Module, modules: Iterable[nn.Module]) -> set[nn.Module]:
    """The model's modules for those; a trace's stand-ins for them share their attributes."""
    attributes = {id(vars(module)) for module in modules}
    return {module for module in model.modules() if id(vars(module)) in attributes}


class _Flat(nn.Module):
    """The model as a function of a flat list: sizes may then be free whatever holds the tensors."""

    def __init__(self, model: nn.Module, example: Example, specs: list[pytree.TreeSpec]) -> None:
        super().__init__()
        self.model = model
        self.example = example
        self.note = specs.append  # torch.export undoes assignments to attributes

    def forward(self, *free: Any) -> list[Any]:
        args, kwargs = self.example.rebuilt(free)
        results, spec = pytree.tree_flatten(self.model(*args, **kwargs))
        self.note(spec)
        return results


def _export(model: nn.Module, example: Example) -> tuple[ExportedProgram, pytree.TreeSpec]:
    specs: list[pytree.TreeSpec] = []
    flat = _Flat(model, example, specs)
    dimensions = {"free": tuple(map(_free_sizes, example.free))}
    try:
        with no_export_noise():
            program = torch.export.export(
                flat,
                example.free,
                dynamic_shapes=dimensions if example.free else None,
                strict=False,
            )
    except Exception as error:
        raise cannot_trace(model, error) from error
    return program, specs[-1]


def _free_sizes(leaf: Any) -> Any:
    """Each size and each integer of the example may be another one later."""
    return [Dim.AUTO] * leaf.dim() if isinstance(leaf, Tensor) else Dim.AUTO


def _made(
    model: nn.Module,
    example: Example,
    program: ExportedProgram,
    result_spec: pytree.TreeSpec,
    calls: LeafCalls,
    points: Sequence[Point],
) -> Trace:
    signature = program.graph_signature
    states = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = signature.inputs_to_lifted_tensor_constants
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    free = [node for name, node in placeholders.items() if name not in states | lifted]
    output = next(node for node in program.graph.nodes if node.op == "output")
    arguments = {
        node: Argument(argument.name, argument.path, node.meta["val"])
        for node, argument in example.named(free)
    }
    return Trace(
        model=model,
        module=program.graph_module,
        calls=calls,
        points=points,
        arguments=arguments,
        fixed=[*example.constants, *filter(_is_fixed, arguments.values())],
        states={placeholders[n]: target.partition(".")[2] for n, target in states.items()},
        constants={placeholders[n]: program.constants[target] for n, target in lifted.items()},
        results=list(output.args[0]),
        result_spec=result_spec,
        positional=example.positional,
    )


def _is_fixed(argument: Argument) -> bool:
    return not isinstance(argument.value, Tensor) and constant_size(argument.value) is not None


def _check_batch(made: Trace, export: Callable[[], Any]) -> None:
    """Refuses a batch dimension of which the trace has made a constant."""
    tensors = [
        argument
        for argument in made.arguments.values()
        if isinstance(argument.value, Tensor) and argument.value.dim() > 0
    ]
    rows = hint_of(tensors[0].value.shape[0]) if tensors else None
    for argument in tensors:
        if rows is not None and constant_size(argument.value.shape[0]) == rows:
            raise fixed_batch(made.model, argument, rows, export)
