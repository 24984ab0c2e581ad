"""What gpu_channels.py measures, in its two processes."""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

Row = dict[str, Any]
Write = Callable[[Row], None]
KB = 1 << 10
MB = 1 << 20
SIZES = (16 * MB, 4 * KB, 64 * KB, 1 * MB, 64 * MB, 256 * MB)
NUM_STREAMS = (2, 1, 4)  # that push; the first one is what the channel has
HOP_SIZES = (4 * KB, 64 * KB)
HOPS = 200  # of one round, there and back again; a stream's queue holds about 1000 operations
ROUNDS = 9
NUM_SLOTS = 4
NUM_EVENTS = 20  # of one round, there and back again
ORPHAN_PATIENCE_S = 5.0
PUSH_BAR = 0.9  # of a plain copy, from 16 MB
FLAG_BAR_US = 10.0


class Pair(Protocol):
    """The two processes, to each other."""

    rank: int

    def meet(self) -> None:
        """Until both have come."""

    def hear(self, told: Any, rank: int = 0) -> Any:
        """What that rank tells."""


class Processes:
    """By torch.distributed."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def meet(self) -> None:
        import torch.distributed as dist

        dist.barrier()

    def hear(self, told: Any, rank: int = 0) -> Any:
        import torch.distributed as dist

        box = [told]
        dist.broadcast_object_list(box, rank)
        return box[0]


class Probe:
    """One end of a PushProbe; what rank 0 times, rank 1 has been given by then."""

    def __init__(self, pair: Pair, kind: Any, num_streams: int) -> None:
        self._pair = pair
        self.num_streams = num_streams
        end = kind.make(num_streams) if pair.rank == 0 else None
        name = pair.hear(end.name if end is not None else "")
        self._end = end if end is not None else kind.open(name)
        pair.meet()

    def prepare(self, size: int) -> None:
        for rank in (1, 0):  # the destination goes first
            if self._pair.rank == rank:
                self._end.prepare(size)
            self._pair.meet()

    def hops(self, count: int, size: int) -> float:
        """Microseconds, one way."""
        ask = (count, size)
        seconds, _ = self._timed("answer_hops", ask, "time_hops", ask)
        return seconds / count / 2 * 1e6

    def pushes(self, count: int, copies_out: bool) -> tuple[float, float]:
        """Microseconds of each, of the device and of the host before."""
        both = self._timed("answer_pushes", (count, copies_out), "time_pushes", (count,))
        return both[0] / count * 1e6, both[1] / count * 1e6

    def bare(self, count: int) -> float:
        return self._alone("time_bare_pushes", count)

    def copies(self, count: int, num_destinations: int) -> float:
        return self._alone("time_copies", count, num_destinations)

    def _alone(self, ask: str, count: int, *arguments: int) -> float:
        return self._timed("finish", (), ask, (count, *arguments))[0] / count * 1e6

    def _timed(
        self, answer: str, given: tuple[Any, ...], ask: str, asked: tuple[Any, ...]
    ) -> tuple[float, float]:
        took = (0.0, 0.0)
        if self._pair.rank == 1:
            getattr(self._end, answer)(*given)
        self._pair.meet()
        if self._pair.rank == 0:
            took = getattr(self._end, ask)(*asked)
        else:
            self._end.finish()
        self._pair.meet()
        return took


def repetitions(size: int) -> tuple[int, int]:
    """Rounds, and messages of each: fewer of the large ones."""
    if size <= 16 * MB:
        return ROUNDS, 40
    return (7, 20) if size <= 64 * MB else (5, 8)


def measure_pushes(pair: Pair, write: Write, kind: Any, sizes: Sequence[int] = SIZES) -> None:
    probes = [Probe(pair, kind, num_streams) for num_streams in NUM_STREAMS]
    probes[0].prepare(max(HOP_SIZES))
    for size in (0, *HOP_SIZES):
        hop = _spread([probes[0].hops(HOPS, size) for _ in range(ROUNDS + 1)][1:])
        row: Row = {"us": hop["median"], **_ends(hop)}
        if size == 0:
            row |= {"bar": FLAG_BAR_US, "is_met": hop["median"] <= FLAG_BAR_US}
        write({"name": "hop", "size": name_of(size), **row} if size else {"name": "flag", **row})
    for size in sizes:
        rounds, count = repetitions(size)
        for probe in probes:
            probe.prepare(size)
        alone: dict[str, list[float]] = {"bare": [], "copy": [], "copy_into_one": []}
        pushed: list[dict[str, list[float]]] = [
            {"push": [], "copied_out": [], "issue": []} for _ in probes
        ]
        for _ in range(rounds + 1):
            alone["copy"].append(probes[0].copies(count, NUM_SLOTS))
            alone["copy_into_one"].append(probes[0].copies(count, 1))
            alone["bare"].append(probes[0].bare(count))
            for probe, times in zip(probes, pushed, strict=True):
                push, issue = probe.pushes(count, copies_out=False)
                times["push"].append(push)
                times["issue"].append(issue)
                times["copied_out"].append(probe.pushes(count, copies_out=True)[0])
        for probe, times in zip(probes, pushed, strict=True):
            # The first round isn't counted.
            both = {name: values[1:] for name, values in {**times, **alone}.items()}
            write(_push_row(size, probe.num_streams, both))


def _push_row(size: int, num_streams: int, us: dict[str, list[float]]) -> Row:
    pairs = zip(us["push"], us["copy"], strict=True)
    share = _spread([copy / push if push else 0.0 for push, copy in pairs])
    row: Row = {"name": "push", "size": name_of(size), "streams": num_streams}
    row |= {"of_copy": share["median"], **_ends(share)}
    for name, values in us.items():
        row[f"{name}_us"] = round(statistics.median(values), 2)
    for name in ("push", "copy"):
        row[f"{name}_gbps"] = _gbps(size, statistics.median(us[name]))
    if size >= 16 * MB and num_streams == NUM_STREAMS[0]:
        row |= {"bar": PUSH_BAR, "is_met": share["median"] >= PUSH_BAR}
    return row


def measure_events(pair: Pair, write: Write) -> None:
    """Each process waits for the other's event, then records its own, for which the other waits.

    A wait is for what was recorded last when it is given, so the hosts take turns; a kernel holds
    the streams meanwhile.
    """
    import torch

    cuda: Any = torch.cuda
    own = [cuda.Event(interprocess=True) for _ in range(NUM_EVENTS)]
    for event in own:
        event.record()  # or there is nothing to tell of
    cuda.synchronize()
    handles = [event.ipc_handle() for event in own]
    told = [pair.hear(handles, rank) for rank in (0, 1)]
    device = torch.device("cuda", 0)
    other = [cuda.Event.from_ipc_handle(device, handle) for handle in told[1 - pair.rank]]
    hops = []
    for _ in range(ROUNDS + 1):
        begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
        if pair.rank == 0:
            cuda._sleep(200_000_000)  # 0.1 s: longer than the hosts' turns
            begin.record()
        for mine, others in zip(own, other, strict=True):
            for rank in (0, 1):
                if pair.rank == rank:
                    if rank == 1:
                        others.wait()
                    mine.record()
                pair.meet()
            if pair.rank == 0:
                others.wait()
        end.record()
        is_held = pair.rank == 0 and not begin.query()
        cuda.synchronize()
        pair.meet()
        if pair.rank == 0 and is_held:
            hops.append(begin.elapsed_time(end) * 1e3 / NUM_EVENTS / 2)
    if pair.rank == 0 and len(hops) < 2:
        write({"name": "error", "error": "events: the kernel ended before the hosts' turns"})
    elif hops:
        spread = _spread(hops[1:])
        write({"name": "event", "us": spread["median"], **_ends(spread)})


def measure_orphan(pair: Pair, write: Write) -> None:
    """Whether a stream's wait ends whose event was recorded by a process that was killed then.

    Rank 0 is; rank 1, which waits, writes.
    """
    import torch

    cuda: Any = torch.cuda
    event = cuda.Event(interprocess=True)
    event.record()
    cuda.synchronize()
    handle = pair.hear(event.ipc_handle())
    if pair.rank == 0:
        cuda._sleep(4_000_000_000)  # some 2 s, more than it has left
        event.record()
        pair.meet()
        pair.meet()
        time.sleep(0.2)  # rank 1 has heard of it by then
        os.kill(os.getpid(), signal.SIGKILL)
    pair.meet()
    stream = cuda.Stream()
    stream.wait_event(cuda.Event.from_ipc_handle(torch.device("cuda", 0), handle))
    pair.meet()
    begun = time.monotonic()
    while not (is_over := stream.query()) and time.monotonic() - begun < ORPHAN_PATIENCE_S:
        time.sleep(0.01)
    took = round(time.monotonic() - begun, 2)
    write({"name": "orphan", "wait_ends": is_over, "after_s": took})
    os._exit(0)  # a stream that waits for ever is waited for by whoever cleans up


def measure_messages(
    pair: Pair,
    write: Write,
    device: str = "cuda:0",
    transport: str = "cuda_ipc",
    sizes: Sequence[int] = SIZES,
) -> None:
    import torch

    import pipert
    from pipert import _C
    from pipert.processes.connection import Connection
    from pipert.processes.distributed import Peers

    group = pipert.init()
    assert group is not None
    schedule = pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=2)
    program = pipert.lower(schedule)[pair.rank]
    channels = Connection(Peers(group), program, torch.device(device), {}, transport).channels
    epochs = itertools.count()

    def run(function: Callable[..., Any], size: int, count: int, **options: Any) -> Any:
        given = {"rank": pair.rank, "num_bytes": size, "num_messages": count, "device": device}
        return function(channels, **{**given, "epoch": next(epochs), **options})

    def one_way(size: int, count: int, **options: Any) -> dict[str, float]:
        pair.meet()
        seconds = run(_C.time_echoes, size, count, **options)
        return _spread([1e6 * second / 2 for second in seconds] or [0.0])

    def calls(size: int) -> list[float]:
        """Microseconds of this rank's; rank 1's come after rank 0's have returned."""
        if pair.rank == 1:
            pair.meet()
        seconds = run(_C.time_calls, size, NUM_SLOTS)
        if pair.rank == 0:
            pair.meet()
        pair.meet()
        return [1e6 * second for second in seconds]

    def stream(size: int, count: int) -> float:
        pair.meet()
        return float(run(_C.time_stream, size, count, reads=False)) / count * 1e6

    one_way(4 * KB, 20, device="cpu")
    frame = one_way(4 * KB, 200, device="cpu")
    write({"name": "frame", "size": name_of(4 * KB), "us": frame["median"], **_ends(frame)})
    for size in sizes:
        rounds, count = repetitions(size)
        one_way(size, NUM_SLOTS)  # makes room
        calls(size)
        row: Row = {"name": "message", "size": name_of(size)}
        echo = one_way(size, count * 3)
        row |= {"us": echo["median"], **_ends(echo)}
        call = statistics.median(us for _ in range(rounds) for us in calls(size))
        each = statistics.median([stream(size, count) for _ in range(rounds)])
        # Rank 1 knows what a take costs, and when the last message was there.
        take, each = pair.hear((call, each), 1)
        row |= {"send_us": round(call, 2), "take_us": round(take, 2)}
        write({**row, "stream_us": round(each, 2), "stream_gbps": _gbps(size, each)})
    pair.meet()


def name_of(size: int) -> str:
    return f"{size // MB} MB" if size >= MB else f"{size // KB} KB"


def _gbps(size: int, us: float) -> float:
    return round(2 * size / us / 1e3, 1) if us else 0.0


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "p10": round(ordered[len(ordered) // 10], 3),
        "p90": round(ordered[len(ordered) * 9 // 10], 3),
    }


def _ends(spread: dict[str, float]) -> dict[str, float]:
    return {"p10": spread["p10"], "p90": spread["p90"]}
