"""split: cuts a model into stages, by the way that fits it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import nn

from pipert.balancing.agreed_cuts import AgreedCuts
from pipert.balancing.balance import Balance, check_balance, needs_profiles
from pipert.balancing.stage_placement import PlacementLike, StagePlacement
from pipert.processes.distributed import Peers, telling
from pipert.processes.group import as_group
from pipert.split import structure
from pipert.split.check import Check
from pipert.split.example import is_on_meta
from pipert.split.layer_list import LayerList
from pipert.split.outputs import Outputs, check_outputs
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
    send_arguments: bool = False,
    outputs: Outputs = None,
    tied: Iterable[Sequence[str]] = (),
    check: Check = True,
    group: Any = None,
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
        send_arguments: by tracing: whether the first stage alone is given the batch's arguments,
            and sends to later ones those that they read. Otherwise each stage that reads an
            argument is given it.
        outputs: by tracing and by plan: what the last stage returns, by name (or place) in what the
            model does, such as ["loss", "logits"]; in place of all else it has None. What only
            other outputs need then doesn't travel, nor is it computed where that can be left out.
        tied: parameters that are one beside those that the model has as one object: for each a
            group of names, such as ("embed.weight", "head.weight"). For those that are built, or
            loaded, apart.
        check: by tracing, and by plan where there is an example: whether to run the model and its
            stages on it, and to compare the outputs, bit for bit, and what autograd recorded;
            "gradients": to run a backward in any case. Models on the meta device can't be checked.
        group: the processes that split the model together, all of them calling this alike: a
            ProcessGroup or a one-dimensional DeviceMesh. What is to be measured, or asked of a
            function, is so on the first rank, and all have its cuts and costs. None: this process
            measures for itself, and others may cut elsewhere.

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
    check_balance(balance)
    check_outputs(outputs)
    peers = None if group is None else Peers(as_group(group))
    is_shared = needs_profiles(balance, memory_limit) or callable(balance)
    asked = _Asked(
        model=model,
        num_stages=_num_stages(num_stages, at, balance, placement),
        at=at,
        example_args=example_args,
        example_kwargs=example_kwargs,
        balance=balance,
        layers=layers,
        limits=_Limits(memory_limit, placement, AgreedCuts(peers if is_shared else None)),
        leaf_functions=leaf_functions,
        fixed_batch=fixed_batch,
        send_arguments=send_arguments,
        outputs=outputs,
        check=check,
    )
    with telling(peers):
        stages = _BY_WAY[_way(asked, by)](asked)
    stages.tie(tied)
    return stages


class _Limits(NamedTuple):
    """What a balance goes by beside its measure."""

    memory_limit: float | Sequence[float] | None
    placement: PlacementLike
    agreed: AgreedCuts


@dataclass(frozen=True)
class _Asked:
    """The arguments of `split`, which see."""

    model: Any
    num_stages: int | None
    at: Sequence[str] | None
    example_args: tuple[Any, ...] | None
    example_kwargs: Mapping[str, Any] | None
    balance: Balance
    layers: str | Sequence[str] | LayerList | None
    limits: _Limits
    leaf_functions: Iterable[Callable[..., Any]]
    fixed_batch: bool
    send_arguments: bool
    outputs: Outputs
    check: Check


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


def _way(asked: _Asked, by: Way) -> Literal["structure", "plan", "trace", "either"]:
    """The way that is asked for, or else that fits the model."""
    for is_given, what in (
        (asked.layers is not None, "layers are for a cut"),
        (not isinstance(asked.model, nn.Module), "a list of layers can only be cut"),
    ):
        if is_given:
            if by not in ("auto", "structure"):
                raise ValueError(f"{what} by structure, got by={by!r}")
            return "structure"
    structure.check_types(asked.model, asked.num_stages, asked.at, asked.example_args, asked.layers)
    return _way_that_fits(asked) if by == "auto" else by


def _way_that_fits(asked: _Asked) -> Literal["structure", "plan", "trace", "either"]:
    """As `_way`; "either": by structure if it runs its children in order."""
    model, args, kwargs = asked.model, asked.example_args, asked.example_kwargs
    is_marked = bool(points_of(model, None))
    if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
        return "trace" if is_marked else "structure"
    if (
        asked.at is None
        and not is_marked
        and _is_of_transformers(model)
        and _transformers().has_plan(model)
    ):
        return "plan"
    if args is None and not kwargs:
        raise ValueError(
            f"{type(model).__name__} is not an nn.Sequential: expected example_args or "
            "example_kwargs, to see whether it runs its children one after the other, and to trace "
            "its forward if it doesn't; got None"
        )
    one_by_one = len(args or ()) == 1 and not kwargs and not is_marked
    can_be_either = one_by_one and asked.outputs is None and not is_on_meta(model)
    return "either" if can_be_either else "trace"


def _by_structure(asked: _Asked) -> Stages:
    if asked.outputs is not None:
        raise ValueError(
            "outputs are for cuts by tracing and by plan: expected None, since layers that run one "
            f"after the other return what the last one does; got {list(asked.outputs)}"
        )
    return structure.split(
        asked.model,
        asked.num_stages,
        asked.at,
        asked.example_args,
        asked.example_kwargs,
        asked.balance,
        layers=asked.layers,
        **asked.limits._asdict(),
    )


def _by_structure_or_trace(asked: _Asked) -> Stages:
    try:
        return _by_structure(asked)
    except ValueError:
        return _by_trace(asked)


def _by_plan(asked: _Asked) -> Stages:
    stages: Stages = _transformers().split_by_plan(
        asked.model,
        asked.num_stages,
        asked.at,
        asked.example_args or (),
        asked.example_kwargs,
        asked.balance,
        asked.check,
        outputs=asked.outputs,
        **asked.limits._asdict(),
    )
    return stages


def _by_trace(asked: _Asked) -> Stages:
    from pipert.split.traced import split_by_trace  # torch.export is slow to import

    model, kwargs = asked.model, asked.example_kwargs or {}
    if asked.example_args is None and asked.example_kwargs is None:
        raise ValueError(
            f"expected example_args or example_kwargs, to trace {type(model).__name__} with; "
            "got None"
        )
    leaf_functions = asked.leaf_functions
    own: Mapping[str, Any] = {}
    if any(map(_is_of_transformers, model.modules())):
        from pipert.integrations.transformers.traced_arguments import traced_arguments

        leaf_functions = (*leaf_functions, *_transformers().leaf_functions_of(model))
        own = traced_arguments(model, kwargs)
    return split_by_trace(
        model,
        asked.num_stages,
        asked.at,
        asked.example_args or (),
        kwargs,
        balance=asked.balance,
        own_kwargs=own,
        leaf_functions=leaf_functions,
        fixed_batch=asked.fixed_batch,
        send_arguments=asked.send_arguments,
        outputs=asked.outputs,
        check=asked.check,
        **asked.limits._asdict(),
    )


_BY_WAY: Mapping[str, Callable[[_Asked], Stages]] = {
    "structure": _by_structure,
    "either": _by_structure_or_trace,
    "plan": _by_plan,
    "trace": _by_trace,
}


def _is_of_transformers(module: nn.Module) -> bool:
    return any(kind.__module__.startswith("transformers.") for kind in type(module).__mro__)


def _transformers() -> Any:
    from pipert.integrations import transformers

    return transformers
