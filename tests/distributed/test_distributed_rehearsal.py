"""Programs alone, with stages that compute nothing, between processes."""

from __future__ import annotations

import pytest
import torch

import pipert
from pipert._C import lower_blindly, rehearse_rank
from pipert.processes.connection import Connection
from pipert.processes.distributed import Peers

CPU = torch.device("cpu")


def _channels(program: pipert.Program, transport: str) -> object:
    return Connection(Peers(pipert.init()), program, CPU, {}, transport).channels


@pytest.mark.processes(2)
def test_every_action_runs_in_its_order_in_each_of_five_passes() -> None:
    rank = pipert.init().rank()
    for transport in ("shm", "process_group"):
        for name, stages in [("1f1b", 2), ("zb_v", 4)]:
            schedule = pipert.Schedule.build(
                name, num_ranks=2, num_stages=stages, num_microbatches=6
            )
            program = pipert.lower(schedule)[rank]
            rehearsal = rehearse_rank(
                program,
                schedule.placement,
                _channels(program, transport),
                num_passes=5,
                limit_ms=10_000,
            )
            assert rehearsal.ending == "completed", rehearsal.message
            assert len(rehearsal.pass_ns) == 5
            assert rehearsal.actions == [schedule.actions[rank]]


@pytest.mark.processes(2)
def test_ranks_that_wait_for_each_other_are_told_to_stall() -> None:
    rank = pipert.init().rank()
    stuck = pipert.Schedule([["0F0", "0B0", "0F1", "0B1"], ["1F1", "1F0", "1B0", "1B1"]])
    program = lower_blindly(stuck)[rank]
    rehearsal = rehearse_rank(
        program, stuck.placement, _channels(program, "shm"), num_passes=2, limit_ms=300
    )
    assert rehearsal.ending in ("stalled", "failed")  # the other was told first
    assert rehearsal.pass_ns == []


@pytest.mark.processes(2)
def test_a_program_of_another_placement_is_refused() -> None:
    schedule = pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=2)
    program = pipert.lower(schedule)[pipert.init().rank()]
    channels = _channels(program, "shm")
    with pytest.raises(ValueError, match="one of the 3 ranks of the placement, got one for 2"):
        rehearse_rank(program, pipert.Placement(3, [0, 1, 2]), channels)
    with pytest.raises(ValueError, match="num_passes must be at least 1, got 0"):
        rehearse_rank(program, schedule.placement, channels, num_passes=0)
