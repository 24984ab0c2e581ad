"""The ranks' clocks beside each other: one on one host, an estimate between hosts."""

import os
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch.distributed import distributed_c10d as c10d

from pipert.processes.distributed import Peers

_ROUNDS = 20


class Clock(NamedTuple):
    """A rank's clock beside rank 0's, in nanoseconds.

    Attributes:
        offset: what it shows more.
        error: how wrong that may be, either way.
    """

    offset: int
    error: int


def clock_name() -> str:
    """The same in all processes whose monotonic clocks are one: of one boot, one time namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/time')}"
    except OSError:  # an older kernel, or another system: nobody's but its own
        return f"process {os.getpid()} at {time.time_ns()}"


def clock_ns() -> int:
    """The clock that traces are written with."""
    return time.monotonic_ns()


def compare_clocks(peers: Peers) -> list[Clock]:
    """The clock of each rank, by rank. A collective call.

    Ranks of one host share a clock. One rank of each other host exchanges messages with rank 0
    through the store; of those the fastest there and back tells most: what the other clock showed
    in between was, by rank 0's, somewhere between sending and getting, and the middle is taken.
    """
    told = peers.exchange("compare clocks", [clock_name(), clock_ns()])
    names = [name for name, _ in told]
    firsts = sorted(names.index(name) for name in set(names) - {names[0]})
    if not firsts:
        return [Clock(0, 0)] * peers.size
    limit = timedelta(seconds=peers.timeout_s)
    own: dict[str, Clock] = {}
    for rank in firsts:
        prefix = f"clocks/{told[0][1]}/{rank}"  # of this comparison alone
        doing = "while it compared its clock with that of another host"
        if peers.rank == 0:
            own[names[rank]] = peers.in_store(doing, partial(_ask, prefix=prefix, limit=limit))
        elif peers.rank == rank:
            peers.in_store(doing, partial(_answer, prefix=prefix, limit=limit))
    measured = peers.exchange("end comparing clocks", own)[0]
    return [Clock(*measured.get(name, (0, 0))) for name in names]


def _ask(store: c10d.Store, prefix: str, limit: timedelta) -> Clock:
    rounds = []
    for turn in range(_ROUNDS):
        begin = clock_ns()
        store.set(f"{prefix}/{turn}/question", "")
        theirs = int(_take(store, f"{prefix}/{turn}/answer", limit))
        end = clock_ns()
        rounds.append(Clock(theirs - (begin + end) // 2, (end - begin + 1) // 2))
    return min(rounds, key=lambda clock: clock.error)


def _answer(store: c10d.Store, prefix: str, limit: timedelta) -> None:
    for turn in range(_ROUNDS):
        _take(store, f"{prefix}/{turn}/question", limit)
        store.set(f"{prefix}/{turn}/answer", str(clock_ns()))


def _take(store: c10d.Store, key: str, limit: timedelta) -> bytes:
    store.wait([key], limit)
    value: bytes = store.get(key)
    store.delete_key(key)
    return value
