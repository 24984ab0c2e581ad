"""split_by_plan: cuts a transformers model into stages by what it says of itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from pipert.integrations.transformers.plan_units import PlanUnits
from pipert.integrations.transformers.plans import base_of, base_prefix, plan_of
from pipert.integrations.transformers.stage_arguments import (
    CACHES,
    RECORDS,
    StageArguments,
    arguments_of,
)
from pipert.integrations.transformers.stage_maker import StageMaker
from pipert.split.check import Check, check_same
from pipert.stages import Stages, StageSpec, Tied, Value

Balance = str | Sequence[int] | Callable[[str, nn.Module], float]


def split_by_plan(
    model: nn.Module,
    num_stages: int | None = None,
    at: Sequence[str] | None = None,
    example_args: tuple[Any, ...] = (),
    example_kwargs: Mapping[str, Any] | None = None,
    balance: Balance = "parameters",
    check: Check = True,
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
        example_kwargs: its keyword arguments. It isn't looked at on the meta device.
        balance: with num_stages: "parameters" (the largest stage has as few as possible), "uniform"
            (as many layers in each), the number of layers of each stage, or a function of a
            module's path and the module that says what it costs.
        check: with an example: whether to compare what model and stages return, bit for bit;
            "gradients": the gradients of all parameters too.

    Returns:
        The stages, with the parameter names of the model.

    Raises:
        ValueError: the model can't be cut as asked for; the message says why.
    """
    example_kwargs = dict(example_kwargs or {})
    _refuse(model, example_kwargs)
    units = PlanUnits(model, base_prefix(model), plan_of(model))
    begins = units.begins(num_stages, at, balance)
    arguments = arguments_of(model, base_of(model))
    has_example = bool(example_args or example_kwargs) and not _is_meta(model)
    plan = units.plan
    if has_example:
        plan = replace(plan, returns_tuples=units.return_tuples(example_args, example_kwargs))
    maker = StageMaker(model, units.base, plan, arguments)
    last = len(begins) - 1
    modules = [
        maker.make(*units.layers_of(begins, i), is_first=i == 0, is_last=i == last)
        for i in range(len(begins))
    ]
    stages = Stages(
        modules,
        specs=[
            StageSpec(
                inputs=(f"hidden_{i - 1}",) if i > 0 else (),
                outputs=(f"hidden_{i}",) if i < last else (),
                arguments=_taken(arguments, i, last),
                layers=tuple(units.paths_of(begins, i)),
            )
            for i in range(len(begins))
        ],
        values=[Value(f"hidden_{i}", i, (i + 1,)) for i in range(last)],
        tied=_tied(modules),
        arguments=arguments.positional,
    )
    _check_names(model, stages)
    if has_example and check:
        check_same(
            model,
            stages,
            example_args,
            example_kwargs,
            arguments.last_fixed,
            with_gradients=check == "gradients",
            advice="; cut it by tracing",
        )
    return stages


def _refuse(model: nn.Module, example_kwargs: Mapping[str, Any]) -> None:
    config = getattr(model, "config", None)
    for name in RECORDS:
        if getattr(config, name, False) or example_kwargs.get(name):
            raise ValueError(
                f"expected {name}=False, got True: a stage has the layers of its own alone, and "
                f"can't return what all of {type(model).__name__}'s layers did"
            )
    for name in CACHES:
        if example_kwargs.get(name) not in (None, False):
            raise ValueError(
                f"expected no {name}, got one: stages don't keep what their layers did for later "
                "tokens; they are for whole sequences"
            )
    layerdrop = getattr(config, "layerdrop", 0) or 0
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


def _tied(modules: Sequence[nn.Module]) -> list[Tied]:
    """The parameters that several stages use."""
    uses: dict[nn.Parameter, list[tuple[int, str]]] = {}
    for stage, module in enumerate(modules):
        for name, parameter in module.named_parameters(remove_duplicate=False):
            uses.setdefault(parameter, []).append((stage, name))
    return [Tied(tuple(of)) for of in uses.values() if of[0][0] != of[-1][0]]


def _check_names(model: nn.Module, stages: Stages) -> None:
    kept = {name for names in stages.names for name in names}
    if lost := [name for name in model.state_dict(keep_vars=True) if name not in kept]:
        raise ValueError(
            f"every parameter must have a place in the plan; {', '.join(lost)} have none"
        )


def _is_meta(model: nn.Module) -> bool:
    return any(parameter.device.type == "meta" for parameter in model.parameters())
