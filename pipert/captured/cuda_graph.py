"""CudaGraph: what a function gives a CUDA device to do, recorded once and launched at will."""

import contextlib
import gc
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")

# torch's allocator of pinned memory may go on asking a graph whose recording broke.
_broken: list[Any] = []


class CudaGraph:
    """One recording of the work of a function, on whatever threads and streams it does it.

    Work counts that is given to streams which wait, directly or not, for the caller's. What it
    allocates stays at its address until the recording is gone.

    Args:
        device: all work is on it.
        pool: where recordings that are replayed one after the other share their memory; see
            `torch.cuda.graph_pool_handle`.
        replayed_on: the stream of the last replay, if there was one; the same list for all
            recordings that share their memory.
        on_captured: called once a recording has been made.

    Attributes:
        pool: the same.
    """

    def __init__(
        self,
        device: torch.device,
        pool: Any,
        replayed_on: list[torch.cuda.Stream],
        on_captured: "Callable[[CudaGraph], None]" = lambda graph: None,
    ) -> None:
        self._device = device
        self._replayed_on = replayed_on
        self._on_captured = on_captured
        self.pool = pool
        self._graph = torch.cuda.CUDAGraph()

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
            # Other threads of the process may go on as they like.
            self._graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                result = run()
            except BaseException:
                self._abandon()
                raise
            try:
                self._graph.capture_end()
            except BaseException:
                self._repair()
                raise
        torch.cuda.current_stream(self._device).wait_stream(stream)
        self._on_captured(self)
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
        self._graph.replay()

    def _abandon(self) -> None:
        try:
            self._graph.capture_end()
        except Exception:  # a recording that some call has made invalid
            self._repair()

    def _repair(self) -> None:
        """capture_end() stops at its first error, and leaves the rest undone."""
        _broken.append(self._graph)
        with contextlib.suppress(Exception):
            torch._C._cuda_endAllocateToPool(self._device.index, self.pool)
        generator = torch.cuda.default_generators[self._device.index]
        with contextlib.suppress(Exception):  # or it believes forever that it is being recorded
            generator.graphsafe_set_state(generator.clone_state())


def recordings_on(device: torch.device) -> Callable[[], CudaGraph]:
    """Makes recordings that share their memory: no two of them are replayed at once."""
    alive: weakref.WeakSet[CudaGraph] = weakref.WeakSet()
    replayed_on: list[torch.cuda.Stream] = []

    def make() -> CudaGraph:
        # A pool ends with its last recording, and can't be begun again.
        pool = next((graph.pool for graph in alive), None)
        pool = pool or torch.cuda.graph_pool_handle()
        return CudaGraph(device, pool, replayed_on, on_captured=alive.add)

    return make
