import pytest
from schedule_tables import drawn_versions, in_comment

from pipert import Costs, Schedule


def build(p, m):
    return Schedule.build("pipedream_vertical_sync", num_ranks=p, num_microbatches=m)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("pipedream_vertical_sync.cpp")
    assert len(table) == 3
    assert drawn_versions(build(3, 5)) == table


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 9])
def test_a_microbatch_uses_one_version_everywhere_that_of_the_first_rank(p, m):
    schedule = build(p, m)
    stashing = Schedule.build("pipedream", num_ranks=p, num_microbatches=m).actions[0]
    of_first = {action.microbatch: action.version for action in stashing if action.kind == "F"}
    for actions in schedule.actions:
        computed = [action for action in actions if action.kind in "FB"]
        assert len(computed) == 2 * m
        assert all(action.version == of_first[action.microbatch] for action in computed)
        updates = [action.version for action in actions if action.kind == "UPDATE"]
        assert updates == [*range(1, m + 1)]


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
def test_every_rank_keeps_as_many_versions_as_there_are_ranks(p):
    for m in (max(1, 2 * (p - 1)), 2 * p, 5 * p):
        assert build(p, m).peak_weight_versions() == [p] * p


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 9])
def test_it_verifies_and_takes_the_time_and_memory_of_one_1f1b_without_flushes(p, m):
    schedule = build(p, m)
    assert schedule.verify(capacity=1), schedule.verify(capacity=1).message
    timeline = schedule.simulate(Costs(forward=2.0, input=1.0, weight=3.0))
    assert timeline.makespan == (m + p - 1) * 6.0
    assert timeline.peak_memory == [min(m, p - r) for r in range(p)]
    assert schedule.is_asynchronous == (m > 1)
