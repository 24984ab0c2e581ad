"""split: cuts a model into stages, by the way that fits it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import nn

from pipert.balancing.balance import Balance, check_balance
from pipert.balancing.stage_placement import PlacementLike, StagePlacement
from pipert.split import structure
from pipert.split.check import Check
from pipert.split.example import is_on_meta
from pipert.split.layer_list import LayerList
from pipert.split.points import points_of
from pipert.stages import Stages

Way = Literal["auto", "structure", "trace", "plan"]
_WAYS = ("auto", "structure", "trace", "plan")


def split(
    model: nn.Module | Sequence[Any],
    num_stages: int | None = None,
    at: Sequence[str] | None = None,
    example_args: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    balance: Balance = "parameters",
    *,
    by: Way = "auto",
    pipeline_cuts: Sequence[str] | None = None,
    layers: str | Sequence[str] | LayerList | None = None,
    memory_limit: float | Sequence[float] | None = None,
    placement: PlacementLike = None,
    leaf_functions: Iterable[Callable[..., Any]] = (),
    fixed_batch: bool = False,
    check: Check = True,
) -> Stages:
    """Cuts a model into stages that hold its own submodules and parameters.

    There are three ways, with one result; docs/split.md tells them apart. By structure: an
    nn.Sequential or a list of layers is cut between its layers, and so is any other model that is
    found to run its children one after the other. By tracing: torch.export follows the model's
    forward as far as the cuts ask for, and what jumps over stages travels on skip edges. By plan:
    transformers models that say how they are built need no trace.

    Args:
        model: the unpartitioned model, whose submodules the stages share; or a list of its layers,
            modules, LayerSpecs, or functions without arguments that build one. A stage with one
            that is still to be built is built as a whole on its own rank alone.
        num_stages: how many stages to cut it into; where `at`, marks, `balance` or `placement` say
            it too, they must agree.
        at: the modules whose first call begins a new stage, by path ("layers.4"), in order.
            Without it, `annotate_split_points` and `pipe_split()` say where to cut, or else
            num_stages and balance.
        example_args: positional arguments of one forward, with the rows of one microbatch, at least
            two. Not needed for an nn.Sequential or a list.
        example_kwargs: its keyword arguments.
        balance: with num_stages: of what the stages of each rank have as little as can be, the one
            that has most: "parameters"; "time" of forward and backward, measured layer by layer on
            the example (on the meta device: estimated); "memory" of parameters, gradients, two
            moments of an optimizer and activations; or `balance(path, layer)`, a number for each
            layer. "uniform": as many layers in each. Or the number of layers of each stage. See
            docs/layers.md.
        by: the way: "structure", "trace", "plan", or "auto": by structure what runs its children
            one after the other, by plan transformers models that have one, by tracing all others.
        pipeline_cuts: another name of `at`.
        layers: by structure: the children that run, by path in the order in which they do: of a
            ModuleList or a Sequential its entries. Or the path of one ModuleList: what was
            registered before it, and before a module that it is in, runs before it, and so on. Or
            a LayerList, which says what the model's forward does around the list.
        memory_limit: the bytes that the stages of a rank may take (see "memory"); one number, or
            one for each rank.
        placement: for `balance`, which rank owns which stage: a Placement, the rank of each stage,
            "v" (two stages a rank, down and up again), or the Schedule that will run, which also
            says how many activations a stage holds. None: one stage a rank.
        leaf_functions: by tracing: functions that the trace is not to look into, such as those
            whose result depends on the values of tensors. They run as they are in the stage.
        fixed_batch: by tracing: whether to take a model that fixes the batch dimension. It then
            takes microbatches of the example's size alone.
        check: by tracing, and by plan where there is an example: whether to run the model and its
            stages on it, and to compare the outputs, bit for bit; "gradients": those of all
            parameters too. Models on the meta device can't be checked.

    Returns:
        The stages, with the parameter names of the unpartitioned model, and with their costs where
        layers were measured.

    Raises:
        TypeError: an argument of another type, or examples that don't fit the model's forward.
        ValueError: the model can't be cut as asked for; the message says why.
    """
    if by not in _WAYS:
        raise ValueError(f"by must be one of {', '.join(_WAYS)}, got {by!r}")
    if pipeline_cuts is not None:
        if at is not None:
            raise ValueError("expected at or pipeline_cuts, which mean the same; got both")
        at = pipeline_cuts
    kwargs = example_kwargs or {}
    check_balance(balance)
    num_stages = _num_stages(num_stages, at, balance, placement)
    limits = _Limits(memory_limit, placement)

    def by_structure() -> Stages:
        return structure.split(
            model, num_stages, at, example_args, kwargs, balance, layers=layers, **limits._asdict()
        )

    if layers is not None:
        if by not in ("auto", "structure"):
            raise ValueError(f"layers are for a cut by structure, got by={by!r}")
        return by_structure()
    if not isinstance(model, nn.Module):
        if by not in ("auto", "structure"):
            raise ValueError(f"a list of layers can only be cut by structure, got by={by!r}")
        return by_structure()
    structure.check_types(model, num_stages, at, example_args, layers)
    way = _way(model, at, example_args, kwargs) if by == "auto" else by
    if way == "either":
        try:
            return by_structure()
        except ValueError:
            way = "trace"
    if way == "structure":
        return by_structure()
    if way == "plan":
        if limits != _Limits():
            raise ValueError(
                "memory_limit and placement are for cuts by structure and by tracing: expected "
                'by="trace" with them, got a model that is cut by its plan'
            )
        plan = _transformers().split_by_plan
        made: Stages = plan(model, num_stages, at, example_args or (), kwargs, balance, check)
        return made
    if example_args is None and example_kwargs is None:
        raise ValueError(
            f"expected example_args or example_kwargs, to trace {type(model).__name__} with; "
            "got None"
        )
    return _by_trace(
        model,
        num_stages,
        at,
        example_args or (),
        kwargs,
        balance,
        limits,
        leaf_functions,
        fixed_batch,
        check,
    )


class _Limits(NamedTuple):
    """What a balance goes by beside its measure."""

    memory_limit: float | Sequence[float] | None = None
    placement: PlacementLike = None


def _num_stages(
    given: int | None, at: Sequence[str] | None, balance: Balance, placement: PlacementLike
) -> int | None:
    """As many as something says; None: nothing does."""
    if given is not None or at is not None:
        return given
    if isinstance(balance, Sequence) and not isinstance(balance, str):
        return len(balance)
    if placement is not None and placement != "v":
        return StagePlacement(placement, None).num_stages
    return None


def _way(
    model: nn.Module,
    at: Sequence[str] | None,
    example_args: tuple[Any, ...] | None,
    kwargs: Mapping[str, Any],
) -> Literal["structure", "plan", "trace", "either"]:
    """The way that fits a model; "either": by structure if it runs its children in order."""
    is_marked = bool(points_of(model, None))
    if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
        return "trace" if is_marked else "structure"
    if (
        at is None
        and not is_marked
        and _is_of_transformers(model)
        and _transformers().has_plan(model)
    ):
        return "plan"
    if example_args is None and not kwargs:
        return "structure"  # which says why it needs an example
    one_by_one = len(example_args or ()) == 1 and not kwargs and not is_marked
    return "either" if one_by_one and not is_on_meta(model) else "trace"


def _by_trace(
    model: nn.Module,
    num_stages: int | None,
    at: Sequence[str] | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    balance: Balance,
    limits: _Limits,
    leaf_functions: Iterable[Callable[..., Any]],
    fixed_batch: bool,
    check: Check,
) -> Stages:
    from pipert.split.traced import split_by_trace  # torch.export is slow to import

    own: Mapping[str, Any] = {}
    if any(map(_is_of_transformers, model.modules())):
        from pipert.integrations.transformers.traced_arguments import traced_arguments

        leaf_functions = (*leaf_functions, *_transformers().leaf_functions_of(model))
        own = traced_arguments(model, kwargs)
    return split_by_trace(
        model,
        num_stages,
        at,
        args,
        kwargs,
        balance=balance,
        memory_limit=limits.memory_limit,
        placement=limits.placement,
        own_kwargs=own,
        leaf_functions=leaf_functions,
        fixed_batch=fixed_batch,
        check=check,
    )


def _is_of_transformers(module: nn.Module) -> bool:
    return any(kind.__module__.startswith("transformers.") for kind in type(module).__mro__)


def _transformers() -> Any:
    from pipert.integrations import transformers

    return transformers
