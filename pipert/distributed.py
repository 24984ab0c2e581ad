"""torch.distributed under a pipeline: the group, the store that its ranks share, the channels."""

import itertools
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pipert import _C

# gloo closes a group when a timed wait runs out; pipert has time limits of its own.
_NEVER = timedelta(days=365)


def init(backend: str | None = None) -> dist.ProcessGroup | None:
    """Returns the group of all ranks under torchrun, None in a process of its own.

    Initialises torch.distributed if nobody has. The same script then runs both ways:
    `pipert.Pipeline(..., group=pipert.init())`.

    Args:
        backend: as in torch.distributed.init_process_group; by default gloo for CPU tensors, and
            nccl beside it where torch has CUDA.

    Raises:
        RuntimeError: torch was built without torch.distributed and the process was started by
            torchrun.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    if not dist.is_available():
        raise RuntimeError("started by torchrun, but this torch has no torch.distributed")
    if backend is None:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend)
    return dist.group.WORLD


def as_group(group: Any) -> dist.ProcessGroup:
    """A ProcessGroup, or the group of a one-dimensional DeviceMesh.

    Raises:
        TypeError: `group` is neither.
        ValueError: a mesh of more dimensions, or a group that this process isn't in.
    """
    if isinstance(group, dist.ProcessGroup):
        return group
    if hasattr(group, "get_group") and hasattr(group, "ndim"):
        if group.ndim != 1:
            raise ValueError(
                f"group must be a one-dimensional DeviceMesh, got {group.ndim} dimensions: pass "
                'mesh["pp"]'
            )
        mesh_group = group.get_group()
        if isinstance(mesh_group, dist.ProcessGroup):
            return mesh_group
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("this process is not a member of the group")
    raise TypeError(f"group must be a ProcessGroup or a DeviceMesh, got {type(group).__name__}")


class Peers:
    """The ranks of one pipeline, and the part of torch.distributed's store that is theirs."""

    _counts: dict[tuple[int, ...], Iterator[int]] = {}  # pipelines made so far, by their ranks

    def __init__(self, group: dist.ProcessGroup, timeout_s: float) -> None:
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self._timeout = timedelta(seconds=timeout_s)
        ranks = tuple(dist.get_process_group_ranks(group))
        # All ranks of a group make their pipelines in the same order, so they count alike.
        number = next(self._counts.setdefault(ranks, itertools.count()))
        base = dist.distributed_c10d._get_default_store()
        name = f"pipert/{'.'.join(map(str, ranks))}/{number}"
        self._store = dist.PrefixStore(name, base)
        self._exchanges = itertools.count()

    def exchange(self, value: Any) -> list[Any]:
        """Every rank gives a JSON value and gets all of them, in rank order. A collective call.

        Raises:
            TimeoutError: some rank didn't come; names them.
        """
        number = next(self._exchanges)
        keys = [f"exchange/{number}/{rank}" for rank in range(self.size)]
        self._store.set(keys[self.rank], json.dumps(value))
        try:
            self._store.wait(keys, self._timeout)
        except dist.DistStoreError as error:
            missing = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
            raise TimeoutError(
                f"rank {self.rank} waited {self._timeout.total_seconds():g} s for "
                f"{', '.join(f'rank {rank}' for rank in missing)} to make the same call"
            ) from error
        values = [json.loads(self._store.get(key)) for key in keys]
        if number > 0:  # all ranks have read the one before, or they would not be here
            self._store.delete_key(f"exchange/{number - 1}/{self.rank}")
        return values

    def agree(self, arguments: dict[str, Any]) -> None:
        """Checks that all ranks gave the same. A collective call.

        Raises:
            ValueError: on every rank, with the first difference.
        """
        everybody = self.exchange(arguments)
        for name, mine in everybody[0].items():
            for rank, theirs in enumerate(everybody):
                if theirs.get(name) != mine:
                    raise ValueError(
                        f"ranks were given different arguments: {name} is {mine} on rank 0 and "
                        f"{theirs.get(name)} on rank {rank}"
                    )

    def connect(
        self, program: _C.Program, device: torch.device, generation: int
    ) -> _C.ExternalChannels:
        """Opens a channel for each edge of this rank. A collective call.

        Args:
            program: this rank's training program.
            device: this rank's.
            generation: how often the pipeline was connected before; all ranks count alike.
        """
        self.exchange("connect")  # groups below wait without a limit
        store = dist.PrefixStore(f"connection/{generation}", self._store)
        edges = sorted(
            {
                (slot["source"], slot["destination"])
                for slot in program.slots
                if slot["kind"] != "local"
            }
        )
        # In the same order on all ranks: the least edge that anybody waits for can always be made.
        channels = [
            (source, destination, *self._edge(store, source, destination, device))
            for source, destination in edges
        ]
        group = dist.ProcessGroupGloo(
            dist.PrefixStore("all", store), self.rank, self.size, timeout=_NEVER
        )
        return _C.connect_processes(
            rank=self.rank,
            device=str(device),
            edges=channels,
            group=group,
            store=dist.PrefixStore("board", store),
            num_microbatches=program.num_microbatches,
        )

    def _edge(
        self, store: dist.Store, source: int, destination: int, device: torch.device
    ) -> tuple[dist.Backend, dist.Backend | None]:
        rank = 0 if self.rank == source else 1
        edge = f"{source}-{destination}"
        cpu = dist.ProcessGroupGloo(
            dist.PrefixStore(f"cpu/{edge}", store), rank, 2, timeout=_NEVER
        )
        if device.type == "cpu":
            return cpu, None
        if device.type != "cuda" or not dist.is_nccl_available():
            raise ValueError(
                f"group: stages on {device} need a backend of torch.distributed for it, this torch "
                "has none"
            )
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = _NEVER
        accelerator = dist.ProcessGroupNCCL(
            dist.PrefixStore(f"cuda/{edge}", store), rank, 2, options
        )
        accelerator.eager_connect_single_device(device)
        return cpu, accelerator
