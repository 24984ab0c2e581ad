import pytest
from schedule_tables import drawn_versions, in_comment

from pipert import Costs, Schedule


def build(p, m, accumulate=None):
    return Schedule.build("pipedream_2bw", num_ranks=p, num_microbatches=m, accumulate=accumulate)


def test_the_table_in_the_source_is_what_comes_out():
    table = in_comment("pipedream_2bw.cpp")
    assert len(table) == 2
    assert drawn_versions(build(2, 6)) == table


SIZES = [(1, 1, 1), (1, 3, 1), (2, 4, 2), (2, 6, 3), (3, 12, 3), (3, 12, 4), (4, 16, 4), (4, 10, 5)]


@pytest.mark.parametrize(("p", "m", "accumulate"), SIZES)
def test_a_microbatch_uses_the_version_that_the_paper_says(p, m, accumulate):
    for actions in build(p, m, accumulate).actions:
        done = 0
        for action in actions:
            if action.kind == "UPDATE":
                assert (done % accumulate, action.version) == (0, done // accumulate)
                continue
            k = action.microbatch + 1  # the paper counts from 1
            assert action.version == max((k - 1) // accumulate - 1, 0)
            done += action.kind == "B"
        assert actions[-1].kind == "UPDATE"


@pytest.mark.parametrize(("p", "m", "accumulate"), SIZES)
def test_two_versions_are_enough(p, m, accumulate):
    versions = 2 if m > accumulate else 1
    assert build(p, m, accumulate).peak_weight_versions() == [versions] * p


@pytest.mark.parametrize(("p", "m", "accumulate"), SIZES)
def test_it_verifies_and_takes_the_time_and_memory_of_one_1f1b_without_flushes(p, m, accumulate):
    schedule = build(p, m, accumulate)
    assert schedule.verify(capacity=1), schedule.verify(capacity=1).message
    timeline = schedule.simulate(Costs(forward=2.0, input=1.0, weight=3.0))
    assert timeline.makespan == (m + p - 1) * 6.0
    assert timeline.peak_memory == [min(m, p - r) for r in range(p)]
    assert schedule.is_asynchronous == (m > accumulate)


def test_it_updates_after_as_many_microbatches_as_there_are_ranks_if_nothing_is_said():
    assert build(4, 12) == build(4, 12, accumulate=4)


def test_what_accumulate_may_be():
    with pytest.raises(ValueError, match=r"accumulate must be at least 4 \(num_ranks\), got 3"):
        build(4, 12, accumulate=3)
    with pytest.raises(ValueError, match=r"multiple of 5 \(accumulate\), got 12"):
        build(4, 12, accumulate=5)
    with pytest.raises(ValueError, match=r"multiple of 4 \(accumulate\), got 3"):
        build(4, 3)
    with pytest.raises(ValueError, match="multiple of 4611686018427387904"):
        build(4, 12, accumulate=2**62)
