"""Balance: which layers a stage gets, so that the longest rank is as short as can be."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipert import _C
from pipert.balancing.exchange_costs import exchange_costs
from pipert.balancing.layer_profile import LayerProfile, add_up
from pipert.balancing.stage_placement import PlacementLike, StagePlacement
from pipert.signatures import takes_two
from pipert.stages import StageCosts, Value

Balance = str | Sequence[int] | Callable[[str, Any], float]
Layers = Sequence[tuple[str, Any]]

_WORDS = ("parameters", "memory", "time", "uniform")
_EXPECTED = (
    "balance must be 'parameters', 'memory', 'time', 'uniform', the number of layers of each "
    "stage, or a function of a layer's name and module"
)
# Two moments in float32, as Adam has them, for each element that is trained.
_OPTIMIZER_BYTES = 8


@dataclass(frozen=True)
class Cuts:
    """Which layers make up each stage.

    Attributes:
        sizes: by stage, how many.
        profiles: by layer, if they were looked at.
    """

    sizes: list[int]
    profiles: list[LayerProfile] | None = None


def check_balance(balance: Any) -> None:
    """Checks what can be checked before there are layers.

    Raises:
        TypeError, ValueError: it is nothing that says how to cut.
    """
    if isinstance(balance, str):
        if balance not in _WORDS:
            raise ValueError(f"{_EXPECTED}; got {balance!r}")
    elif callable(balance):
        if not takes_two(balance):
            raise TypeError(
                "balance must take a layer's path and the layer, as balance(path, layer) does; got "
                f"{balance!r}"
            )
    elif not (isinstance(balance, Sequence) and all(type(size) is int for size in balance)):
        raise TypeError(f"{_EXPECTED}; got {balance!r}")


def needs_profiles(balance: Balance, memory_limit: Any) -> bool:
    """Whether layers must be run, or estimated, to choose cuts."""
    return balance in ("memory", "time") or memory_limit is not None


def choose_cuts(
    layers: Layers,
    num_stages: int | None,
    balance: Balance,
    *,
    placement: PlacementLike = None,
    memory_limit: float | Sequence[float] | None = None,
    profile: Callable[[], list[LayerProfile]],
) -> Cuts:
    """Cuts layers into stages.

    Args:
        layers: paths and modules, in the order in which they run. A module may be on meta.
        num_stages: None: as many as `balance` or `placement` has.
        balance: see `pipert.split`.
        placement: likewise.
        memory_limit: likewise.
        profile: what the layers take; called if it is needed.

    Raises:
        ValueError, TypeError: the model can't be cut so.
    """
    check_balance(balance)
    if not isinstance(balance, str) and not callable(balance):
        if memory_limit is not None:
            raise ValueError("expected the layers of each stage or memory_limit, got both")
        return Cuts(_given_sizes(list(balance), num_stages, len(layers)))
    _check_num_stages(num_stages, len(layers))
    placed = StagePlacement(placement, num_stages)
    num_stages = placed.num_stages
    _check_num_stages(num_stages, len(layers))
    if balance == "uniform" and memory_limit is None:
        size, more = divmod(len(layers), num_stages)
        return Cuts([size + (stage < more) for stage in range(num_stages)])
    profiles = profile() if needs_profiles(balance, memory_limit) else None
    held = None if profiles is None else _memory(layers, profiles, placed)
    work = held if balance == "memory" and held else _work(layers, balance, profiles)
    found = _C.balanced_cuts(
        work,
        placed.placement,
        held=held,
        limit=_limits(memory_limit, placed.placement),
        **_step(work, profiles if balance == "time" else None, placed),
    )
    return Cuts(found.cuts, profiles)


def costs_of(cuts: Cuts, values: Iterable[Value] | None = None) -> StageCosts | None:
    """What the stages take, for `simulate`, `Schedule.search` and `search_partition`.

    Args:
        cuts: of the model.
        values: that stages hand to each other; None: what the last layer of each returns.
    """
    if cuts.profiles is None:
        return None
    edges = itertools.pairwise([0, *itertools.accumulate(cuts.sizes)])
    stages = [add_up("", cuts.profiles[begin:end]) for begin, end in edges]
    if values is None:
        exchanged: dict[str, Any] = {"bytes": [stage.output_bytes for stage in stages]}
    else:
        exchanged = exchange_costs(values, len(stages))
    return StageCosts(
        forward=[stage.forward for stage in stages],
        input=[stage.input for stage in stages],
        weight=[stage.weight for stage in stages],
        **exchanged,
        activation_bytes=[stage.saved_bytes for stage in stages],
        is_estimated=any(stage.is_estimated for stage in stages),
    )


def layer_cost(balance: Callable[[str, Any], float], path: str, layer: Any) -> float:
    """What a function says that a layer costs.

    Raises:
        ValueError: it says something else.
    """
    value = balance(path, layer)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not math.isfinite(number) or number < 0:
        raise ValueError(
            f"balance must return a finite number that is at least 0; for layer {path} got "
            f"{value!r}"
        )
    return number


def state_bytes(layer: Any) -> int:
    """Parameters, their gradients, an optimizer's two moments, and buffers."""
    if not isinstance(layer, nn.Module):
        return 0
    size = sum(t.numel() * t.element_size() for t in (*layer.parameters(), *layer.buffers()))
    trained = [p for p in layer.parameters() if p.requires_grad]
    return size + sum(p.numel() * (p.element_size() + _OPTIMIZER_BYTES) for p in trained)


def _check_num_stages(num_stages: int | None, num_layers: int) -> None:
    if num_stages is not None and not 1 <= num_stages <= num_layers:
        raise ValueError(
            f"num_stages must be from 1 to {num_layers} (the model's layers), got {num_stages}"
        )


def _given_sizes(sizes: list[int], num_stages: int | None, num_layers: int) -> list[int]:
    if num_stages is None:
        num_stages = len(sizes)
    if len(sizes) != num_stages or sum(sizes) != num_layers or min(sizes, default=0) < 1:
        raise ValueError(
            f"balance must be {num_stages} positive numbers with the sum {num_layers} (the "
            f"model's layers), got {sizes}"
        )
    return sizes


def _work(layers: Layers, balance: Balance, profiles: list[LayerProfile] | None) -> list[float]:
    if balance == "time" and profiles is not None:
        return [profile.forward + profile.input + profile.weight for profile in profiles]
    if balance == "uniform":
        return [1.0] * len(layers)
    if callable(balance):
        return [layer_cost(balance, path, layer) for path, layer in layers]
    return [
        float(sum(p.numel() for p in layer.parameters())) if isinstance(layer, nn.Module) else 0.0
        for _, layer in layers
    ]


def _step(
    work: _C.Measure | list[float], profiles: list[LayerProfile] | None, placed: StagePlacement
) -> dict[str, Any]:
    """What to simulate where ranks have several stages: there equal work is not all that counts."""
    has_several = placed.placement.num_stages > placed.placement.num_ranks
    if isinstance(work, _C.Measure) or not has_several:
        return {}
    if profiles is None:
        third = [number / 3 for number in work]
        costs = _C.Costs(forward=third, input=third, weight=third)
    else:
        costs = _C.Costs(
            forward=[profile.forward for profile in profiles],
            input=[profile.input for profile in profiles],
            weight=[profile.weight for profile in profiles],
        )
    schedule = placed.usual_schedule()
    return {} if schedule is None else {"schedule": schedule, "costs": costs}


def _memory(layers: Layers, profiles: list[LayerProfile], placed: StagePlacement) -> _C.Measure:
    return _C.Measure(
        once=[state_bytes(layer) for _, layer in layers],
        each=[profile.saved_bytes for profile in profiles],
        times=placed.microbatches_held(),
    )


def _limits(
    limit: float | Sequence[float] | None, placement: _C.Placement
) -> float | Sequence[float] | None:
    if limit is None or isinstance(limit, int | float):
        return limit
    if not isinstance(limit, Sequence) or len(limit) != placement.num_ranks:
        raise ValueError(
            f"memory_limit must be bytes: one number, or one for each of {placement.num_ranks} "
            f"ranks; got {limit!r}"
        )
    return limit
