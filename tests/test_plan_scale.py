"""A schedule of tens of thousands of actions passes every phase, and each gives what it must.

benchmarks/schedule_scale.py has the times, up to a thousand ranks.
"""

import pytest

from pipert import Lowering, Schedule, schedules

NUM_RANKS, NUM_MICROBATCHES = 64, 256


@pytest.fixture(params=["interleaved_1f1b", "zb_interleaved", "zb_v", "dualpipe"])
def schedule(request):
    return Schedule.build(
        request.param,
        num_ranks=NUM_RANKS,
        num_stages=2 * NUM_RANKS,
        num_microbatches=NUM_MICROBATCHES,
    )


def num_runs(schedule):
    """Actions of all ranks, pairs counted twice."""
    text = schedule.to_csv()
    return text.count(",") + text.count("\n") + text.count(";")


def test_it_verifies_and_simulates(schedule):
    assert schedule.verify(), schedule.verify().message
    timeline = schedule.simulate()
    work = 3 * 2 * NUM_MICROBATCHES / schedule.placement.num_copies  # F, I and W of each stage
    assert timeline.busy == [work] * NUM_RANKS
    assert work <= timeline.makespan < 2 * work


def test_it_lowers_to_a_run_for_each_action_and_three_instructions_for_each_message(schedule):
    rank_of, per_copy = schedule.placement.ranks, schedule.placement.num_stages
    per_copy //= schedule.placement.num_copies
    crossings = sum(
        rank_of[stage] != rank_of[stage + 1]
        for stage in range(len(rank_of) - 1)
        if (stage + 1) % per_copy
    )
    passing = NUM_MICROBATCHES // schedule.placement.num_copies
    lowering = Lowering(schedule)
    num_instructions = sum(len(lowering[rank]) for rank in range(len(lowering)))
    assert num_instructions == num_runs(schedule) + 3 * 2 * crossings * passing


def test_every_generator_is_in_order_at_that_width():
    for name in schedules():
        built = Schedule.build(name, num_ranks=NUM_RANKS, num_microbatches=2 * NUM_RANKS)
        assert built.verify(), built.verify().message


def test_a_csv_of_a_million_cells_is_read():
    schedule = Schedule.build("1f1b", num_ranks=100, num_microbatches=5000)
    text = schedule.to_csv()
    assert text.count(",") + text.count("\n") == 1_000_000
    again = Schedule.parse_csv(text)
    assert again == schedule
    assert again.verify()
