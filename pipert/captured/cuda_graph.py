"""CudaGraph: what a function gives a CUDA device to do, recorded once and launched at will."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from pipert import _C

T = TypeVar("T")


class CudaGraph:
    """One recording of the work of a function, on whatever threads and streams it does it.

    Work counts that is given to streams which wait, directly or not, for the caller's. What it
    allocates stays at its address until the recording is gone.

    Args:
        device: all work is on it.
        graph: an empty one, of a pool that recordings share which are replayed one after the other.
        replayed_on: the stream of the last replay, if there was one; the same list for all
            recordings that share their memory.
    """

    def __init__(
        self, device: torch.device, graph: _C.DeviceGraph, replayed_on: list[torch.cuda.Stream]
    ) -> None:
        self._device = device
        self._replayed_on = replayed_on
        self._graph = graph

    def capture(self, run: Callable[[], T]) -> T:
        """Records what `run` does, without doing it, and returns what it returns.

        Raises:
            Exception: what `run` raised, or that its work can't be recorded. The device and torch's
                allocator and generator are as before then; what Python code did is done.
        """
        gc.collect()  # what dies during the recording may not free device memory
        torch.cuda.synchronize(self._device)
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            self._graph.begin()
            try:
                result = run()
            except BaseException:
                self._graph.abandon()
                raise
            self._graph.end()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return result

    def prepare(self) -> None:
        """Lets the caller's stream wait for what was replayed on another one.

        Before it writes what the recording reads: recordings share their memory.
        """
        stream = torch.cuda.current_stream(self._device)
        if self._replayed_on and self._replayed_on[0] != stream:
            stream.wait_stream(self._replayed_on[0])
        self._replayed_on[:] = [stream]

    def replay(self) -> None:
        """Gives the device all that was recorded, on the caller's stream. Doesn't wait.

        REQUIRES that it has been prepared on this stream.
        """
        self._graph.launch()


def recordings_on(device: torch.device) -> Callable[[], CudaGraph]:
    """Makes recordings that share their memory: no two of them are replayed at once."""
    replayed_on: list[torch.cuda.Stream] = []
    pools: list[_C.GraphPool] = []

    def make() -> CudaGraph:
        if not pools:
            pools.append(_C.GraphPool(str(device)))
        return CudaGraph(device, pools[0].make(), replayed_on)

    return make
