"""What the values that stages hand to each other cost on their way."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from pipert.stages import Value


def exchange_costs(values: Iterable[Value], num_stages: int) -> dict[str, Any]:
    """Arguments of Costs: the bytes of messages between neighbours, and of those beyond them.

    A value's gradient comes back by way of its readers: Note [Star and relay] in csrc/ir/routes.h.

    Args:
        values: a size that isn't known counts as none.
        num_stages: of the model.
    """
    sent, returned = [0] * num_stages, [0] * num_stages
    skips: list[tuple[int, tuple[int, ...], int]] = []
    for value in values:
        size = value.bytes or 0
        if value.readers == (value.maker + 1,):
            sent[value.maker] += size
            returned[value.maker] += size * value.differentiable
            continue
        skips.append((value.maker, value.readers, size))
        if value.differentiable:
            ways = pairwise((value.maker, *value.readers))
            skips += [(reader, (before,), size) for before, reader in ways]
    return {"bytes": sent, "gradient_bytes": returned, "skips": skips}
