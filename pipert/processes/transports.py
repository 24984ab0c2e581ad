"""Which channel carries an edge, and why: by where its two ranks are."""

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipert import _C

TRANSPORTS = ("auto", "shm", "cuda_ipc", "process_group", "local")


@dataclass(frozen=True)
class EdgeTransport:
    """What carries the messages of one edge.

    Attributes:
        source: the rank that sends.
        destination: the rank that receives.
        transport: "local", "shm", "cuda_ipc" or "process_group".
        reason: why that one.
    """

    source: int
    destination: int
    transport: str
    reason: str

    def __str__(self) -> str:
        return f"edge {self.source}->{self.destination}: {self.transport} ({self.reason})"


def boot_id() -> str | None:
    """The kernel's number of this start of the host; None: not known."""
    with suppress(OSError):  # no Linux, or no /proc
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


@dataclass(frozen=True)
class Home:
    """Where a rank is, as the other ranks are told.

    Attributes:
        host: its name, for people.
        boot: the kernel's number of this start of the host; None: not known.
        pids: the namespace of its process number.
        user: its effective user.
        device: the type of its device.
        has_cuda_ipc: whether its build of pipert has the cuda_ipc channel.
    """

    host: str
    boot: str | None
    pids: int | None
    user: int
    device: str
    has_cuda_ipc: bool

    @classmethod
    def of(cls, device: torch.device) -> "Home":
        """This process's, for a rank on `device`."""
        boot, pids = boot_id(), None
        with suppress(OSError):
            pids = os.stat("/proc/self/ns/pid").st_ino
        host, user = socket.gethostname(), os.geteuid()
        return cls(host, boot if pids else None, pids, user, device.type, _C.has_cuda_ipc())

    def apart_from(self, other: "Home") -> str | None:
        """Why the two can't share memory; None: as far as is known they can."""
        if self.boot is None or other.boot is None:
            return "it isn't known whether both ranks are on one host: there is no /proc"
        if self.boot != other.boot:
            return f"the ranks are on different hosts, {self.host} and {other.host}"
        if self.user != other.user:
            return f"the ranks are of different users, {self.user} and {other.user}"
        if self.pids != other.pids:
            return "the ranks are in different containers, which don't see each other's processes"
        return None


def check_transport(transport: Any, is_one_process: bool) -> str:
    """Checks Pipeline's argument.

    Raises:
        ValueError: no such transport, or none between these ranks.
    """
    if transport not in TRANSPORTS:
        names = ", ".join(map(repr, TRANSPORTS))
        raise ValueError(f"transport must be one of {names}, got {transport!r}")
    if is_one_process and transport not in ("auto", "local"):
        raise ValueError(
            f"transport must be 'auto' or 'local' where all ranks are threads of one process, got "
            f"{transport!r}: it is for the ranks of a group"
        )
    if not is_one_process and transport == "local":
        raise ValueError(
            "transport 'local' is for threads of one process, this pipeline has a group: expected "
            "'auto', 'shm', 'cuda_ipc' or 'process_group'"
        )
    return str(transport)


def reason_against_shm(transport: str, source: Home, destination: Home) -> str | None:
    """Why an edge can't have shared memory, before anybody has tried; None: it may."""
    if transport not in ("auto", "shm"):
        return f"transport={transport!r}"
    devices = {source.device, destination.device} - {"cpu"}
    if devices:
        return f"a rank is on {devices.pop()}, shm carries tensors of the CPU"
    return source.apart_from(destination)


def reason_against_cuda_ipc(transport: str, source: Home, destination: Home) -> str | None:
    """Why an edge between GPUs can't have copy engines, before anybody has tried; None: it may."""
    if transport not in ("auto", "cuda_ipc"):
        return f"transport={transport!r}"
    others = {source.device, destination.device} - {"cuda"}
    if others:
        return f"a rank is on {others.pop()}, cuda_ipc carries tensors between GPUs"
    if not (source.has_cuda_ipc and destination.has_cuda_ipc):
        return "pipert was built without CUDA, which cuda_ipc needs"
    return source.apart_from(destination)


def spin_us(homes: Sequence[Home], rank: int) -> int:
    """How long a rank that waits may keep its core busy: not if other processes need it."""
    here = sum(home.apart_from(homes[rank]) is None for home in homes)
    started = os.environ.get("LOCAL_WORLD_SIZE", "")  # torchrun's, of all pipelines on this host
    if started.isdecimal():
        here = max(here, int(started))
    return 200 if here <= (os.cpu_count() or 1) else 0
