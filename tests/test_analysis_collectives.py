"""REDUCE_GRADs of stages that share weights are one collective of their ranks."""

import re

import pytest

from pipert import Placement, Schedule


def reduced(name, orders, **sizes):
    """A generator's schedule, and behind it, by rank, the REDUCE_GRADs of these stages."""
    schedule = Schedule.build(name, **sizes)
    ranks = [
        [*map(str, actions), *(f"{stage}REDUCE_GRAD" for stage in order)]
        for actions, order in zip(schedule.actions, orders, strict=True)
    ]
    return Schedule(ranks, placement=schedule.placement, num_microbatches=schedule.num_microbatches)


TWO_COPIES = {"num_ranks": 2, "num_microbatches": 2}  # stages 0 and 2 on ranks 0 and 1; 1 and 3


def test_the_copies_of_a_stage_reduce_in_the_same_order():
    assert reduced("chimera", [[0, 3], [2, 1]], **TWO_COPIES).verify()
    assert reduced("chimera", [[3, 0], [1, 2]], **TWO_COPIES).verify()
    verdict = reduced("chimera", [[0, 3], [1, 2]], **TWO_COPIES).verify()
    assert (verdict.defect, verdict.message) == (
        "collective",
        "rank 0 does 0REDUCE_GRAD before 3REDUCE_GRAD, rank 1 1REDUCE_GRAD before 2REDUCE_GRAD: "
        "0REDUCE_GRAD and 2REDUCE_GRAD are one collective, 3REDUCE_GRAD and 1REDUCE_GRAD another",
    )
    places = verdict.counterexample["places"]
    assert [(place["rank"], str(place["action"])) for place in places] == [
        (0, "0REDUCE_GRAD"),
        (0, "3REDUCE_GRAD"),
        (1, "1REDUCE_GRAD"),
        (1, "2REDUCE_GRAD"),
    ]


def test_copies_reduce_all_or_none():
    assert reduced("chimera", [[], []], **TWO_COPIES).verify()
    assert reduced("chimera", [[0], [2]], **TWO_COPIES).verify()
    verdict = reduced("chimera", [[0], []], **TWO_COPIES).verify()
    assert (verdict.defect, verdict.message) == (
        "missing",
        "2REDUCE_GRAD is missing on rank 1: stages 2 and 0 share weights, and 0REDUCE_GRAD is on "
        "rank 0 (position 4)",
    )


FOUR = {"num_ranks": 4, "num_microbatches": 4}


def test_tied_stages_reduce_all_or_none():
    schedule = reduced("1f1b", [[0], [], [], []], **FOUR)
    assert schedule.verify()
    assert schedule.verify(tied_stages=[[1, 2]])
    verdict = schedule.verify(tied_stages=[[0, 3]])
    assert verdict.message == (
        "3REDUCE_GRAD is missing on rank 3: stages 3 and 0 share weights, and 0REDUCE_GRAD is on "
        "rank 0 (position 8)"
    )
    assert reduced("1f1b", [[0], [], [], [3]], **FOUR).verify(tied_stages=[[0, 3]])


def test_tied_stages_and_copies_are_one_collective():
    both = reduced("chimera", [[0, 3], [2, 1]], **TWO_COPIES)
    assert both.verify(tied_stages=[[0, 1]])
    three = reduced("chimera", [[0, 3], [2]], **TWO_COPIES)
    assert three.verify(tied_stages=[[0, 1]]).defect == "missing"


def one_microbatch(ranks, placement):
    return Schedule([rank.split() for rank in ranks], placement=placement, num_microbatches=1)


def test_a_collective_that_all_ranks_can_come_to_is_fine():
    schedule = one_microbatch(
        ("0F0 2F0 2B0 2REDUCE_GRAD 0B0", "1F0 1B0 1REDUCE_GRAD"), Placement(2, [0, 1, 0])
    )
    assert schedule.verify()
    assert schedule.verify(tied_stages=[[1, 2]])
    late = one_microbatch(
        ("0F0 2F0 2B0 0B0 0REDUCE_GRAD 2REDUCE_GRAD", "1F0 1B0 1REDUCE_GRAD"),
        Placement(2, [0, 1, 0]),
    )
    assert late.verify(tied_stages=[[0, 1]])
    assert late.verify(tied_stages=[[1, 2]])


def test_a_collective_that_stands_before_what_the_others_wait_for_is_a_deadlock():
    # Rank 1 reduces stage 3 before the backward of stage 1, for which rank 0's stage 0 waits.
    schedule = one_microbatch(
        ("0F0 2F0 2B0 0B0 0REDUCE_GRAD", "1F0 3F0 3B0 3REDUCE_GRAD 1B0"), Placement.loop(2, 4)
    )
    assert schedule.verify()
    verdict = schedule.verify(tied_stages=[[0, 3]])
    assert (verdict.defect, verdict.message) == (
        "deadlock",
        "deadlock: rank 0 at 0B0 waits for 1B0 on rank 1, which at 3REDUCE_GRAD waits for "
        "0REDUCE_GRAD on rank 0",
    )
    assert [wait["reason"] for wait in verdict.counterexample["waits"]] == ["message", "collective"]


@pytest.mark.parametrize(
    ("tied", "message"),
    [
        ([[0, 4]], "tied_stages: stage must be in [0, 4), got 4"),
        ([[-1, 0]], "tied_stages: stage must be in [0, 4), got -1"),
        ([[0, 1], [1, 2]], "stage 1 must be in one group, once, got it in groups 0 and 1"),
        ([[2, 2]], "stage 2 must be in one group, once, got it twice in group 0"),
    ],
)
def test_bad_groups_are_refused(tied, message):
    schedule = Schedule.build("1f1b", num_ranks=4, num_microbatches=4)
    with pytest.raises(ValueError, match=re.escape(message)):
        schedule.verify(tied_stages=tied)


def test_an_empty_group_ties_nothing():
    schedule = Schedule.build("1f1b", num_ranks=4, num_microbatches=4)
    assert schedule.verify(tied_stages=[[]])
