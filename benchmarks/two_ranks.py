"""Two processes of a benchmark, a rank each, that end in time."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

ROOT = str(pathlib.Path(__file__).resolve().parent.parent)


def run_two_ranks(
    script: str,
    arguments: Sequence[str],
    folder: pathlib.Path,
    limit_s: float,
    expected: Sequence[int] = (0, 0),
) -> str | None:
    """Runs `script arguments --rank R --port P` for both ranks; both are gone afterwards.

    Args:
        script: Its path.
        arguments: The same for both.
        folder: Where what they print goes.
        limit_s: Seconds, for both together.
        expected: Their exit codes.

    Returns:
        What went wrong, with the end of what they printed; None if nothing did.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    told = [folder / f"output-{rank}" for rank in range(2)]
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(2):
            command = [sys.executable, os.path.abspath(script), *arguments]
            command += ["--rank", str(rank), "--port", str(port)]
            with told[rank].open("wb") as output:
                ranks.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=output)
                )
        end = time.monotonic() + limit_s
        while (codes := [process.poll() for process in ranks]) != list(expected):
            pairs = zip(codes, expected, strict=True)
            if any(code not in (None, own) for code, own in pairs):  # the other would wait for it
                time.sleep(1)
                break
            if time.monotonic() > end:
                break
            time.sleep(0.05)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    if codes == list(expected):
        return None
    tails = [" ".join(path.read_text(errors="replace")[-1500:].split()) for path in told]
    told_by = "; ".join(f"rank {rank}: {tail}" for rank, tail in enumerate(tails))
    return f"exit codes {codes} (None: too slow, {limit_s:g} s); {told_by}"
