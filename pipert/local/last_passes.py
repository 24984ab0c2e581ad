"""LastPasses: what the ranks of this process did in their last passes."""

from typing import Any

from pipert import _C
from pipert.reports.trace import RawTrace


class LastPasses:
    """What the ranks of this process did, as their runtime tells it between passes.

    Args:
        runtime: that ran the passes; None: it is closed.
        traced_passes: of how many it keeps a trace.
        last_failed: whether the last one failed.

    Raises:
        ValueError: closed.
    """

    def __init__(
        self, runtime: _C.Runtime | None, *, traced_passes: int, last_failed: bool
    ) -> None:
        if runtime is None:
            raise ValueError("the pipeline is closed")
        self._runtime = runtime
        self._traced_passes = traced_passes
        self._last_failed = last_failed

    def _check_idle(self) -> None:
        if self._runtime.running():
            raise ValueError("the pipeline is running a step: ask when that has ended")

    def num_traces(self) -> int:
        """How many passes the trace has.

        Raises:
            ValueError: a pass is running, or there is nothing to show.
        """
        self._check_idle()
        if self._traced_passes == 0:
            raise ValueError("nothing to show: the pipeline was made with trace='off'")
        if self._last_failed:
            raise ValueError("nothing to show: the last pass failed")
        num_passes = self._runtime.num_traces()
        if num_passes == 0:
            raise ValueError("nothing to show: no pass has run yet")
        return num_passes

    def traces(self, ago: int = 0) -> list[RawTrace]:
        """What the last pass did, or the one `ago` passes before, by rank.

        Raises:
            ValueError: a pass is running, or there is nothing to show.
        """
        num_passes = self.num_traces()
        if isinstance(ago, bool) or not isinstance(ago, int) or not 0 <= ago < num_passes:
            raise ValueError(
                f"ago must be from 0 to {num_passes - 1}, the passes that the trace has, got "
                f"{ago!r}"
            )
        return self._runtime.traces(ago)

    def device_timed(self) -> list[int]:
        """Ranks of this process whose times are their device's. Ask after `traces`."""
        return self._runtime.device_timed()

    def peak_activations(self) -> dict[int, int]:
        """By rank: the most activations at a time in the last pass. Ask after `traces`."""
        return self._runtime.peak_activations()

    def memory(self) -> list[Any]:
        """What the ranks held in the last one, as `memory.RawMemory`, in the order of `traces`."""
        return self._runtime.memory()

    def unsplit_nodes(self) -> dict[int, list[tuple[str, str]]]:
        """By stage: (name, reason) of what couldn't be split.

        Raises:
            ValueError: a pass is running.
        """
        self._check_idle()
        return self._runtime.unsplit_nodes()

    def stage_kinds(self) -> tuple[dict[int, str], str | None]:
        """How each stage of this process ran in the last one, and the loss function.

        Raises:
            ValueError: a pass is running.
        """
        self._check_idle()
        return self._runtime.stage_kinds(), self._runtime.loss_kind()
