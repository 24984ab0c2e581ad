"""The way of tracing: any model, cut wherever its forward can be followed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from pipert.balancing.agreed_cuts import ALONE, AgreedCuts
from pipert.balancing.balance import Balance, Cuts, choose_cuts, costs_of, needs_profiles
from pipert.balancing.stage_placement import PlacementLike
from pipert.split.check import Check, check_same
from pipert.split.cut import Cut, cut, is_mark, simplify
from pipert.split.example import Example, is_on_meta
from pipert.split.leaf_calls import SPLIT_POINT
from pipert.split.outputs import Outputs, leave_out
from pipert.split.points import Point, points_of
from pipert.split.stage_module import StageModule
from pipert.split.stage_profile import profile_stages
from pipert.split.stage_writing import argument_names, write_stage
from pipert.split.trace import Trace, is_list, trace
from pipert.split.traced_layers import layers_of, owners_of_lists, profiles_of
from pipert.stages import Stages, StageSpec


def split_by_trace(
    model: nn.Module,
    num_stages: int | None,
    at: Sequence[str] | None,
    example_args: tuple[Any, ...],
    example_kwargs: Mapping[str, Any],
    *,
    balance: Balance = "parameters",
    memory_limit: float | Sequence[float] | None = None,
    placement: PlacementLike = None,
    agreed: AgreedCuts = ALONE,
    own_kwargs: Mapping[str, Any] | None = None,
    leaf_functions: Iterable[Callable[..., Any]] = (),
    fixed_batch: bool = False,
    send_arguments: bool = False,
    outputs: Outputs = None,
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
        memory_limit: see there.
        placement: see there.
        agreed: whose cuts these are.
        own_kwargs: more keyword arguments of forward, which the stages have inside: no batch has
            them.
        leaf_functions: see there.
        fixed_batch: see there.
        send_arguments: see there.
        outputs: see there.
        check: see there.
    """
    own_kwargs = own_kwargs or {}
    all_kwargs = {**example_kwargs, **own_kwargs}
    example = Example(model, example_args, all_kwargs, inside=own_kwargs)
    points = points_of(model, at)
    chooses = num_stages is not None and not points
    opened = owners_of_lists(model) if chooses else []
    traced = trace(model, example, points, opened, leaf_functions, fixed_batch)
    if outputs is not None:
        leave_out(traced, outputs)
    simplify(traced)
    begins = _marks(traced)
    cuts = None
    if chooses and not begins:
        layers = layers_of(traced)
        choose = partial(
            choose_cuts,
            [(layer.path, layer.module) for layer in layers],
            num_stages,
            balance,
            memory_limit=memory_limit,
            placement=placement,
            profile=partial(profiles_of, traced, layers, example_args, all_kwargs),
        )
        cuts = agreed.chosen(choose, len(layers))
        begins = [layers[start].node for start in itertools.accumulate(cuts.sizes[:-1])]
    _check_count(model, len(begins) + 1, num_stages)
    stages = _stages(cut(traced, begins, send_arguments), example.left_out)
    if cuts is None:
        cuts = _profiled(stages, balance, memory_limit, example_args, example_kwargs, agreed)
    stages.costs = costs_of(cuts, stages.values)
    if check and not is_on_meta(model):
        check_same(
            model,
            stages,
            example_args,
            example_kwargs,
            own_kwargs,
            with_gradients=check == "gradients",
            advice=". A forward that keeps results in attributes, or draws random numbers of its "
            "own, can't be traced",
            outputs=outputs,
        )
    return stages


def _profiled(
    stages: Stages,
    balance: Balance,
    memory_limit: float | Sequence[float] | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    agreed: AgreedCuts,
) -> Cuts:
    """Cuts at named places, with what the stages take if the balance asks for it."""
    if memory_limit is not None:
        raise ValueError(
            "memory_limit is for cuts that split chooses: expected num_stages alone, got cuts at "
            "named places"
        )
    measure = partial(profile_stages, stages, args, kwargs)
    is_asked = needs_profiles(balance, memory_limit)
    return Cuts([1] * len(stages), agreed.measured(measure) if is_asked else None)


def _check_count(model: nn.Module, made: int, num_stages: int | None) -> None:
    if num_stages is not None and made != num_stages:
        raise ValueError(
            f"the cuts of {type(model).__name__} make {made} stages, got num_stages={num_stages}"
        )
    if made == 1 and num_stages is None:
        raise ValueError(
            "expected num_stages, at, annotate_split_points or a pipe_split() that the forward of "
            f"{type(model).__name__} calls, got none of them"
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


def _stages(made: Cut, fixed: Mapping[str, Any]) -> Stages:
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
        arguments=trace.positional,
        fixed=fixed,
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
