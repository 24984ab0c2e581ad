"""Schedule.with_offload: activations spend their wait on the host."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schedule_strategies import good_schedules

from pipert import Action, Placement, Schedule

examples = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def texts(schedule, rank=0):
    return " ".join(map(str, schedule.actions[rank]))


def test_the_row_of_1f1b_is_the_one_drawn():
    schedule = Schedule.build("1f1b", num_ranks=4, num_microbatches=8)
    assert texts(schedule.with_offload()).startswith(
        "0F0 0OFFLOAD0 0F1 0OFFLOAD1 0F2 0OFFLOAD2 0RELOAD0 0F3 0OFFLOAD3 0B0 0RELOAD1 0F4 "
        "0OFFLOAD4 0B1"
    )


@pytest.mark.parametrize("ahead", [0, 1, 2, 3])
def test_a_rank_of_1f1b_holds_one_more_than_it_reloads_ahead(ahead):
    schedule = Schedule.build("1f1b", num_ranks=8, num_microbatches=16).with_offload(ahead=ahead)
    assert schedule.simulate().peak_memory[0] == ahead + 1


def waits(actions):
    """For each activation: its F, what reads it first, by position among the compute actions."""
    made, read, position = {}, {}, 0
    for action in actions:
        if not action.is_compute:
            continue
        halves = [action]
        if action.paired is not None:
            halves = [action.paired, Action("F", action.stage, action.microbatch)]
        for half in halves:
            key = (half.stage, half.microbatch)
            if half.kind == "F":
                made[key] = position
            elif half.kind in "BIR":
                read.setdefault(key, position)
        position += 1
    return {key: (made[key], read[key]) for key in made}


@examples
@given(good_schedules(), st.integers(0, 3), st.data())
def test_moves_are_where_they_must_be_and_nothing_else_changes(schedule, ahead, data):
    stages = data.draw(st.none() | st.lists(st.integers(0, schedule.num_stages - 1)))
    moved = schedule.with_offload(stages=stages, ahead=ahead)
    assert moved.verify().ok
    for before, after in zip(schedule.actions, moved.actions, strict=True):
        assert [a for a in after if a.is_compute] == before
        position = 0  # among the compute actions
        seen = {"OFFLOAD": {}, "RELOAD": {}}
        for previous, action in zip([None, *after], after, strict=False):
            if action.is_compute:
                position += 1
                continue
            seen[action.kind][action.stage, action.microbatch] = position
            if action.kind == "OFFLOAD":
                assert previous == Action("F", action.stage, action.microbatch)
        for (stage, m), (made, read) in waits(before).items():
            is_moved = (stages is None or stage in stages) and read - made > ahead + 1
            assert ((stage, m) in seen["OFFLOAD"]) == is_moved
            if is_moved:
                assert seen["RELOAD"][stage, m] == read - ahead


def test_pairs_are_moved_around_as_a_whole():
    schedule = Schedule.build("dualpipe_v", num_ranks=2, num_microbatches=6).with_offload()
    assert schedule.verify().ok
    assert any(action.paired is not None for action in schedule.actions[0])
    assert any(action.kind == "RELOAD" for action in schedule.actions[0])


def test_what_moves_already_is_left_as_it_is():
    schedule = Schedule.build("gpipe", num_ranks=1, num_microbatches=4).with_offload()
    assert schedule.with_offload() == schedule


def test_recomputation_reads_what_was_on_the_host():
    schedule = Schedule([["0F0", "0F1", "0F2", "0R0", "0B0", "0B1", "0B2"]])
    assert texts(schedule.with_offload(ahead=0)).startswith(
        "0F0 0OFFLOAD0 0F1 0OFFLOAD1 0F2 0OFFLOAD2 0RELOAD0 0R0 0B0 0RELOAD1 0B1"
    )


def test_slices_move_by_themselves():
    schedule = Schedule([["0F0s0", "0F0s1", "0B0s1", "0B0s0"]], num_slices=2)
    assert texts(schedule.with_offload(ahead=0)) == (
        "0F0s0 0OFFLOAD0s0 0F0s1 0B0s1 0RELOAD0s0 0B0s0"
    )


def test_mistakes_are_told():
    schedule = Schedule.build("gpipe", num_ranks=2, num_microbatches=2)
    with pytest.raises(ValueError, match="ahead must be at least 0, got -1"):
        schedule.with_offload(ahead=-1)
    with pytest.raises(IndexError, match=r"stages: expected indices in \[0, 2\), got 2"):
        schedule.with_offload(stages=[0, 2])
    wrong = Schedule([["7F0", "7B0"]], placement=Placement(1, [0]))
    assert not wrong.with_offload().verify().ok
