"""What all ranks of a pipeline must have in common, before their first step."""

import hashlib
import itertools
import sys
from typing import Any

import torch

import pipert
from pipert import _C
from pipert.processes.distributed import Peers


def require_same(peers: Peers, schedule: _C.Schedule, call: str, **options: Any) -> None:
    """Checks that all ranks have the same schedule, whatever its name, and the same options.

    A collective call.

    Args:
        peers: the ranks.
        schedule: this rank's.
        call: what the ranks are doing, the same words on all.
        **options: this rank's, JSON values.

    Raises:
        ValueError: on every rank, with the first difference.
    """
    software = _software()
    arguments = {
        **software,
        "num_microbatches": schedule.num_microbatches,
        "num_stages": schedule.num_stages,
        "schedule.placement.ranks": schedule.placement.ranks,
        "schedule.placement.num_copies": schedule.placement.num_copies,
        **options,
    }
    told = peers.exchange(call, arguments)
    # First: another version may have other options.
    _check_same(
        [{name: rank[name] for name in software} for rank in told], "run different software"
    )
    _check_same(told)
    # All actions to all ranks would be gigabytes for a large schedule.
    digest = hashlib.sha256(schedule.to_csv().encode()).hexdigest()
    if len(set(peers.exchange(call, digest))) == 1:
        return
    actions = [[str(action) for action in rank] for rank in schedule.actions]
    _check_same(peers.exchange(call, {"schedule.actions": actions}))


def _software() -> dict[str, str]:
    """What the bytes of a message depend on, and of a result."""
    return {
        "version of pipert": pipert.__version__,
        "version of torch": torch.__version__.partition("+")[0],
        "byte order": sys.byteorder,
    }


def _check_same(
    everybody: list[dict[str, Any]], how: str = "were given different arguments"
) -> None:
    """Raises ValueError with the first difference between what the ranks gave."""
    for name, mine in everybody[0].items():
        for rank, theirs in enumerate(everybody):
            if theirs[name] != mine:
                where, first, other = _first_difference(name, mine, theirs[name])
                raise ValueError(
                    f"ranks {how}: {where} is {first} on rank 0 and {other} on rank {rank}"
                )


def _first_difference(name: str, one: Any, other: Any) -> tuple[str, Any, Any]:
    """Where two values that are not equal differ, as in "name[2][0]", and both values there."""
    if isinstance(one, list) and isinstance(other, list):
        for i, pair in enumerate(itertools.zip_longest(one, other)):
            if pair[0] != pair[1]:
                return _first_difference(f"{name}[{i}]", *pair)
    return name, one, other
