"""The group whose ranks make up a pipeline: torchrun's, or one that the user gives."""

import os
from typing import Any

import torch
import torch.distributed as dist

if dist.is_available():
    # At its first import its functions' defaults take the default group, if there is one then, and
    # keep it, and its backend's threads, past destroy_process_group. Such a thread that drops the
    # last reference to a tensor of Python's while the process ends takes it down. torch imports it
    # with the first optimizer.
    import torch.distributed.nn.functional


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
