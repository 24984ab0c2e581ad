"""Weight versions: which of them an action may use, and that no gradient is lost."""

import pytest

from pipert import Placement, Schedule

# PipeDream on two ranks: stage 0 stashes, the last stage updates after each backward.
STASHED = [
    "0F0 0F1 0B0 0UPDATEv1 0F2v1 0B1 0UPDATEv2 0B2v1 0UPDATEv3",
    "1F0 1B0 1UPDATEv1 1F1v1 1B1v1 1UPDATEv2 1F2v2 1B2v2 1UPDATEv3",
]


def verdict_of(*ranks):
    return Schedule([rank.split() for rank in ranks]).verify()


def test_a_schedule_with_stashed_weights_is_good():
    verdict = verdict_of(*STASHED)
    assert verdict.ok, verdict.message


def test_an_update_at_the_end_of_a_synchronous_step_is_good():
    assert verdict_of("0F0 0F1 0I0 0I1 0W0 0W1 0REDUCE_GRAD 0UPDATEv1").ok


def test_the_gradients_may_be_reduced_before_each_update():
    assert verdict_of("0F0 0B0 0REDUCE_GRAD 0UPDATEv1 0F1v1 0B1v1 0REDUCE_GRAD 0UPDATEv2").ok


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ("0F0v1 0B0v1", "0F0v1 on rank 0: version 1 is not made yet, the newest one is 0"),
        (
            "0F0 0B0 0UPDATEv1 0F1v2 0B1v2 0UPDATEv2",
            "0F1v2 on rank 0: version 2 is not made yet, the newest one is 1",
        ),
        (
            "0F0 0F1 0B0 0UPDATEv1 0B1v1 0UPDATEv2",
            "0B1v1 on rank 0: it uses version 1 of the weights, the forward of its microbatch "
            "version 0",
        ),
        (
            "0F0 0F1 0B0 0UPDATEv1 0I1 0W1v1 0UPDATEv2",
            "0W1v1 on rank 0: it uses version 1 of the weights, the forward of its microbatch "
            "version 0",
        ),
        (
            "0F0 0B0 0UPDATEv2",
            "0UPDATEv2 on rank 0: expected version 1 to be made, the newest one is 0",
        ),
        (
            "0F0 0B0 0UPDATEv1 0UPDATEv1",
            "0UPDATEv1 on rank 0: expected version 2 to be made, the newest one is 1",
        ),
        ("0F0 0UPDATEv1 0B0", "0UPDATEv1 on rank 0: it has no gradient to apply"),
        (
            "0F0 0F1 0B0 0UPDATEv1 0B1",
            "0B1 on rank 0: no update after it applies its gradient",
        ),
        (
            "0F0 0F1 0I0 0W0 0I1 0UPDATEv1 0W1",
            "0W1 on rank 0: no update after it applies its gradient",
        ),
    ],
)
def test_a_wrong_version_is_named(rank, message):
    verdict = verdict_of(rank)
    assert (verdict.defect, verdict.message) == ("version", message)


def test_a_stage_without_updates_beside_one_with_them_loses_its_gradients():
    verdict = verdict_of("0F0 0B0 0UPDATEv1", "1F0 1B0")
    assert verdict.defect == "version"
    assert verdict.message == "1B0 on rank 1: no update after it applies its gradient"


def test_the_forwards_alone_use_the_weights_as_they_are():
    forwards = Schedule([rank.split() for rank in STASHED]).forward_only()
    assert [str(action) for action in forwards.actions[1]] == ["1F0", "1F1", "1F2"]
    assert forwards.verify(forward_only=True).ok


def test_versions_out_of_range_are_malformed():
    schedule = Schedule([["0F0", "0B0", "1UPDATEv1"]], placement=Placement(1, [0]))
    assert schedule.verify().defect == "malformed"


@pytest.mark.parametrize(
    ("ranks", "peaks"),
    [
        (["0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"], [1, 1]),
        (STASHED, [2, 1]),
        (["0F0 0F1 0F2 0B0 0UPDATEv1 0B1 0UPDATEv2 0B2 0UPDATEv3"], [2]),
        (["0F0 0B0 0UPDATEv1 0F1v1 0F2 0B1v1 0B2 0UPDATEv2"], [2]),
    ],
)
def test_how_many_versions_a_rank_keeps(ranks, peaks):
    assert Schedule([rank.split() for rank in ranks]).peak_weight_versions() == peaks


def test_how_many_versions_are_kept_is_asked_of_a_good_schedule_alone():
    with pytest.raises(ValueError, match="bad schedule 'custom': 0F0v1 on rank 0: version 1 is"):
        Schedule([["0F0v1", "0B0v1"]]).peak_weight_versions()


def test_forwards_alone_need_no_more_versions_than_they_name():
    forwards = Schedule([rank.split() for rank in STASHED]).forward_only()
    assert forwards.peak_weight_versions() == [1, 1]
