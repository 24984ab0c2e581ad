"""Runs the tests of this folder that are marked `processes(n)` in n processes: processes.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from processes import Failed, Processes

LIMIT_S = 60.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "processes(count, dies=(), limit_s=60): runs in `count` processes; `dies` kill themselves",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need as many processes come together, those that kill theirs last."""
    for item in items:
        if item.get_closest_marker("processes"):
            item.add_marker(pytest.mark.distributed)

    def order(item: pytest.Item) -> tuple[int, int]:
        mark = item.get_closest_marker("processes")
        return (mark.args[0], len(mark.kwargs.get("dies", ()))) if mark else (0, 0)

    items.sort(key=order)  # stable


@pytest.fixture(scope="session")
def _kept() -> Iterator[list[Processes]]:
    """The processes of the last test, if they may be used again."""
    kept: list[Processes] = []
    yield kept
    for processes in kept:
        processes.kill()


@pytest.fixture(autouse=True)
def _processes(request: pytest.FixtureRequest, _kept: list[Processes]) -> Processes | None:
    mark = request.node.get_closest_marker("processes")
    if mark is None:
        return None
    if not _kept or _kept[0].size != mark.args[0] or not _kept[0].is_alive():
        while _kept:
            _kept.pop().kill()
        _kept.append(Processes(mark.args[0]))
    return _kept[0]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    mark = pyfuncitem.get_closest_marker("processes")
    if mark is None:
        return None
    processes = pyfuncitem.funcargs["_processes"]
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    failure = ""
    try:
        processes.run(
            pyfuncitem.module.__name__,
            pyfuncitem.originalname,
            arguments,
            set(mark.kwargs.get("dies", ())),
            mark.kwargs.get("limit_s", LIMIT_S),
        )
    except Failed as failed:
        failure = str(failed)
    if failure:
        pytest.fail(failure, pytrace=False)
    return True
