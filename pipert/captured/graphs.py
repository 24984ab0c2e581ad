"""Where graphs of single actions come from."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pipert import _C
from pipert.captured.refusals import refusal_of_actions

# By type of device, what makes its graphs; None: C++ does. Tests put stand-ins here.
make_graph: dict[str, Callable[[], Any] | None] = {"cuda": None}


def make_recorder(
    kinds: Sequence[str], devices: Mapping[int, torch.device]
) -> _C.ActionRecorder | None:
    """Makes what records the stages of this process, one rank of a group; None where none can."""
    if len(devices) != 1 or refusal_of_actions(kinds, devices, {}, make_graph) is not None:
        return None
    [device] = devices.values()
    return _C.ActionRecorder(str(device), make_graph[device.type])
