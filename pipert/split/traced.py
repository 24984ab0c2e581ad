"""The way of tracing: any model, cut wherever its forward can be followed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from pipert.split.check import Check, check_same
from pipert.split.cut import Cut, cut, is_mark, simplify
from pipert.split.example import Example, is_on_meta
from pipert.split.graph_nodes import is_leaf, leaf_of
from pipert.split.leaf_calls import SPLIT_POINT
from pipert.split.points import Point, points_of
from pipert.split.stage_code import argument_names, write_stage
from pipert.split.stage_module import StageModule
from pipert.split.structure import Balance
from pipert.split.structure import _sizes as choose_sizes
from pipert.split.trace import Trace, is_list, trace
from pipert.stages import Stages, StageSpec, Tied


def split_by_trace(
    model: nn.Module,
    num_stages: int | None,
    at: Sequence[str] | None,
    example_args: tuple[Any, ...],
    example_kwargs: Mapping[str, Any],
    *,
    balance: Balance = "parameters",
    own_kwargs: Mapping[str, Any] | None = None,
    leaf_functions: Iterable[Callable[..., Any]] = (),
    fixed_batch: bool = False,
    check: Check = True,
) -> Stages:
    """Cuts a model into stages along a trace of its forward; see `pipert.split`.

    Args:
        model: as `pipert.split`'s, like all that follow but for `own_kwargs`.
        num_stages: see there.
        at: see there.
        example_args: see there.
        example_kwargs: see there.
        balance: see there.
        own_kwargs: more keyword arguments of forward, which the stages have inside: no batch has
            them.
        leaf_functions: see there.
        fixed_batch: see there.
        check: see there.
    """
    own_kwargs = own_kwargs or {}
    example = Example(model, example_args, {**example_kwargs, **own_kwargs}, inside=own_kwargs)
    points = points_of(model, at)
    chooses = num_stages is not None and not points
    opened = _owners_of_lists(model) if chooses else []
    traced = trace(model, example, points, opened, leaf_functions, fixed_batch)
    simplify(traced)
    begins = _marks(traced)
    if chooses and not begins and num_stages is not None:
        begins = _chosen(traced, num_stages, balance)
    if num_stages is not None and len(begins) != num_stages - 1:
        raise ValueError(
            f"the cuts of {type(model).__name__} make {len(begins) + 1} stages, "
            f"got num_stages={num_stages}"
        )
    if not begins and num_stages is None:
        raise ValueError(
            f"expected num_stages, at, annotate_split_points or a pipe_split() that the forward of "
            f"{type(model).__name__} calls, got none of them"
        )
    stages = _stages(cut(traced, begins))
    if check and not is_on_meta(model):
        check_same(model, stages, example_args, example_kwargs, own_kwargs, check == "gradients")
    return stages


def _owners_of_lists(model: nn.Module) -> list[str]:
    """The modules to look into so that each entry of the model's lists of layers is a leaf.

    A list in an entry of a list is none of those.
    """
    found: set[str] = set()

    def walk(module: nn.Module, path: str, ancestors: list[str]) -> bool:
        has_list = False
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            if _is_layers(child):
                has_list = True
                if not is_list(child):
                    found.add(inner)
            elif walk(child, inner, [*ancestors, inner]):
                has_list = True
        if has_list:
            found.update(ancestors)
        return has_list

    walk(model, "", [])
    return sorted(found)


def _is_layers(module: nn.Module) -> bool:
    return is_list(module) or (
        isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    )


def _marks(traced: Trace) -> list[fx.Node]:
    """The cuts in the trace, in order; checks that the points were met, in their order."""
    marks = [node for node in traced.module.graph.nodes if is_mark(node)]
    met = [int(node.args[0]) for node in marks if node.target is SPLIT_POINT]
    for number, point in enumerate(traced.points):
        if number not in met:
            raise ValueError(_not_met(traced, point))
    named = [traced.points[number] for number in met]
    if named != sorted(named, key=list(traced.points).index) and named[0].source == "at":
        order = ", ".join(repr(point.path) for point in named)
        raise ValueError(
            f"at must name modules in the order in which they are called: expected {order}; "
            f"got {', '.join(repr(point.path) for point in traced.points)}"
        )
    return marks


def _not_met(traced: Trace, point: Point) -> str:
    name = type(traced.model).__name__
    module = traced.model.get_submodule(point.path)
    if is_list(module):
        entries = ", ".join(f"{point.path}.{child}" for child in list(module._modules)[:4])
        return (
            f"{point} is a {type(module).__name__}, which is never called: expected one of its "
            f"entries, such as {entries}"
        )
    return (
        f"{point} must be called by {name}'s forward, outside of torch.no_grad and torch.autocast: "
        "it isn't, with this example"
    )


def _chosen(traced: Trace, num_stages: int, balance: Balance) -> list[fx.Node]:
    """The leaf calls that begin a stage, by balance."""
    calls = [
        node
        for node in traced.module.graph.nodes
        if is_leaf(node) and leaf_of(traced, node).is_module
    ]
    units = [(leaf_of(traced, node).path, leaf_of(traced, node).target) for node in calls]
    begins, start = [], 0
    for size in choose_sizes(units, num_stages, balance)[:-1]:
        start += size
        begins.append(calls[start])
    return begins


def _stages(made: Cut) -> Stages:
    trace = made.trace
    holders = [write_stage(made, stage) for stage in range(len(made.parts))]
    _place_rest(trace.model, holders)
    modules = [holder.module for holder in holders]
    specs = [
        StageSpec(
            inputs=tuple(made.values[node].name for node in part.inputs),
            outputs=tuple(made.values[node].name for node in part.outputs),
            arguments=argument_names(made, stage),
            layers=made.layers(stage),
        )
        for stage, part in enumerate(made.parts)
    ]
    return Stages(
        modules,
        specs=specs,
        values=made.values.values(),
        tied=_tied(modules),
        arguments=trace.positional,
    )


def _place_rest(model: nn.Module, holders: Sequence[StageModule]) -> None:
    """Gives the names that no stage has to one: another name of what it has, or what nobody calls.

    So the state of all stages together is the model's.
    """
    placed = {name for holder in holders for name in holder.module.state_dict(keep_vars=True)}
    owners = {
        id(state): holder
        for holder in reversed(holders)
        for state in holder.module.state_dict(keep_vars=True).values()
    }
    for name, state in model.state_dict(keep_vars=True).items():
        if name not in placed and isinstance(state, Tensor):
            nearest = max(reversed(holders), key=lambda holder: holder.depth_of(name))
            owners.get(id(state), nearest).place_state(name)
    for holder in holders:
        holder.arrange()


def _tied(modules: Sequence[nn.Module]) -> list[Tied]:
    """The parameters that several stages have."""
    uses: dict[nn.Parameter, list[tuple[int, str]]] = {}
    for stage, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            uses.setdefault(parameter, []).append((stage, name))
    return [Tied(tuple(places)) for places in uses.values() if len(places) > 1]
