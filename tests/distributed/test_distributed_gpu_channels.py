"""The benchmark of channels between GPU processes, as far as it goes without a GPU."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest

import pipert

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu_channel_parts as parts
from gpu_channel_parts import KB, MB, NUM_STREAMS, SIZES

US = 1e-6


class Threads:
    """Two threads in the place of the processes."""

    def __init__(self, rank: int, barrier: threading.Barrier, heard: list[Any]) -> None:
        self.rank = rank
        self._barrier = barrier
        self._heard = heard

    def meet(self) -> None:
        self._barrier.wait(20)

    def hear(self, told: Any, rank: int = 0) -> Any:
        if self.rank == rank:
            self._heard[:] = [told]
        self.meet()
        heard = self._heard[0]
        self.meet()
        return heard


class StandIn:
    """A PushProbe that asks for the order that the real one needs, and tells times of its own."""

    sources: ClassVar[dict[str, StandIn]] = {}

    def __init__(self, name: str, source: StandIn | None = None) -> None:
        self.name = name
        self.size = 0
        # What rank 1 has given and rank 0 hasn't asked for: both ends'.
        self._given: list[Any] = [] if source is None else source._given
        self.other = source

    @classmethod
    def make(cls, num_streams: int) -> StandIn:
        source = cls(f"{num_streams} streams")
        cls.sources[source.name] = source
        return source

    @classmethod
    def open(cls, name: str) -> StandIn:
        source = cls.sources[name]
        destination = cls(name, source)
        source.other = destination
        return destination

    def prepare(self, num_bytes: int) -> None:
        assert not self._given, "memory would be freed while streams wait"
        assert self.other is not None
        is_source = self.sources[self.name] is self
        assert not is_source or self.other.size == num_bytes, "the destination goes first"
        self.size = num_bytes

    def answer_pushes(self, count: int, copies_out: bool) -> None:
        self._given.append(("pushes", count, copies_out))

    def answer_hops(self, count: int, num_bytes: int) -> None:
        assert num_bytes <= self.size
        self._given.append(("hops", count, num_bytes))

    def finish(self) -> None:
        pass

    def time_pushes(self, count: int) -> tuple[float, float]:
        what, given, copies_out = self._given.pop()
        assert (what, given) == ("pushes", count), self._given
        assert count * 5 < 1000  # a stream's queue
        return (40 if copies_out else 16) * US * count, 7 * US * count

    def time_hops(self, count: int, num_bytes: int) -> tuple[float, float]:
        assert self._given.pop() == ("hops", count, num_bytes)
        return (24 if num_bytes else 12) * US * count, 0.1

    def time_bare_pushes(self, count: int) -> tuple[float, float]:
        assert not self._given
        return 10 * US * count, 0.1

    def time_copies(self, count: int, num_destinations: int) -> tuple[float, float]:
        assert not self._given
        return (8 if num_destinations > 1 else 4) * US * count, 0.1


def _measure_with_stand_ins() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    errors: list[BaseException] = []
    barrier, heard = threading.Barrier(2), []

    def run(rank: int) -> None:
        try:
            write = rows.append if rank == 0 else lambda row: None
            parts.measure_pushes(Threads(rank, barrier, heard), write, StandIn)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
    return rows


@pytest.mark.timeout(90)
def test_every_size_has_a_row_that_tells_the_parts_of_a_push_apart() -> None:
    rows = _measure_with_stand_ins()
    assert rows[0] == {
        "name": "flag",
        "us": 6.0,
        "p10": 6.0,
        "p90": 6.0,
        "bar": 10.0,
        "is_met": True,
    }
    assert [(row["size"], row["us"]) for row in rows[1:3]] == [("4 KB", 12.0), ("64 KB", 12.0)]
    pushes = rows[3:]
    assert [(row["size"], row["streams"]) for row in pushes] == [
        (parts.name_of(size), streams) for size in SIZES for streams in NUM_STREAMS
    ]
    assert {row["size"] for row in pushes} == {"4 KB", "64 KB", "1 MB", "16 MB", "64 MB", "256 MB"}
    expected = {"push": 16, "copied_out": 40, "issue": 7, "bare": 10, "copy": 8, "copy_into_one": 4}
    for row in pushes:
        assert {name: row[f"{name}_us"] for name in expected} == expected
        assert row["of_copy"] == 0.5
    assert [row["size"] for row in pushes if "bar" in row] == ["16 MB", "64 MB", "256 MB"]
    assert not any(row.get("is_met", False) for row in pushes)
    assert pushes[0]["push_gbps"] == pytest.approx(2 * 16 * MB / 16e-6 / 1e9, abs=0.1)


@pytest.mark.processes(2)
def test_messages_of_every_size_are_measured_over_another_channel() -> None:
    rank = pipert.init().rank()
    rows: list[dict[str, Any]] = []
    sizes = (64 * KB, 4 * KB, 1 * MB)
    parts.measure_messages(parts.Processes(rank), rows.append, "cpu", "shm", sizes)
    if rank == 1:
        return
    assert [(row["name"], row["size"]) for row in rows] == [
        ("frame", "4 KB"),
        ("message", "64 KB"),
        ("message", "4 KB"),
        ("message", "1 MB"),
    ]
    for row in rows[1:]:
        times = {key: row[key] for key in ("us", "send_us", "take_us", "stream_us", "stream_gbps")}
        assert min(times.values()) > 0, times
