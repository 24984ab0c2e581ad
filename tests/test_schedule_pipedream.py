import pytest
from schedule_tables import drawn_versions, in_comment

from pipert import Costs, Schedule


def build(p, m):
    return Schedule.build("pipedream", num_ranks=p, num_microbatches=m)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("pipedream.cpp")
    assert len(table) == 3
    assert drawn_versions(build(3, 5)) == table


def test_the_actions_of_two_ranks():
    assert str(build(2, 3)) == (
        "rank 0: 0F0 0F1 0B0 0UPDATEv1 0F2v1 0B1 0UPDATEv2 0B2v1 0UPDATEv3\n"
        "rank 1: 1F0 1B0 1UPDATEv1 1F1v1 1B1v1 1UPDATEv2 1F2v2 1B2v2 1UPDATEv3\n"
    )


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 9])
def test_a_microbatch_uses_the_newest_version_that_there_is_when_it_comes(p, m):
    for rank, actions in enumerate(build(p, m).actions):
        newest = 0
        for action in actions:
            if action.kind == "UPDATE":
                newest += 1
                assert action.version == newest
            if action.kind == "F":
                assert action.version == newest
            if action.kind == "B":
                assert action.version == max(0, action.microbatch - (p - 1 - rank))


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
def test_a_rank_keeps_as_many_versions_as_there_are_ranks_from_it_on(p):
    for m in (max(1, 2 * (p - 1)), 2 * p, 5 * p):
        assert build(p, m).peak_weight_versions() == [p - r for r in range(p)]


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 9])
def test_it_verifies_and_takes_the_time_and_memory_of_one_1f1b_without_flushes(p, m):
    schedule = build(p, m)
    assert schedule.verify(capacity=1), schedule.verify(capacity=1).message
    timeline = schedule.simulate(Costs(forward=2.0, input=1.0, weight=3.0))
    assert timeline.makespan == (m + p - 1) * 6.0
    assert timeline.peak_memory == [min(m, p - r) for r in range(p)]
    assert schedule.is_asynchronous == (m > 1)
