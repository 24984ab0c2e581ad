"""Slices, recomputation and offloading: what verify and simulate make of them."""

import pytest

from pipert import Schedule, lower

SLICED = [
    "0F0s0 0F0s1 0F1s0 0B0s1 0F1s1 0B0s0 0B1s1 0B1s0",
    "1F0s0 1F0s1 1B0s1 1F1s0 1B0s0 1F1s1 1B1s1 1B1s0",
]


def schedule_of(*ranks, **sizes):
    return Schedule([rank.split() for rank in ranks], **sizes)


def check(schedule, defect, message):
    verdict = schedule.verify()
    assert (verdict.defect, verdict.message) == (defect, message)


def test_a_sliced_schedule_is_good_and_its_slices_are_counted():
    schedule = schedule_of(*SLICED)
    assert schedule.num_slices == 2
    assert schedule.verify().ok
    assert Schedule.parse_csv(schedule.to_csv()) == schedule


def test_a_forward_needs_the_slice_before_it():
    check(
        schedule_of("0F0s1 0F0s0 0B0s1 0B0s0"),
        "unordered",
        "0F0s1 on rank 0 runs before its input 0F0s0 on the same rank",
    )


def test_a_backward_needs_the_slice_behind_it():
    check(
        schedule_of("0F0s0 0F0s1 0B0s0 0B0s1"),
        "unordered",
        "0B0s0 on rank 0 runs before its input 0B0s1 on the same rank",
    )


def test_a_backward_needs_all_forwards_behind_its_slice():
    assert not schedule_of("0F0s0 0B0s0 0F0s1 0B0s1").verify().ok


def test_a_slice_that_is_not_there_is_missing():
    check(
        schedule_of("0F0s0 0F0s1 0B0s1 0B0s0 0F1s0 0B1s0", num_microbatches=2),
        "missing",
        "0F1s1 is missing on rank 0",
    )


@pytest.mark.parametrize(
    ("rank", "num_slices", "message"),
    [
        (
            "0F0s0 0B0",
            2,
            "0B0 on rank 0 (position 1): it must be for one of 2 slices",
        ),
        (
            "0F0s0 0B0s0",
            1,
            "0F0s0 on rank 0 (position 0): the schedule has no slices (num_slices is 1)",
        ),
        (
            "0F0s2 0B0s0",
            2,
            "0F0s2 on rank 0 (position 0): slice must be in [0, 2), got 2",
        ),
        ("0F0 0B0", 0, "num_slices must be at least 1 and at most 10000, got 0"),
    ],
)
def test_slices_that_do_not_fit_are_malformed(rank, num_slices, message):
    check(schedule_of(rank, num_slices=num_slices), "malformed", message)


def test_slices_let_the_next_stage_begin_sooner():
    whole = schedule_of("0F0 0B0", "1F0 1B0").simulate()
    sliced = schedule_of("0F0s0 0F0s1 0B0s1 0B0s0", "1F0s0 1F0s1 1B0s1 1B0s0").simulate()
    # Four halves of F and two of B on each rank, of which one F and one B don't overlap.
    assert whole.makespan == 6
    assert sliced.makespan == 4.5


def test_recomputation_comes_between_forward_and_backward():
    assert schedule_of("0F0 0F1 0R0 0B0 0R1 0B1").verify().ok
    check(
        schedule_of("0R0 0F0 0B0"),
        "unordered",
        "0R0 on rank 0 runs before its input 0F0 on the same rank",
    )
    check(
        schedule_of("0F0 0I0 0R0 0W0"),
        "unordered",
        "0I0 on rank 0 runs before its input 0R0 on the same rank",
    )


def test_recomputation_may_run_before_the_gradient_arrives():
    timeline = schedule_of("0F0 0R0 0B0", "1F0 1B0").simulate()
    assert timeline.makespan == 6  # as without it: rank 0 has nothing else to do


def test_what_is_computed_again_takes_no_memory_in_between():
    kept = schedule_of("0F0 0F1 0F2 0B0 0B1 0B2")
    again = schedule_of("0F0 0F1 0F2 0R0 0B0 0R1 0B1 0R2 0B2")
    assert kept.verify(memory_limit=2).defect == "memory"
    assert again.verify(memory_limit=1).ok


def test_what_is_offloaded_takes_no_memory_in_between():
    schedule = schedule_of("0F0 0OFFLOAD0 0F1 0F2 0B2 0B1 0RELOAD0 0B0")
    assert schedule.verify(memory_limit=2).ok
    assert schedule.verify(memory_limit=1).defect == "memory"
    both = schedule_of("0F0 0OFFLOAD0 0F1 0OFFLOAD1 0RELOAD1 0R1 0B1 0RELOAD0 0R0 0B0")
    assert both.verify(memory_limit=1).ok


@pytest.mark.parametrize(
    ("rank", "defect", "message"),
    [
        ("0F0 0OFFLOAD0 0B0", "missing", "0RELOAD0 is missing on rank 0, for 0OFFLOAD0"),
        ("0F0 0RELOAD0 0B0", "missing", "0OFFLOAD0 is missing on rank 0, for 0RELOAD0"),
        (
            "0F0 0RELOAD0 0OFFLOAD0 0B0",
            "unordered",
            "0RELOAD0 on rank 0 runs before its input 0OFFLOAD0 on the same rank",
        ),
        (
            "0F0 0OFFLOAD0 0B0 0RELOAD0",
            "unordered",
            "0B0 on rank 0 runs before its input 0RELOAD0 on the same rank",
        ),
        (
            "0F0 0OFFLOAD0 0R0 0RELOAD0 0B0",
            "unordered",
            "0R0 on rank 0 runs before its input 0RELOAD0 on the same rank",
        ),
        ("0F0 0R0 0R0 0B0", "doubled", "0R0 is on rank 0 twice"),
    ],
)
def test_wrong_recomputation_and_offloading_are_named(rank, defect, message):
    check(schedule_of(rank), defect, message)


def test_forwards_alone_hold_none_of_it():
    schedule = schedule_of("0F0 0OFFLOAD0 0RELOAD0 0R0 0B0 0UPDATEv1")
    assert [str(action) for action in schedule.forward_only().actions[0]] == ["0F0"]
    verdict = schedule_of("0F0 0R0").verify(forward_only=True)
    assert verdict.message == "0R0 on rank 0 (position 1): a forward-only schedule has no backward"


@pytest.mark.parametrize(
    ("rank", "reason"),
    [
        ("0F0 0B0 0REDUCE_GRAD", "OFFLOAD, RELOAD and transfer actions only, got 0REDUCE_GRAD"),
        ("0UNSHARD 0F0 0B0", "OFFLOAD, RELOAD and transfer actions only, got 0UNSHARD"),
        ("0F0 0B0 0UPDATEv1", "OFFLOAD, RELOAD and transfer actions only, got 0UPDATEv1"),
        ("0F0s0 0F0s1 0B0s1 0B0s0", "take whole sequences and use version 0"),
        ("0F0 0B0 0UPDATEv1 0F1v1 0B1v1 0UPDATEv2", "got 0UPDATEv1"),
    ],
)
def test_what_no_pipeline_runs_yet_is_refused_by_lowering(rank, reason):
    with pytest.raises(ValueError, match="a schedule to be run must") as caught:
        lower(schedule_of(rank))
    assert reason in str(caught.value)


def test_a_transfer_may_be_sliced():
    schedule = schedule_of(
        "0F0s0 0SEND_F0s0 0F0s1 0SEND_F0s1 0RECV_B0s1 0B0s1 0RECV_B0s0 0B0s0",
        "1RECV_F0s0 1F0s0 1RECV_F0s1 1F0s1 1B0s1 1SEND_B0s1 1B0s0 1SEND_B0s0",
    )
    assert schedule.verify().ok
