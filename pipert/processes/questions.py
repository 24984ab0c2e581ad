"""Questions to the store: each on a thread of its own, for it may never be answered."""

import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import TypeVar

_GLANCE_S = 0.2  # between two looks around

_Answer = TypeVar("_Answer")


def ask_within(
    question: Callable[[], _Answer], limit_s: float, look: Callable[[], None] = lambda: None
) -> _Answer:
    """The answer, waited for by this thread, which so sees Ctrl-C and the time limit.

    If the process that serves the store hangs, a question never ends.

    Args:
        question: whose answer is wanted.
        limit_s: how long to wait for it.
        look: called now and then; ends the wait by what it raises.

    Raises:
        TimeoutError: there was no answer in time. The thread ends when there is one.
    """
    answer, thread = start_asking(question)
    end = time.monotonic() + limit_s
    try:
        while not futures.wait([answer], min(_GLANCE_S, max(0.0, end - time.monotonic()))).done:
            if time.monotonic() >= end:
                raise TimeoutError
            look()
        return answer.result()
    finally:
        # One that still runs when the process ends may be stopped where C++ can't bear it.
        if answer.done():
            thread.join()


def start_asking(
    question: Callable[[], _Answer],
) -> tuple[futures.Future[_Answer], threading.Thread]:
    """Doesn't wait: gives the answer to be, and the thread that asks."""
    answer: futures.Future[_Answer] = futures.Future()

    def run() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:
            answer.set_exception(error)

    thread = threading.Thread(target=run, name="pipert store", daemon=True)
    thread.start()
    return answer, thread
