"""Processes that run test functions: started once, they take one function after the other.

A test marked `processes(n)` runs in n processes at once, ranks 0 to n - 1 of one group; an
assertion that fails on any of them fails the test. Starting torch takes seconds, so the processes
are kept for the next test that needs as many.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any

GRACE_S = 5.0  # after one rank has failed, until the others are killed


class Failed(Exception):  # noqa: N818 - reads as the outcome that it is
    """What the ranks say of a test that failed."""


class Processes:
    """`size` processes that form one group. Used by one thread."""

    def __init__(self, size: int) -> None:
        self.size = size
        # Of IPv4: torch's store looks up the name of every client, and knows 127.0.0.1 without a
        # resolver, which may take seconds.
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        self._logs = [tempfile.TemporaryFile("w+") for _ in range(size)]  # noqa: SIM115
        self._pipes: list[socket.socket] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        for rank in range(size):
            ours, theirs = socket.socketpair()
            environment = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(sys.path),  # they find what this process finds
            }
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, str(theirs.fileno()), str(listener.fileno())],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=self._logs[rank],
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno(), listener.fileno()],
                    start_new_session=True,
                )
            )
            theirs.close()
            self._pipes.append(ours)
        listener.close()
        self._readers = [pipe.makefile("r") for pipe in self._pipes]

    def run(
        self, module: str, function: str, arguments: dict[str, Any], dies: set[int], limit_s: float
    ) -> None:
        """Runs `function(**arguments)` of a test module on every rank.

        Args:
            module: where it is.
            function: its name.
            arguments: JSON values.
            dies: the ranks that kill themselves on the way.
            limit_s: for all of it.

        Raises:
            Failed: what went wrong, on each rank. The processes are gone then.
        """
        order = json.dumps({"module": module, "function": function, "arguments": arguments})
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):
                pipe.sendall(order.encode() + b"\n")
        answers: dict[int, str] = {}
        with selectors.DefaultSelector() as selector:
            for rank, pipe in enumerate(self._pipes):
                selector.register(pipe, selectors.EVENT_READ, rank)
            end = time.monotonic() + limit_s
            while len(answers) < self.size and time.monotonic() < end:
                for key, _ in selector.select(max(0.0, end - time.monotonic())):
                    rank = key.data
                    try:
                        line = self._readers[rank].readline()
                    except ConnectionResetError:  # it died before it read what it was told
                        line = ""
                    answers[rank] = json.loads(line) if line else "died"
                    selector.unregister(key.fileobj)
                    if answers[rank] and rank not in dies:
                        end = min(end, time.monotonic() + GRACE_S)
        expected = {rank: "died" if rank in dies else "" for rank in range(self.size)}
        if answers != expected:
            for rank in expected.keys() - answers.keys():
                self._dump_stacks(rank)
                answers[rank] = f"no end within {limit_s:g} s"
            description = self._describe(answers)
            self.kill()
            raise Failed(description)
        if dies:
            self.kill()

    def is_alive(self) -> bool:
        return all(process.poll() is None for process in self._processes)

    def _dump_stacks(self, rank: int) -> None:
        """Has the process write its threads' stacks into its log."""
        process = self._processes[rank]
        if process.poll() is None:
            process.send_signal(signal.SIGUSR1)
            with contextlib.suppress(
                subprocess.TimeoutExpired
            ):  # it goes on: this only lets it write
                process.wait(0.3)

    def _describe(self, answers: dict[int, str]) -> str:
        parts = []
        for rank in range(self.size):
            log = self._logs[rank]
            log.seek(0)
            text = log.read()[-3000:]
            parts.append(
                f"--- rank {rank}: {answers[rank] or 'passed'}\n{text and 'output: ' + text}"
            )
        return "\n".join(parts)

    def kill(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (*self._readers, *self._pipes, *self._logs):
            with contextlib.suppress(OSError):
                stream.close()


def join_group(listener: int) -> None:
    """Joins the group of all the processes, whose store rank 0 serves on this socket."""
    import torch.distributed as dist

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    port = int(os.environ["MASTER_PORT"])
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", port, size, True, master_listen_fd=listener)
    else:
        os.close(listener)
        store = dist.TCPStore("127.0.0.1", port, size, False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)


def serve(descriptor: int, listener: int) -> None:
    """The life of one of the processes: runs what it is told to, until nobody tells any more."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    import torch

    from pipert.local import ranks

    torch.set_num_threads(1)
    join_group(listener)
    pipe = socket.socket(fileno=descriptor).makefile("rw")
    for line in pipe:
        order = json.loads(line)
        torch.manual_seed(0)
        answer = ""
        try:
            function = getattr(importlib.import_module(order["module"]), order["function"])
            function(**order["arguments"])
        except BaseException:
            answer = traceback.format_exc()
        for left_open in list(ranks._open):
            left_open.close()
        pipe.write(json.dumps(answer) + "\n")
        pipe.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
