"""torch.distributed's objects cross into C++: the module was built with torch's own pybind11."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch.distributed as dist

from pipert import _C

if not dist.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

LIMIT = timedelta(seconds=20)


@pytest.fixture
def store() -> dist.Store:
    return dist.TCPStore("127.0.0.1", 0, 1, True, timeout=LIMIT)


def _connect(group: object, store: object, edges: list[object]) -> _C.ExternalChannels:
    return _C.connect_processes(
        rank=0,
        num_ranks=1,
        device="cpu",
        edges=edges,
        copies=[],
        ties=[],
        everybody=group,
        board_store=store,
        max_values=5,
        spin_us=0,
    )


def test_process_group_and_store_cross(store: dist.Store) -> None:
    group = dist.ProcessGroupGloo(dist.PrefixStore("all", store), 0, 1, timeout=LIMIT)
    channels = _connect(group, dist.PrefixStore("board", store), [(0, 1, (group, None))])
    assert isinstance(channels, _C.ExternalChannels)


def test_objects_of_other_types_are_a_type_error(store: dist.Store) -> None:
    group = dist.ProcessGroupGloo(dist.PrefixStore("all", store), 0, 1, timeout=LIMIT)
    for arguments in ((None, "store", []), (group, "store", []), ("group", store, [])):
        with pytest.raises(TypeError):
            _connect(*arguments)
