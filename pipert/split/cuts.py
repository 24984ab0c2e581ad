"""Cuts that the caller names, or leaves to a balance."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pipert.balancing.agreed_cuts import AgreedCuts
from pipert.balancing.balance import Balance, Cuts, choose_cuts, needs_profiles
from pipert.balancing.layer_profile import LayerProfile
from pipert.balancing.stage_placement import PlacementLike
from pipert.near_names import near_names


def cuts_of(
    pieces: Sequence[tuple[Sequence[str], Any]],
    num_stages: int | None,
    at: Sequence[str] | None,
    balance: Balance,
    *,
    memory_limit: float | Sequence[float] | None,
    placement: PlacementLike,
    agreed: AgreedCuts,
    profile: Callable[[], list[LayerProfile]],
) -> Cuts:
    """Cuts pieces of a model into stages.

    Args:
        pieces: for each the paths by which `at` may name it, and the module.
        num_stages: see `pipert.split`; so are the others.
        at: the pieces that begin a stage.
        balance: without `at`: how they are shared out.
        memory_limit: of a rank.
        placement: of the stages.
        agreed: whose cuts these are.
        profile: what the pieces take; called if it is needed.

    Raises:
        ValueError, TypeError: they can't be cut so.
    """
    layers = [(paths[0] if paths else "", module) for paths, module in pieces]
    if at is None:
        choose = partial(
            choose_cuts,
            layers,
            num_stages,
            balance,
            placement=placement,
            memory_limit=memory_limit,
            profile=profile,
        )
        return agreed.chosen(choose, len(layers))
    if num_stages is not None and num_stages != len(at) + 1:
        raise ValueError(f"at={list(at)} makes {len(at) + 1} stages, got num_stages={num_stages}")
    if memory_limit is not None:
        raise ValueError("memory_limit is for cuts that split chooses: expected num_stages, got at")
    sizes = _sizes_at([paths for paths, _ in pieces], at)
    return Cuts(sizes, agreed.measured(profile) if needs_profiles(balance, memory_limit) else None)


def _sizes_at(pieces: Sequence[Sequence[str]], at: Sequence[str]) -> list[int]:
    starts = [0]
    for point in at:
        inside = [
            index
            for index, paths in enumerate(pieces)
            if any(path == point or path.startswith(f"{point}.") for path in paths)
        ]
        if not inside:
            known = [path for paths in pieces for path in paths]
            near = near_names(point, known)
            raise ValueError(
                f"at names no layer: expected one of {', '.join(known)}; got {point!r}{near}"
            )
        if inside[0] <= starts[-1]:
            raise ValueError(
                f"at must name layers after the first, in order; got {point!r} in {list(at)}"
            )
        starts.append(inside[0])
    return [end - start for start, end in zip(starts, [*starts[1:], len(pieces)], strict=True)]
