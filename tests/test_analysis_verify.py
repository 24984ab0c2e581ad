import re

import pytest
import torch_schedules
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_executor import can_finish, is_complete, is_good
from schedule_strategies import good_schedules, mutated_schedules

from pipert import Placement, Schedule

TWO = [["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1F1", "1B1"]]


def verdict_of(*ranks, **options):
    """The verdict on two ranks, two stages and two microbatches unless told otherwise."""
    sizes = {"placement": Placement.loop(2, 2), "num_microbatches": 2}
    sizes.update({key: options.pop(key) for key in list(options) if key in sizes})
    return Schedule([rank.split() for rank in ranks], **sizes).verify(**options)


def test_a_good_schedule_is_true_and_says_nothing():
    verdict = Schedule(TWO).verify()
    assert verdict
    assert verdict.ok
    assert (verdict.defect, verdict.message) == (None, "")
    assert repr(verdict) == "<Verdict: ok>"


@pytest.mark.parametrize(
    ("ranks", "defect", "message"),
    [
        (
            ("0F0 0F1 0B0 0B1 0F2", "1F0 1B0 1F1 1B1"),
            "malformed",
            "0F2 on rank 0 (position 4): microbatch must be in [0, 2), got 2",
        ),
        (
            ("0F0 0F1 0B0 0B1", "2F0 1F0 1B0 1F1 1B1"),
            "malformed",
            "2F0 on rank 1 (position 0): stage must be in [0, 2), got 2",
        ),
        (
            ("0F0 0F1 0B0 1B1", "1F0 1B0 1F1 0B1"),
            "misplaced",
            "1B1 on rank 0 (position 3): stage 1 belongs to rank 1",
        ),
        (
            ("0F0 0F1 0B0", "1F0 1B0 1F1 1B1"),
            "missing",
            "0B1 is missing on rank 0 (nor are 0I1 and 0W1 there)",
        ),
        (("0F0 0B0 0B1", "1F0 1B0 1F1 1B1"), "missing", "0F1 is missing on rank 0"),
        (
            ("0F0 0F1 0B0 0I1", "1F0 1B0 1F1 1B1"),
            "missing",
            "0W1 is missing on rank 0, for its half 0I1",
        ),
        (
            ("0F0 0F1 0B0 0W1", "1F0 1B0 1F1 1B1"),
            "missing",
            "0I1 is missing on rank 0, for its half 0W1",
        ),
        (("0F0 0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"), "doubled", "0F0 is on rank 0 twice"),
        (
            ("0F0 0F1 0B0 0B1 0W1", "1F0 1B0 1F1 1B1"),
            "doubled",
            "0W1 on rank 0 does again what 0B1 does",
        ),
        (
            ("0F0 0F1 0B0 0I0 0B1", "1F0 1B0 1F1 1B1"),
            "doubled",
            "0I0 on rank 0 does again what 0B0 does",
        ),
        (
            ("0F0 0F1 0B0 0B1", "1F0 1B0 1B1 1F1"),
            "unordered",
            "1B1 on rank 1 runs before its input 1F1 on the same rank",
        ),
        (
            ("0F0 0F1 0B0 0W1 0I1", "1F0 1B0 1F1 1B1"),
            "unordered",
            "0W1 on rank 0 runs before its input 0I1 on the same rank",
        ),
        (
            ("0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1"),
            "deadlock",
            "deadlock: rank 0 at 0B0 waits for 1B0 on rank 1, which at 1F1 waits for 0F1 on rank 0",
        ),
    ],
)
def test_each_defect_has_a_readable_counterexample(ranks, defect, message):
    verdict = verdict_of(*ranks)
    assert not verdict
    assert (verdict.defect, verdict.message) == (defect, message)


def test_a_cycle_of_three_ranks_is_told_in_full():
    verdict = verdict_of(
        "0F0 3F0 3B0 0B0",
        "4F0 1F0 4B0 1B0",
        "2F0 5F0 5B0 2B0",
        placement=Placement.loop(3, 6),
        num_microbatches=1,
    )
    assert verdict.message == (
        "deadlock: rank 0 at 3F0 waits for 2F0 on rank 2, which at 2F0 waits for 1F0 on rank 1, "
        "which at 4F0 waits for 3F0 on rank 0"
    )


def test_ranks_that_wait_outside_the_cycle_are_left_out():
    verdict = verdict_of(
        "0F0 0B0 0F1 0B1",
        "1F0 1B0 1F1 1B1",
        "2F0 2F1 2B0 2B1",
        placement=Placement.loop(3, 3),
    )
    assert verdict.message == (
        "deadlock: rank 1 at 1B0 waits for 2B0 on rank 2, which at 2F1 waits for 1F1 on rank 1"
    )


def test_halves_of_backward_verify_and_one_stage_may_mix_them_with_whole_ones():
    assert verdict_of("0F0 0F1 0I0 0I1 0W0 0W1", "1F0 1I0 1F1 1W0 1I1 1W1")
    assert verdict_of("0F0 0F1 0B0 0I1 0W1", "1F0 1I0 1F1 1W0 1B1")


def test_an_overlapped_pair_is_its_forward_then_its_backward():
    assert verdict_of("0F0 (0F1;0B0)OVERLAP_F_B 0B1", "1F0 1B0 (1F1;1I1)OVERLAP_F_B 1W1")
    verdict = verdict_of("0F0 (0F1;0B0)OVERLAP_F_B 0B1", "1F0 (1F1;1B0)OVERLAP_F_B 1B1")
    assert verdict.ok
    verdict = verdict_of("0F0 (0F1;0B0)OVERLAP_F_B 0B0 0B1", "1F0 1B0 1F1 1B1")
    assert verdict.message == "0B0 is on rank 0 twice"


def test_an_inference_schedule_is_complete_with_forwards_alone():
    forwards = ("0F0 0F1", "1F0 1F1")
    assert verdict_of(*forwards, forward_only=True)
    assert verdict_of(*forwards).defect == "missing"
    verdict = verdict_of("0F0 0F1 0B0", "1F0 1F1", forward_only=True)
    assert verdict.message == "0B0 on rank 0 (position 2): a forward-only schedule has no backward"


def test_the_sizes_must_fit_each_other():
    verdict = verdict_of("0F0 0F1", placement=Placement.loop(2, 2))
    assert verdict.message == "the placement is for 2 ranks, the schedule has 1"
    verdict = verdict_of("0F0", "1F0", num_microbatches=0)
    assert verdict.message == "num_microbatches must be at least 1, got 0"


def test_a_schedule_without_ranks_is_malformed():
    text = """{"format": "pipert.schedule", "version": 1, "name": "none", "num_slices": 1,
        "num_microbatches": 2147483647, "placement": {"ranks": [], "num_copies": 1},
        "actions": []}"""
    empty = Schedule.parse_json(text)
    verdict = empty.verify()
    assert (verdict.defect, verdict.message) == (
        "malformed",
        "a schedule must have at least one rank, got none",
    )


def test_a_full_edge_is_told_with_its_capacity():
    verdict = verdict_of("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1", rendezvous=True)
    assert verdict.message == (
        "deadlock: rank 0 at 0F1 waits to send until 1F1 is reached on rank 1, "
        "which at 1B0 waits to send until 0B0 is reached on rank 0 (a send waits for its receive)"
    )
    three = ("0F0 0F1 0F2 0B0 0B1 0B2", "1F0 1B0 1F1 1B1 1F2 1B2")
    assert verdict_of(*three, num_microbatches=3, capacity=2)
    four = ("0F0 0F1 0F2 0F3 0B0 0B1 0B2 0B3", "1F0 1B0 1F1 1B1 1F2 1B2 1F3 1B3")
    assert verdict_of(*four, num_microbatches=4, capacity=2)
    assert verdict_of(*four, num_microbatches=4, capacity=1).message == (
        "deadlock: rank 0 at 0F3 waits to send until 1F2 has taken its input on rank 1, "
        "which at 1B1 waits to send until 0B0 has taken its input on rank 0 "
        "(capacity 1 on each edge)"
    )


def test_a_negative_capacity_is_rejected():
    with pytest.raises(ValueError, match="capacity must be at least 0, got -1"):
        Schedule(TWO).verify(capacity=-1)


@given(good_schedules())
@settings(deadline=None, max_examples=200)
def test_schedules_that_are_right_by_construction_verify(schedule):
    assert is_good(schedule)
    assert schedule.verify(), schedule.verify().message


@given(mutated_schedules())
@settings(deadline=None, max_examples=400)
def test_the_verdict_on_a_mutated_schedule_is_that_of_plain_python(schedule):
    verdict = schedule.verify()
    assert bool(verdict) == is_good(schedule), verdict.message


@given(mutated_schedules())
@settings(deadline=None, max_examples=200)
def test_a_defect_of_completeness_is_told_as_one(schedule):
    defect = schedule.verify().defect
    told = defect in ("malformed", "misplaced", "missing", "doubled")
    assert told == (not is_complete(schedule))


@given(good_schedules(), st.integers(0, 4), st.integers(0, 3))
@settings(deadline=None, max_examples=200)
def test_deadlock_under_a_capacity_is_that_of_plain_python(schedule, capacity, seed):
    verdict = schedule.verify(capacity=capacity)
    assert bool(verdict) == can_finish(schedule, capacity=capacity, seed=seed), verdict.message


@given(good_schedules())
@settings(deadline=None, max_examples=100)
def test_rendezvous_is_capacity_zero(schedule):
    rendezvous, zero = schedule.verify(rendezvous=True), schedule.verify(capacity=0)
    assert (rendezvous.defect, rendezvous.message) == (zero.defect, zero.message)


@given(good_schedules())
@settings(deadline=None, max_examples=100)
def test_more_capacity_never_hurts(schedule):
    verdicts = [bool(schedule.verify(capacity=capacity)) for capacity in range(30)]
    assert verdicts == sorted(verdicts)
    assert verdicts[-1]


def lowered():
    theirs = torch_schedules.build("ScheduleInterleavedZeroBubble", 2, 2, 4)
    return torch_schedules.texts(theirs.pipeline_order_with_comms)


def test_a_lowered_schedule_verifies():
    assert Schedule(lowered()).verify()


@pytest.mark.parametrize("word", ["SEND_F", "RECV_F", "SEND_B", "RECV_B"])
def test_a_lost_or_doubled_transfer_of_a_lowered_schedule_is_found(word):
    for rank, actions in enumerate(lowered()):
        for i, action in enumerate(actions):
            if word not in action:
                continue
            ranks = lowered()
            del ranks[rank][i]
            verdict = Schedule(ranks).verify()
            assert verdict.defect == "missing"
            assert verdict.message.startswith(f"{action} is missing on rank {rank}, for ")
            ranks = lowered()
            ranks[rank].insert(i, action)
            assert Schedule(ranks).verify().message == f"{action} is on rank {rank} twice"


@pytest.mark.parametrize(
    ("rank_0", "message"),
    [
        ("0F0 0RECV_B0 0B0 0SEND_F0", None),
        ("0SEND_F0 0F0 0RECV_B0 0B0", "0SEND_F0 on rank 0 runs before its input 0F0"),
        ("0F0 0SEND_F0 0B0 0RECV_B0", "0B0 on rank 0 runs before its input 0RECV_B0"),
        ("0F0 0SEND_F0 0RECV_B0 0B0", ""),
        ("0F0 0SEND_F0 0RECV_B0 0B0 0REDUCE_GRAD", ""),
        (
            "0F0 0SEND_F0 0RECV_B0 0REDUCE_GRAD 0B0",
            "0B0 on rank 0 runs when stage 0 has reduced its gradients already",
        ),
        ("0UNSHARD 0F0 0SEND_F0 0RECV_B0 0B0 0RESHARD", ""),
        (
            "0UNSHARD 0F0 0RESHARD 0SEND_F0 0RECV_B0 0B0",
            "0B0 on rank 0 runs when stage 0 is not unsharded",
        ),
        ("0F0 0SEND_F0 0RECV_B0 0UNSHARD 0B0", "0F0 on rank 0 runs when stage 0 is not unsharded"),
        (
            "0UNSHARD 0F0 0UNSHARD 0SEND_F0 0RECV_B0 0B0",
            "0UNSHARD on rank 0 runs when stage 0 is unsharded already",
        ),
        ("0F0 0SEND_F0 0RECV_B0 0B0 0SEND_B0", "there is no stage -1 at the other end"),
    ],
)
def test_transfers_and_parameters_of_a_lowered_schedule_are_in_order(rank_0, message):
    verdict = verdict_of(rank_0, "1RECV_F0 1F0 1B0 1SEND_B0", num_microbatches=1)
    if message is None:
        assert verdict.defect == "deadlock"
    elif message:
        assert message in verdict.message
    else:
        assert verdict, verdict.message


def test_a_transfer_inside_a_rank_is_malformed():
    verdict = Schedule([["0F0", "0SEND_F0", "1RECV_F0", "1F0", "1B0", "0B0"]]).verify()
    assert verdict.message == (
        "0SEND_F0 on rank 0 (position 1): stage 1 at the other end is on the same rank"
    )


# --- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "interleaved_1f1b"])
def test_a_memory_limit_is_kept_exactly_down_to_the_peak_that_simulate_finds(name):
    num_stages = 8 if name == "interleaved_1f1b" else 4
    schedule = Schedule.build(name, num_ranks=4, num_microbatches=8, num_stages=num_stages)
    peaks = schedule.simulate().peak_memory
    assert schedule.verify(memory_limit=peaks).ok
    for rank, peak in enumerate(peaks):
        limits = [*peaks[:rank], peak - 1, *peaks[rank + 1 :]]
        verdict = schedule.verify(memory_limit=limits)
        assert verdict.defect == "memory"
        assert verdict.message.startswith(f"rank {rank} holds activations of {peak} at ")
        assert f"its limit is {peak - 1}" in verdict.message


def test_a_memory_limit_counts_each_stage_by_its_size():
    schedule = Schedule([["0F0", "1F0", "1B0", "0B0"]], placement=Placement(1, [0, 0]))
    assert schedule.verify(memory_limit=3.5, activation_size=[1.5, 2.0]).ok
    verdict = schedule.verify(memory_limit=3.4, activation_size=[1.5, 2.0])
    assert verdict.message == (
        "rank 0 holds activations of 3.5 at 1F0 (position 1), its limit is 3.4; the next to be "
        "freed is by 1B0 (position 2)"
    )


def test_a_split_backward_frees_its_activation_with_its_weight_half():
    schedule = Schedule([["0F0", "0I0", "0F1", "0W0", "0B1"]])
    assert schedule.verify(memory_limit=1).defect == "memory"
    assert schedule.verify(memory_limit=2).ok
    forwards = schedule.forward_only()
    assert forwards.verify(memory_limit=1, forward_only=True).ok


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"memory_limit": [1.0, 2.0, 3.0]},
            "memory_limit must be one number or 2 (num_ranks), got 3",
        ),
        ({"memory_limit": -1.0}, "memory_limit must be finite and at least 0, got -1"),
        ({"memory_limit": float("nan")}, "memory_limit must be finite and at least 0, got nan"),
        (
            {"activation_size": [1.0] * 5},
            "activation_size must be one number or 2 (num_stages), got 5",
        ),
    ],
)
def test_limits_that_do_not_fit_the_schedule_are_refused(options, message):
    schedule = Schedule.build("1f1b", num_ranks=2, num_microbatches=4)
    with pytest.raises(ValueError, match=re.escape(message)):
        schedule.verify(**options)
