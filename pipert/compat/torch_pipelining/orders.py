"""Orders: schedules as torch.distributed.pipelining has them, a dict of lists of its actions."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.distributed.pipelining.schedules import _Action, _ComputationType

from pipert import _C

__all__ = ["TRANSFERS", "Order", "_Action", "_ComputationType"]

Order = dict[int, list[_Action | None]]

TRANSFERS = frozenset(
    (
        _ComputationType.SEND_F,
        _ComputationType.RECV_F,
        _ComputationType.SEND_B,
        _ComputationType.RECV_B,
    )
)


def order_of(schedule: _C.Schedule) -> Order:
    """The same actions in torch's type, by rank, without idle steps."""
    return {
        rank: [_Action.from_str(str(action)) for action in actions]
        for rank, actions in enumerate(schedule.actions)
    }


def schedule_of(
    order: Mapping[int, Sequence[_Action | None]], num_microbatches: int, name: str
) -> _C.Schedule:
    """The Schedule that computes what `order` says, in its order.

    Its transfers, and what it says for FSDP, are left out: transfers are pipert's own.

    Raises:
        ValueError: it can't run; the message says which action is missing or too early.
    """
    if sorted(order) != list(range(len(order))):
        raise ValueError(f"the order must have ranks 0 to {len(order) - 1}, got {sorted(order)}")
    texts = [
        [str(a) for a in order[rank] if a is not None and a.is_compute_op]
        for rank in range(len(order))
    ]
    schedule = _C.Schedule(texts, num_microbatches=num_microbatches, name=name)
    verdict = schedule.verify()
    if not verdict:
        raise ValueError(f"{name} can't run: {verdict.message}")
    return schedule


def with_transfers(schedule: _C.Schedule) -> list[list[str]]:
    """By rank, what pipert issues, in torch's words: actions, sends and receives.

    Each stage's REDUCE_GRAD, where torch's runtime divides gradients, is behind its last backward.
    """
    rows = []
    for program in _C.lower(schedule):
        row = [text for step in program.instructions if (text := _text(step))]
        ends = {stage: i for i, cell in enumerate(row) for stage in _backwards(cell)}
        for stage, i in sorted(ends.items(), key=lambda end: end[1], reverse=True):
            row.insert(i + 1, f"{stage}REDUCE_GRAD")
        rows.append(row)
    return rows


def _text(step: "_C._Instruction") -> str:
    if step["kind"] == "run":
        return str(step["action"])
    if step["kind"] == "release":
        return ""
    kind, maker, microbatch = step["message"]
    way, letter = (1, "F") if kind == "activation" else (-1, "B")
    if step["kind"] == "send":
        return f"{maker}SEND_{letter}{microbatch}"
    return f"{maker + way}RECV_{letter}{microbatch}"


def _backwards(cell: str) -> list[int]:
    """The stages whose weights get gradients in an action."""
    action = _Action.from_str(cell)
    weights = (_ComputationType.FULL_BACKWARD, _ComputationType.BACKWARD_WEIGHT)
    parts = action.sub_actions or (action,)
    return [part.stage_index for part in parts if part.computation_type in weights]


def one_round(
    num_ranks: int, num_chunks: int, num_microbatches: int, *, in_halves: bool
) -> list[list[str]]:
    """Interleaved 1F1B with fewer microbatches than ranks: all of them pass each chunk in turn.

    Args:
        num_ranks: stage s is on rank s % num_ranks.
        num_chunks: stages of each rank.
        num_microbatches: less than num_ranks.
        in_halves: I and W instead of B: W follows `rank` backwards behind.
    """
    ranks = []
    for rank in range(num_ranks):
        stages = range(rank, num_ranks * num_chunks, num_ranks)
        forwards = [(s, m) for s in stages for m in range(num_microbatches)]
        backwards = [(s, m) for s in reversed(stages) for m in range(num_microbatches)]
        hops = num_ranks - 1 - rank
        ahead = (num_chunks - 1) * num_microbatches + (hops if in_halves else 2 * hops)
        actions = [f"{s}F{m}" for s, m in forwards[:ahead]]
        for i, (stage, microbatch) in enumerate(backwards):
            actions += [f"{s}F{m}" for s, m in forwards[ahead + i : ahead + i + 1]]
            actions.append(f"{stage}{'I' if in_halves else 'B'}{microbatch}")
            if in_halves and i >= rank:
                actions.append("{}W{}".format(*backwards[i - rank]))
        if in_halves:
            actions += [f"{s}W{m}" for s, m in backwards[max(0, len(backwards) - rank) :]]
        ranks.append(actions)
    return ranks


def check_compute_only(order: Mapping[int, Sequence[_Action | None]]) -> None:
    """Checks that nothing in it sends or receives.

    Raises:
        ValueError: names the action.
    """
    for rank, actions in order.items():
        for position, action in enumerate(actions):
            if action is not None and not action.is_compute_op:
                raise ValueError(
                    f"expected a schedule of compute actions alone, got '{action}' at rank {rank}, "
                    f"position {position}: read it with format='compute_comms'"
                )


def read_order(filename: "str | os.PathLike[str]") -> Order:
    """The order in a CSV file: a row for each rank and a cell for each action."""
    with open(filename, newline="") as file:
        return {
            rank: [_Action.from_str(cell) for cell in row]
            for rank, row in enumerate(csv.reader(file))
        }


def write_rows(filename: "str | os.PathLike[str]", rows: Iterable[Iterable[Any]]) -> None:
    """Writes such a file."""
    with open(filename, "w", newline="") as file:
        csv.writer(file).writerows(rows)
