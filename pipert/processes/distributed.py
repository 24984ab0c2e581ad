"""The ranks of one pipeline in several processes: what they tell each other."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, ClassVar, TypeVar

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from pipert.errors import (
    PipelineError,
    PipelineTimeoutError,
    describe_for_peers,
    error_of_peer,
    make_pipeline_error,
)
from pipert.processes.neighbours import NeighbourGoneError, Neighbours
from pipert.processes.questions import ask_within, start_asking

_LONGEST_PAUSE_S = 0.02  # between two questions to the store
_STORE_PATIENCE_S = 3.0  # beyond a time limit, or to tell of a failure
_CONNECT_S = 30.0  # to the store, at least: that is no wait for a rank, and resolvers may be slow

_Answer = TypeVar("_Answer")


class Peers:
    """The ranks of one pipeline, and the part of torch.distributed's store that is theirs."""

    # Pipelines made so far, by their ranks.
    _counts: ClassVar[dict[tuple[int, ...], Iterator[int]]] = {}

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        ranks = tuple(dist.get_process_group_ranks(group))
        # All ranks of a group make their pipelines in the same order, so they count alike.
        number = next(self._counts.setdefault(ranks, itertools.count()))
        base = dist.distributed_c10d._get_default_store()
        name = f"pipert/{'.'.join(map(str, ranks))}/{number}"
        self._store = c10d.PrefixStore(name, base)
        self._board_store: c10d.Store | None = None
        self.timeout_s = 300.0  # of every wait for another rank
        self._neighbours = Neighbours()
        self._num_exchanges = 0
        self._patience_s = 0.0
        self._num_connections = 0  # that were begun by all ranks
        self._is_lost = False

    @property
    def limit_s(self) -> float:
        """How long a wait for the others may take: `timeout_s`, or more while they connect."""
        return max(self.timeout_s, self._patience_s)

    def exchange(self, call: str, value: Any = None) -> list[Any]:
        """Every rank gives a JSON value and gets all of them, in rank order. A collective call.

        Args:
            call: what the ranks are doing, the same words on all.
            value: this rank's.

        Raises:
            PipelineError: some rank didn't come in time (the message names it), failed on its way
                here (see `telling`), or is gone.
            ValueError: some rank is doing something else.
        """
        if self._is_lost:
            raise PipelineTimeoutError(
                f"rank {self.rank}: another rank was waited for in vain: close the pipeline and "
                "make a new one, on every rank",
                kind="timeout",
                rank=self.rank,
            )
        number = self._next_number()
        with self.losing_peers(f"while it waited for the others to {call} too"):
            told = self._exchange(number, call, value)
        self._patience_s = 0.0
        if number == 0:
            self._neighbours.learn([part.get("process") for part in told])
        for part in told:
            if "error" in part:
                raise error_of_peer(part["error"])
        for rank, part in enumerate(told):
            if part["call"] != call:
                raise ValueError(
                    f"ranks made different calls: {call} on rank {self.rank}, {part['call']} on "
                    f"rank {rank}"
                )
        return [part["value"] for part in told]

    def in_store(self, doing: str, run: Callable[[c10d.Store], _Answer]) -> _Answer:
        """What `run` makes of the store, on a thread of its own: it may wait for other ranks there.

        Args:
            doing: what for, for the error message: "while it ...".
            run: between two exchanges; its keys must not have been used before.

        Raises:
            PipelineError: the store, or another rank, didn't answer in time or is gone.
        """
        return self._wait(
            doing, lambda: run(self._store), lambda: self._require_alive(range(self.size))
        )

    def connect(self, doing: str, run: Callable[[], _Answer]) -> _Answer:
        """What `run` makes, on a thread of its own: it waits for other ranks to make it too.

        Args:
            doing: what for, for the error message: "while it ...".
            run: between two exchanges; it must leave the store's own client alone.

        Raises:
            PipelineError: another rank failed meanwhile (see `telling`), didn't come in time or is
                gone.
        """
        asked: list[futures.Future[Any]] = []  # one question at the most

        def look() -> None:
            if asked and asked[0].done():
                self._raise_told(asked.pop().result())
            if not asked:
                asked.append(start_asking(self._told_failure)[0])
            try:
                self._require_alive(range(self.size))
            except NeighbourGoneError:  # it may have said why
                with suppress(TimeoutError):
                    self._raise_told(ask_within(self._told_failure, _STORE_PATIENCE_S))
                raise

        return self._wait(doing, run, look)

    def _wait(
        self, doing: str, question: Callable[[], _Answer], look: Callable[[], None]
    ) -> _Answer:
        limit_s = self.limit_s
        with self.losing_peers(doing):
            try:
                return ask_within(question, limit_s + _STORE_PATIENCE_S, look)
            except NeighbourGoneError:
                self._is_lost = True
                raise
            except TimeoutError:
                self._is_lost = True
                raise PipelineTimeoutError(
                    f"rank {self.rank} waited {limit_s:g} s {doing}",
                    kind="timeout",
                    rank=self.rank,
                ) from None

    @contextmanager
    def telling(self) -> Iterator[None]:
        """If what is inside fails here, the others hear of it in their next exchange."""
        try:
            yield
        except BaseException as error:
            if not (isinstance(error, PipelineError) and error.kind == "remote"):
                self._tell(describe_for_peers(error, self.rank))
            raise

    @contextmanager
    def losing_peers(self, doing: str) -> Iterator[None]:
        """What the store or a backend raises inside becomes a PipelineError."""
        begin = time.monotonic()
        try:
            yield
        except PipelineError:
            raise
        except RuntimeError as error:
            late = time.monotonic() - begin >= self.limit_s
            kind = "timeout" if late else "transfer"
            raise make_pipeline_error(kind, self.rank, None, doing, error) from error

    def _exchange(self, number: int, call: str, value: Any) -> list[Any]:
        is_over = threading.Event()

        def ask() -> list[Any] | None:
            said = {"call": call, "value": value}
            if number == 0:
                said["process"] = self._neighbours.own()
            self._post(number, said)
            told = self._collect(number, is_over)
            if told is not None and number > 0:  # all have read the one before: they are here
                self._store.delete_key(self._key(number - 1, self.rank))
            return told

        try:
            told = ask_within(ask, self.limit_s + _STORE_PATIENCE_S)
            if told is not None:
                return told
            missing = ask_within(lambda: self._missing(number), _STORE_PATIENCE_S)
            waited_for = ", ".join(f"rank {rank}" for rank in missing)
        except NeighbourGoneError:
            self._is_lost = True
            raise
        except TimeoutError:
            waited_for = "torch.distributed's store, which doesn't answer,"
        finally:
            is_over.set()
        self._is_lost = True
        raise PipelineTimeoutError(
            f"rank {self.rank} waited {self.limit_s:g} s for {waited_for} to {call} too",
            kind="timeout",
            rank=self.rank,
        )

    def _next_number(self) -> int:
        """Of an exchange: all ranks count alike."""
        self._num_exchanges += 1
        return self._num_exchanges - 1

    def _tell(self, error: Any) -> None:
        number = self._next_number()
        # The store may be gone with the process that served it, or that process hang.
        with suppress(RuntimeError, TimeoutError):
            ask_within(lambda: self._post(number, {"error": error}), _STORE_PATIENCE_S)

    def _told_failure(self) -> Any:
        """What another rank told instead of coming to the next exchange; None if none did."""
        for rank in range(self.size):
            key = self._key(self._num_exchanges, rank)
            if self._store.check([key]):
                error = json.loads(self._store.get(key)).get("error")
                if error is not None:
                    return error
        return None

    def _raise_told(self, error: Any) -> None:
        if error is None:
            return
        self._tell(error)  # others may wait for this rank's part
        self._board_store = None  # what connects has it, and may wait there for long
        raise error_of_peer(error)

    def _key(self, number: int, rank: int) -> str:
        return f"exchange/{number}/{rank}"

    def _post(self, number: int, told: dict[str, Any]) -> None:
        self._store.set(self._key(number, self.rank), json.dumps(told))

    def _collect(self, number: int, is_over: threading.Event) -> list[Any] | None:
        """What all ranks posted; None if some didn't in time.

        Raises:
            NeighbourGoneError: one that didn't never will.
        """
        keys = [self._key(number, rank) for rank in range(self.size)]
        end = time.monotonic() + self.limit_s
        pause = 1e-4
        while not self._store.check(keys):
            if time.monotonic() > end or is_over.is_set():
                return None
            if self._neighbours.is_due():
                gone = self._neighbours.gone(self._missing(number))
                # Asked again after the look: one may have posted, and left.
                self._require_alive(rank for rank in self._missing(number) if rank in gone)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        return [json.loads(self._store.get(key)) for key in keys]

    def _require_alive(self, ranks: Iterable[int]) -> None:
        for rank, process in self._neighbours.gone(ranks).items():
            raise NeighbourGoneError(f"connection closed: process {process} of rank {rank} is gone")

    def _missing(self, number: int) -> list[int]:
        return [r for r in range(self.size) if not self._store.check([self._key(number, r)])]

    def begin_connection(self) -> tuple[c10d.Store, c10d.Store]:
        """The parts of the store that are for the next connection of these ranks.

        All call this as often.

        Returns:
            One to connect through, and one with a client of its own: for what holds the client up
            while it connects, and for the failure board, which has nothing to tell before that.
        """
        # Once, not for each connection: torch's server looks up the name of every new client, and
        # answers nobody meanwhile. A slow resolver would hold up each recovery for seconds.
        if self._board_store is None:
            self._patience_s = _CONNECT_S  # also for the others, until all have done it
            self._board_store = self.in_store(
                "while it connected to the store",
                lambda store: store.clone(),  # type: ignore[attr-defined]
            )
        self._num_connections += 1
        prefix = f"connection/{self._num_connections}"
        return (
            c10d.PrefixStore(prefix, self._store),
            c10d.PrefixStore(f"{prefix}/board", self._board_store),
        )


def telling(peers: Peers | None) -> AbstractContextManager[None]:
    """As `peers.telling()`; where there are none, nobody is told."""
    return nullcontext() if peers is None else peers.telling()
