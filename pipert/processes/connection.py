"""Connection: what the ranks of one pipeline send their messages through, made together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from pipert import _C
from pipert.processes.distributed import Peers
from pipert.processes.transports import (
    EdgeTransport,
    Home,
    reason_against_cuda_ipc,
    reason_against_shm,
    spin_us,
)

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Backend  # dist.Backend is a name, not a backend

# A backend closes a group when a timed wait runs out; pipert has time limits of its own.
_NEVER = timedelta(days=365)
_ALL = "all"  # the key of what joins all ranks, beside those of edges
_ON_ONE_HOST = {"shm": "CPU ranks of one host", "cuda_ipc": "GPU ranks of one host"}

_Shared: TypeAlias = _C.ShmSegment | _C.CudaIpcEdge
_Carrier: TypeAlias = "_Shared | tuple[Backend, Backend | None]"


class Connection:
    """This rank's channels. Making it is a collective call.

    Args:
        peers: the ranks.
        program: this rank's training program.
        device: this rank's.
        partners: the ranks that this one exchanges state with at the end of a step: under "copies"
            those that have other copies of its stages, under "ties" those that share its weights.
        transport: Pipeline's, the same on all ranks.

    Attributes:
        channels: for the runtime.
        transports: of this rank's edges.

    Raises:
        ValueError: shared memory or cuda_ipc was asked for, and some edge can't have it; on every
            rank.
        PipelineError: some rank failed, or didn't come.
    """

    def __init__(
        self,
        peers: Peers,
        program: _C.Program,
        device: torch.device,
        partners: Mapping[str, Sequence[int]],
        transport: str,
    ) -> None:
        self._peers = peers
        self._device = device
        self._transport = transport
        self._max_values = 2 * program.num_microbatches + 1  # of the end of a step
        edges = sorted(
            {
                (slot["source"], slot["destination"])
                for slot in program.slots
                if slot["kind"] != "local"
            }
        )
        self._edges = {f"edge/{a}-{b}": (a, b) for a, b in edges}
        for what, others in sorted(partners.items()):
            both_ways = sorted(e for o in others for e in ((peers.rank, o), (o, peers.rank)))
            self._edges |= {f"{what}/{a}-{b}": (a, b) for a, b in both_ways}
        self._segments: dict[str, _Shared] = {}

        told = peers.exchange("connect", asdict(Home.of(device)))
        self._homes = [Home(**home) for home in told]
        try:
            refused = self._share_memory()
            self._store, self._board_store = peers.begin_connection()
            self.channels = self._make_channels(partners)
            # Or a rank would wait in a step for one that failed here. From now on both ends of all
            # that is shared are open, so each sees when the other dies.
            peers.exchange("end connecting")
        except BaseException:
            self._let_go()
            raise
        self.transports = [
            EdgeTransport(a, b, kind, _ON_ONE_HOST[kind])
            if (kind := self._kind_of(f"edge/{a}-{b}")) is not None
            else EdgeTransport(a, b, "process_group", refused[f"edge/{a}-{b}"])
            for a, b in edges
        ]
        self._segments.clear()  # the channels own them

    def _kind_of(self, key: str) -> str | None:
        """Of an edge that shares memory."""
        if key not in self._segments:
            return None
        return "cuda_ipc" if isinstance(self._segments[key], _C.CudaIpcEdge) else "shm"

    def _let_go(self) -> None:
        """Leaves nothing behind at a failure, however long somebody keeps the error."""
        for segment in self._segments.values():
            segment.remove_name()
        self._segments.clear()
        vars(self).pop("channels", None)

    def _make_channels(self, partners: Mapping[str, Sequence[int]]) -> _C.ExternalChannels:
        peers = self._peers
        # In the same order on all ranks: the least edge that anybody waits for can always be made.
        carriers = {
            key: self._segments[key] if key in self._segments else self._backends(key)
            for key in self._edges
        }

        def both_ways(what: str, other: int) -> "tuple[int, _Carrier, _Carrier]":
            to, back = f"{what}/{peers.rank}-{other}", f"{what}/{other}-{peers.rank}"
            return other, carriers[to], carriers[back]

        met = self._segments.get(_ALL)
        everybody: _C.ShmSegment | Backend
        if isinstance(met, _C.ShmSegment):
            everybody = met
        else:
            everybody = self._gloo("all", peers.rank, peers.size, "while it connected to all ranks")
        return _C.connect_processes(
            rank=peers.rank,
            num_ranks=peers.size,
            device=str(self._device),
            edges=[
                (a, b, carriers[key])
                for key, (a, b) in self._edges.items()
                if key.startswith("edge/")
            ],
            copies=[both_ways("copies", other) for other in partners.get("copies", ())],
            ties=[both_ways("ties", other) for other in partners.get("ties", ())],
            everybody=everybody,
            board_store=self._board_store,
            max_values=self._max_values,
            spin_us=spin_us(self._homes, peers.rank),
        )

    # --- shared memory -----------------------------------------------------------------------

    def _share_memory(self) -> dict[str, str]:
        """Fills `_segments` with those that both ends have; returns why the other edges have none.

        Raises:
            ValueError: on every rank, where the user asked for shared memory.
        """
        refused = {
            key: reason
            for key, (a, b) in self._edges.items()
            if (reason := self._reason_against_sharing(self._homes[a], self._homes[b]))
        }
        names: dict[str, str] = {}
        for key, (source, _) in self._edges.items():
            if source == self._peers.rank and key not in refused:
                self._try(key, refused, names, self._make_edge)
        if self._peers.rank == 0 and self._may_all_meet():
            size, count = self._peers.size, self._max_values
            self._try(_ALL, refused, names, partial(_C.ShmSegment.make_meeting, size, count))
        made = self._peers.exchange("connect", [names, refused])
        for key, (source, _) in self._edges.items():
            if source != self._peers.rank and key in made[source][0]:
                name = made[source][0][key]
                self._try(key, refused, {}, partial(self._open_edge, name))
        if self._peers.rank > 0 and _ALL in made[0][0]:
            name = made[0][0][_ALL]
            self._try(_ALL, refused, {}, partial(_C.ShmSegment.open_meeting, name))
        if self._are_any_gpus():
            self._map_slots(self._peers.exchange("connect", sorted(self._segments)), refused)
        opened = self._peers.exchange("connect", [sorted(self._segments), refused])
        self._drop_what_others_lack(opened, refused)
        if self._peers.rank == 0 and _ALL in self._segments:
            self._segments[_ALL].remove_name()
        return refused

    def _are_any_gpus(self) -> bool:
        return any(home.device == "cuda" and home.has_cuda_ipc for home in self._homes)

    def _reason_against_sharing(self, source: Home, destination: Home) -> str | None:
        is_for_gpus = self._transport == "cuda_ipc" or "cpu" not in (
            source.device,
            destination.device,
        )
        judge = reason_against_cuda_ipc if is_for_gpus else reason_against_shm
        if self._transport == "shm":
            judge = reason_against_shm
        return judge(self._transport, source, destination)

    def _make_edge(self) -> _Shared:
        if self._device.type == "cuda":
            return _C.CudaIpcEdge.make_channel(str(self._device))
        return _C.ShmSegment.make_channel()

    def _open_edge(self, name: str) -> _Shared:
        if self._device.type == "cuda":
            return _C.CudaIpcEdge.open_channel(name, str(self._device))
        return _C.ShmSegment.open_channel(name)

    def _map_slots(self, opened: Sequence[Sequence[str]], refused: dict[str, str]) -> None:
        """As the source of an edge between GPUs: the last thing that can fail."""
        for key, (source, destination) in self._edges.items():
            shared = self._segments.get(key)
            if source != self._peers.rank or not isinstance(shared, _C.CudaIpcEdge):
                continue
            if key not in opened[destination]:
                continue  # the destination says why
            try:
                shared.map_slots()
            except RuntimeError as error:
                refused[key] = f"rank {self._peers.rank}: {error}"
                del self._segments[key]

    def _may_all_meet(self) -> bool:
        return self._transport != "process_group" and all(
            home.apart_from(self._homes[0]) is None for home in self._homes
        )

    def _try(
        self,
        key: str,
        refused: dict[str, str],
        names: dict[str, str],
        get: Callable[[], _Shared],
    ) -> None:
        try:
            segment = get()
        except RuntimeError as error:
            refused[key] = f"rank {self._peers.rank}: {error}"
        else:
            self._segments[key] = segment
            names[key] = segment.name

    @staticmethod
    def _describe(key: str) -> str:
        return "the end of a step" if key == _ALL else key.replace("/", " ").replace("-", "->")

    def _drop_what_others_lack(self, opened: Sequence[Any], refused: dict[str, str]) -> None:
        if self._transport in ("shm", "cuda_ipc"):
            failed = [
                f"{self._describe(key)}: {reason}"
                for _, reasons in opened
                for key, reason in sorted(reasons.items())
            ]
            if failed:
                raise ValueError(f"transport {self._transport!r} can't be had, {failed[0]}")
        for key, ends in {_ALL: range(self._peers.size), **self._edges}.items():
            lacking = [rank for rank in ends if key not in opened[rank][0]]
            if not lacking:
                continue
            self._segments.pop(key, None)
            for rank in lacking:
                if key in opened[rank][1]:
                    refused.setdefault(key, opened[rank][1][key])

    # --- torch.distributed's backends --------------------------------------------------------

    def _backends(self, key: str) -> "tuple[Backend, Backend | None]":
        source, destination = self._edges[key]
        peer = destination if source == self._peers.rank else source
        rank = 0 if source == self._peers.rank else 1
        doing = f"while it connected to rank {peer}"
        cpu = self._gloo(key, rank, 2, doing)
        if self._device.type == "cpu":
            return cpu, None
        with self._peers.losing_peers(doing):
            return cpu, self._nccl(key, rank)

    def _nccl(self, key: str, rank: int) -> "Backend":
        if self._device.type != "cuda" or not dist.is_nccl_available():
            raise ValueError(
                f"group: stages on {self._device} need a backend of torch.distributed for it, this "
                "torch has none"
            )
        options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)  # as other lanes
        options._timeout = _NEVER
        store = c10d.PrefixStore(f"cuda/{key}", self._store)
        accelerator = dist.ProcessGroupNCCL(store, rank, 2, options)
        accelerator.eager_connect_single_device(self._device)
        return accelerator

    def _gloo(self, key: str, rank: int, size: int, doing: str) -> "Backend":
        """The time limit is for connecting; C++ waits for messages with none.

        Connecting holds the store's client up, which this rank needs to tell of a failure, and to
        hear of one.
        """
        store = c10d.PrefixStore(f"cpu/{key}", self._board_store)
        limit = timedelta(seconds=self._peers.limit_s)
        return self._peers.connect(
            doing, lambda: dist.ProcessGroupGloo(store, rank, size, timeout=limit)
        )
