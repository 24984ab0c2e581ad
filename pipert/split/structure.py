"""Cuts a model between layers that run one after the other, as its structure has them."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from pipert.balance import Balance, Cuts, check_balance, choose_cuts, costs_of, needs_profiles
from pipert.layer_profile import LayerProfile, profile_in_turn
from pipert.split.layer_paths import given_layers
from pipert.split.layer_spec import BuiltStage, ties_of
from pipert.stage_placement import PlacementLike
from pipert.stage_table import leaf_children
from pipert.stages import StageCosts, Stages


def split(
    model: nn.Module | Sequence[Any],
    num_stages: int | None = None,
    at: Sequence[str] | None = None,
    example_args: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    balance: Balance = "parameters",
    *,
    layers: str | Sequence[str] | None = None,
    memory_limit: float | Sequence[float] | None = None,
    placement: PlacementLike = None,
) -> Stages:
    """Cuts a model into stages that hold its own submodules and parameters.

    An nn.Sequential (nested ones too) is cut between its layers. Any other model is taken to run
    its children one after the other, in the order in which they were registered (a ModuleList's
    entries likewise), or in that of `layers`; that this is so is checked with `example_args`, bit
    for bit.

    Args:
        model: the unpartitioned model, whose submodules the stages share; or a list of its layers:
            modules, LayerSpecs, or functions without arguments that build one. A stage with one
            that is still to be built is built as a whole on its own rank alone.
        num_stages: how many stages to cut it into; not together with `at`.
        at: the layers that begin a new stage, by path ("layers.4"), in order.
        example_args: positional arguments of one forward, of one microbatch. Needed unless the
            model is an nn.Sequential, and for "time" and "memory".
        example_kwargs: must be empty: layers that run one after the other take one value.
        balance: of what the stages of each rank have as little as can be, the one that has most:
            "parameters"; "time" of forward and backward, measured layer by layer on
            `example_args` (on the meta device: estimated); "memory" of parameters, gradients, two
            moments of an optimizer and activations; or `balance(path, layer)`, a number for each
            layer. "uniform": as many layers in each. Or the number of layers of each stage.
        layers: the children that run, by path in the order in which they do: of a ModuleList or a
            Sequential its entries. Or the path of one ModuleList: what was registered before it
            and around it runs before it, and so on.
        memory_limit: the bytes that the stages of a rank may take (see "memory"); one number, or
            one for each rank.
        placement: which rank owns which stage: a Placement, the rank of each stage, "v" (two
            stages a rank, down and up again), or the Schedule that will run, which also says how
            many activations a stage holds. None: one stage a rank.

    Returns:
        The stages, with the parameter names of the unpartitioned model, and with their costs where
        layers were measured.

    Raises:
        TypeError: `model` is not a module.
        ValueError: the model can't be cut as asked for; the message says why.
    """
    if not isinstance(model, nn.Module) and not isinstance(model, list | tuple):
        raise TypeError(
            f"model must be an nn.Module or a list of layers, got {type(model).__name__}"
        )
    _check_types(num_stages, at, example_args, layers)
    check_balance(balance)
    if example_kwargs:
        raise ValueError(
            "layers that run one after the other take one value: expected no example_kwargs, got "
            + ", ".join(example_kwargs)
        )
    given = given_layers(model, layers)
    skeleton = BuiltStage(given).skeleton if isinstance(model, list | tuple) else None
    looked_at = given if skeleton is None else list(skeleton.named_children())
    if skeleton is not None:  # a layer that is used twice has its name once there
        looked_at = [(name, skeleton.get_submodule(name)) for name, _ in given]
    cuts = _cuts(looked_at, num_stages, at, example_args, balance, memory_limit, placement)
    parts, start = [], 0
    for size in cuts.sizes:
        parts.append(given[start : start + size])
        start += size
    costs = costs_of(cuts)
    if any(not isinstance(layer, nn.Module) for _, layer in given):
        return _to_be_built(parts, costs)
    result = Stages([_nest(part) for part in parts], costs=costs)
    if isinstance(model, nn.Module):
        _check_names(model, result)
        _check_runs_so(model, result, example_args, layers is not None)
    return result


def _to_be_built(parts: list[list[tuple[str, Any]]], costs: StageCosts | None) -> Stages:
    """Stages of which a rank builds its own alone."""
    built = [BuiltStage(part) for part in parts]
    stages = [stage.skeleton if stage.is_built else stage for stage in built]
    names = [list(stage.skeleton.state_dict(keep_vars=True)) for stage in built]
    return Stages(stages, names=names, tied=ties_of(built), costs=costs)


def _check_types(num_stages: Any, at: Any, example_args: Any, layers: Any) -> None:
    if num_stages is not None and (isinstance(num_stages, bool) or not isinstance(num_stages, int)):
        raise TypeError(f"num_stages must be an integer, got {num_stages!r}")
    if at is not None and (isinstance(at, str) or not isinstance(at, Sequence)):
        raise TypeError(f'at must be a list of paths such as ["layers.4"], got {at!r}')
    if example_args is not None and not isinstance(example_args, tuple):
        raise TypeError(f"example_args must be a tuple, got {type(example_args).__name__}")
    if layers is not None and not (
        isinstance(layers, Sequence) and all(isinstance(path, str) for path in layers)
    ):
        raise TypeError(
            f'layers must be paths such as ["embed", "layers", "head"], or one; got {layers!r}'
        )


def _cuts(
    layers: list[tuple[str, nn.Module]],
    num_stages: int | None,
    at: Sequence[str] | None,
    example_args: tuple[Any, ...] | None,
    balance: Balance,
    memory_limit: float | Sequence[float] | None,
    placement: PlacementLike,
) -> Cuts:
    if at is None:
        return choose_cuts(
            layers,
            num_stages,
            balance,
            placement=placement,
            memory_limit=memory_limit,
            profile=partial(_profiles, layers, example_args),
        )
    if num_stages is not None and num_stages != len(at) + 1:
        raise ValueError(f"at={list(at)} makes {len(at) + 1} stages, got num_stages={num_stages}")
    if memory_limit is not None:
        raise ValueError("memory_limit is for cuts that split chooses: expected num_stages, got at")
    measured = needs_profiles(balance, memory_limit)
    return Cuts(
        _sizes_at([path for path, _ in layers], at),
        _profiles(layers, example_args) if measured else None,
    )


def _profiles(
    layers: list[tuple[str, nn.Module]], example_args: tuple[Any, ...] | None
) -> list[LayerProfile]:
    if example_args is None:
        raise ValueError(
            "to measure what layers take: expected example_args, the arguments of one "
            "microbatch's forward; got None"
        )
    return profile_in_turn(layers, example_args)


def _sizes_at(paths: list[str], at: Sequence[str]) -> list[int]:
    starts = [0]
    for point in at:
        inside = [
            i for i, path in enumerate(paths) if path == point or path.startswith(f"{point}.")
        ]
        if not inside:
            raise ValueError(
                f"at names no layer: expected one of {', '.join(paths)}; got {point!r}"
            )
        if inside[0] <= starts[-1]:
            raise ValueError(
                f"at must name layers after the first, in order; got {point!r} in {list(at)}"
            )
        starts.append(inside[0])
    return [end - start for start, end in zip(starts, [*starts[1:], len(paths)], strict=True)]


def _nest(layers: list[tuple[str, nn.Module]]) -> nn.Sequential:
    """Sequentials in Sequentials, so that each layer keeps its path."""
    groups: OrderedDict[str, list[tuple[str, nn.Module]]] = OrderedDict()
    for path, layer in layers:
        head, _, rest = path.partition(".")
        groups.setdefault(head, []).append((rest, layer))
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for head, inside in groups.items():
        is_layer = len(inside) == 1 and not inside[0][0]
        children[head] = inside[0][1] if is_layer else _nest(inside)
    return nn.Sequential(children)


def _check_names(model: nn.Module, stages: Stages) -> None:
    """Parameters that belong to the model itself, and to no layer, would be lost."""
    kept = {name for names in stages.names for name in names}
    lost = [name for name in model.state_dict() if name not in kept]
    if lost:
        raise ValueError(
            f"every parameter and buffer must belong to a layer; {', '.join(lost)} "
            f"belong to {type(model).__name__} itself"
        )


def _check_runs_so(
    model: nn.Module, stages: Stages, example_args: tuple[Any, ...] | None, is_named: bool
) -> None:
    """Checks that the model is its layers, one after the other, unless it says so itself."""
    on_meta = any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    if example_args is not None and not on_meta:
        _check_same(model, stages, example_args)
    elif type(model).forward is not nn.Sequential.forward and not (on_meta and is_named):
        raise ValueError(
            f"{type(model).__name__} is not an nn.Sequential: expected example_args, to check that "
            "its children run one after the other; got "
            + ("a model on meta, which can't run: name them, layers=[...]" if on_meta else "None")
        )


def _check_same(model: nn.Module, stages: Stages, example_args: tuple[Any, ...]) -> None:
    if len(example_args) != 1:
        raise ValueError(
            "layers that run one after the other take one value: expected one example argument, "
            f"got {len(example_args)}"
        )
    names = " -> ".join(path for stage in stages for path, _ in leaf_children(stage))
    was_training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            expected = model(*example_args)
            value = example_args[0]
            for i, stage in enumerate(stages):
                try:
                    value = stage(value)
                except Exception as error:
                    raise ValueError(
                        f"{type(model).__name__} does not run its children one after the other "
                        f"({names}): stage {i} fails when it does"
                    ) from error
    finally:
        for module, training in was_training:
            module.training = training
    if not _equal(value, expected):
        raise ValueError(
            f"{type(model).__name__} does not run its children one after the other ({names}): the "
            "outputs differ"
        )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)
