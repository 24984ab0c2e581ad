"""split_by_plan: cuts a transformers model into stages by what it says of itself."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from pipert.balancing.agreed_cuts import ALONE, AgreedCuts
from pipert.balancing.balance import Balance, check_balance, costs_of, needs_profiles
from pipert.balancing.example_values import is_on_meta
from pipert.balancing.stage_placement import PlacementLike
from pipert.integrations.transformers.plan_cuts import cut_units
from pipert.integrations.transformers.plan_example import PlanExample, Seen
from pipert.integrations.transformers.plan_units import PlanUnits
from pipert.integrations.transformers.plans import base_of, base_prefix, plan_of
from pipert.integrations.transformers.stage_arguments import (
    StageArguments,
    arguments_of,
    refuse_arguments,
)
from pipert.integrations.transformers.stage_maker import StageMaker
from pipert.split.check import Check, check_same
from pipert.split.outputs import Outputs, check_outputs
from pipert.split.structure import check_types
from pipert.stages import Stages, StageSpec, Value


def split_by_plan(
    model: nn.Module,
    num_stages: int | None = None,
    at: Sequence[str] | None = None,
    example_args: tuple[Any, ...] = (),
    example_kwargs: Mapping[str, Any] | None = None,
    balance: Balance = "parameters",
    check: Check = True,
    *,
    memory_limit: float | Sequence[float] | None = None,
    placement: PlacementLike = None,
    agreed: AgreedCuts = ALONE,
    outputs: Outputs = None,
) -> Stages:
    """Cuts a transformers model into stages that hold its own submodules and parameters.

    Nothing is traced: each stage runs the model's own forward, with stand-ins for the modules of
    other stages, so that masks, position ids and rotary tables are made on every stage by the
    model's own code, and hidden states alone go from stage to stage. The embeddings are on the
    first stage; norm, head and loss on the last, which returns what the model does.

    Stages never keep caches: `use_cache` is off in them, whatever the config says.

    Args:
        model: with a `base_model_pp_plan` in its config, or of one of the types in docs/models.md.
            It may be on the meta device; see `pipert.materialize`.
        num_stages: how many stages to cut it into; not together with `at`.
        at: what begins a new stage, by path, in order: layers ("model.layers.4"), or the first
            module behind them ("model.norm").
        example_args: positional arguments of one forward.
        example_kwargs: its keyword arguments. On the meta device they are only looked at where
            layers are to be estimated.
        balance: as `pipert.split`'s, where what comes before the layers is one more, and so is
            what comes behind, but for "uniform" and the number of layers of each stage. A function
            gets each module of these.
        check: with an example: whether to compare what model and stages return, bit for bit;
            "gradients": the gradients of all parameters too.
        memory_limit: as `pipert.split`'s.
        placement: as `pipert.split`'s.
        agreed: whose cuts these are.
        outputs: as `pipert.split`'s.

    Returns:
        The stages, with the parameter names of the model, and with their costs where layers were
        measured.

    Raises:
        ValueError: the model can't be cut as asked for; the message says why.
    """
    example_kwargs = dict(example_kwargs or {})
    check_types(model, num_stages, at, example_args, None)
    check_balance(balance)
    check_outputs(outputs)
    _refuse(model, example_kwargs)
    units = PlanUnits(model, base_prefix(model), plan_of(model))
    arguments = arguments_of(model, base_of(model))
    example = seen = None
    if example_args or example_kwargs:
        example = PlanExample(units, example_args, {**example_kwargs, **arguments.last_fixed})
    cuts = cut_units(
        units,
        num_stages,
        at,
        balance,
        memory_limit=memory_limit,
        placement=placement,
        agreed=agreed,
        example=example,
    )
    on_meta = is_on_meta(model)
    if example is not None and (not on_meta or needs_profiles(balance, memory_limit)):
        seen = example.look()
    stages = _stages(units, cuts.sizes, arguments, seen, outputs)
    stages.costs = costs_of(cuts, stages.values)
    _check_names(model, stages)
    if example is not None and check and not on_meta:
        check_same(
            model,
            stages,
            example_args,
            example_kwargs,
            arguments.last_fixed,
            with_gradients=check == "gradients",
            advice="; cut it by tracing",
            outputs=outputs,
        )
    return stages


def _stages(
    units: PlanUnits,
    sizes: Sequence[int],
    arguments: StageArguments,
    seen: Seen | None,
    outputs: Outputs,
) -> Stages:
    """The stages that have so many units each."""
    plan = units.plan
    if seen is not None:
        plan = replace(plan, returns_tuples=seen.returns_tuples)
    maker = StageMaker(units.model, units.base, plan, arguments, outputs)
    edges = list(itertools.pairwise([0, *itertools.accumulate(sizes)]))
    last = len(edges) - 1
    modules = [
        maker.make(*units.layers_between(*edge), is_first=i == 0, is_last=i == last)
        for i, edge in enumerate(edges)
    ]
    specs = [
        StageSpec(
            inputs=(f"hidden_{i - 1}",) if i > 0 else (),
            outputs=(f"hidden_{i}",) if i < last else (),
            arguments=_taken(arguments, i, last),
            layers=tuple(units.paths_between(*edge)),
        )
        for i, edge in enumerate(edges)
    ]
    hidden_bytes = None if seen is None else seen.hidden_bytes
    return Stages(
        modules,
        specs=specs,
        values=[Value(f"hidden_{i}", i, (i + 1,), bytes=hidden_bytes) for i in range(last)],
        arguments=arguments.positional,
    )


def _refuse(model: nn.Module, example_kwargs: Mapping[str, Any]) -> None:
    refuse_arguments(
        model,
        example_kwargs,
        "a stage has the layers of its own alone, and can't return what all of "
        f"{type(model).__name__}'s layers did",
    )
    layerdrop = getattr(getattr(model, "config", None), "layerdrop", 0) or 0
    if layerdrop > 0:
        raise ValueError(
            f"expected a config with layerdrop=0, got {layerdrop}: which layers run would be drawn "
            "on each stage anew"
        )


def _taken(arguments: StageArguments, stage: int, last: int) -> tuple[str, ...]:
    if stage > 0:
        return arguments.last if stage == last else arguments.middle
    if last > 0:
        return arguments.first
    return (*arguments.first, *(n for n in arguments.last if n not in arguments.first))


def _check_names(model: nn.Module, stages: Stages) -> None:
    kept = {name for names in stages.names for name in names}
    if lost := [name for name in model.state_dict(keep_vars=True) if name not in kept]:
        raise ValueError(
            f"every parameter must have a place in the plan; {', '.join(lost)} have none"
        )
