"""Traces of this process, or of all ranks with their clocks aligned."""

from collections.abc import Callable, Sequence
from typing import Any

from pipert._C import Program
from pipert.processes.distributed import Peers
from pipert.reports.clocks import Clock, compare_clocks
from pipert.reports.trace import RawTrace, Trace

# The program of a rank, for a step or an evaluation.
ProgramOf = Callable[[int, bool], Program]


def make_trace(
    raw: Sequence[RawTrace],
    program_of: ProgramOf,
    peaks: dict[int, int],
    device_timed: Sequence[int],
    error_s: float = 0.0,
) -> Trace:
    """A trace of the ranks of `raw`."""
    programs = {rank: program_of(rank, training) for rank, training, *_ in raw}
    return Trace(raw, programs, peaks, error_s, device_timed)


def gather_traces(
    passes: Sequence[Sequence[RawTrace]],
    peaks: dict[int, int],
    program_of: ProgramOf,
    peers: Peers | None,
    device_timed: Sequence[int],
    call: str,
) -> list[Trace]:
    """Traces of all ranks. A collective call in a group.

    Args:
        passes: of this process: by pass, the last one first, by rank.
        peaks: by rank of this process, the most activations in the last pass.
        program_of: makes any rank's program.
        peers: the ranks of the group; None: all are here.
        device_timed: ranks of this process whose times are their device's.
        call: what for, the same words on all ranks.
    """
    if peers is None:
        return _put_together(list(passes), peaks, program_of, device_timed, 0.0)
    clocks = compare_clocks(peers)
    own = {
        "passes": [_pack(raw) for (raw,) in passes],
        "peaks": list(peaks.items()),
        "device_timed": list(device_timed),
    }
    told = peers.exchange(call, own)
    num_passes = min(len(each["passes"]) for each in told)
    everybody = [
        [_unpack(each["passes"][ago], clock) for each, clock in zip(told, clocks, strict=True)]
        for ago in range(num_passes)
    ]
    all_peaks = {rank: peak for each in told for rank, peak in each["peaks"]}
    all_timed = [rank for each in told for rank in each["device_timed"]]
    error_ns = sum(sorted(clock.error for clock in clocks)[-2:])  # between the two worst
    return _put_together(everybody, all_peaks, program_of, all_timed, error_ns * 1e-9)


def _put_together(
    passes: Sequence[Sequence[RawTrace]],
    peaks: dict[int, int],
    program_of: ProgramOf,
    device_timed: Sequence[int],
    error_s: float,
) -> list[Trace]:
    return [
        make_trace(raw, program_of, {} if ago else peaks, device_timed, error_s)
        for ago, raw in enumerate(passes)
    ]


def _pack(raw: RawTrace) -> list[Any]:
    """As JSON values, short: each time as the difference from the one before."""
    rank, training, begun, done, ended, events = raw
    flat: list[int] = []
    at = begun
    for issued, started, finished, size in events:
        flat += (issued - at, started - issued, finished - started, size)
        at = finished
    return [rank, training, begun, done, ended, flat]


def _unpack(packed: list[Any], clock: Clock) -> RawTrace:
    """In rank 0's time."""
    rank, training, *times, flat = packed
    begun, done, ended = (time - clock.offset for time in times)
    events = []
    at = begun
    for i in range(0, len(flat), 4):
        issued = at + flat[i]
        started = issued + flat[i + 1]
        at = started + flat[i + 2]
        events.append((issued, started, at, flat[i + 3]))
    return rank, training, begun, done, ended, events
