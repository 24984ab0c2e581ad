"""Neighbours: the other ranks' processes, as far as they are on this host."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from pipert import _C
from pipert.processes.transports import boot_id

_PAUSE_S = 0.2  # between two looks


class NeighbourGoneError(RuntimeError):
    """A rank's process was killed, or has ended."""


class Neighbours:
    """Which of the ranks' processes live. Used by one thread at a time."""

    def __init__(self) -> None:
        self._processes: dict[int, tuple[int, int, int]] = {}  # by rank
        self._next_look = 0.0

    @staticmethod
    def own() -> list[Any]:
        """What the others are told of this process: a JSON value."""
        return [boot_id(), _C.this_process()]

    def learn(self, told: Sequence[Any]) -> None:
        """Takes in what the ranks told, in rank order; None of one that told nothing."""
        boot = boot_id()
        self._processes = {
            rank: tuple(process[1])
            for rank, process in enumerate(told)
            if process is not None and boot is not None and process[0] == boot
        }

    def is_due(self) -> bool:
        """Whether it is time to look again: a look is a file opened for each rank."""
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + _PAUSE_S
        return True

    def gone(self, ranks: Iterable[int]) -> dict[int, int]:
        """Those of `ranks` whose processes are gone, with their numbers."""
        return {
            rank: self._processes[rank][2]
            for rank in ranks
            if rank in self._processes and not _C.is_running(self._processes[rank])
        }
