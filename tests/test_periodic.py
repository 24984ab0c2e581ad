"""Patterns that an exact solver finds, and the schedules that repeat them."""

import sys

import numpy as np
import pytest

import pipert
from pipert import Costs, Placement, periodic_schedule

pytestmark = pytest.mark.timeout(120)


def period_of(schedule_of, costs, few=24):
    """What one more microbatch costs, where there are many of them."""
    few_of_them, more = schedule_of(few), schedule_of(few + 4)
    return (more.simulate(costs).makespan - few_of_them.simulate(costs).makespan) / 4


def test_a_pattern_is_a_good_schedule_within_the_limit():
    costs = Costs(forward=3, input=3, weight=2, latency=0.1)
    for placement in (Placement.loop(3, 3), Placement.v_shaped(3, 6)):
        limit = placement.num_stages + 1
        schedule = periodic_schedule(
            costs, placement=placement, num_microbatches=9, memory_limit=limit
        )
        verdict = schedule.verify(memory_limit=limit)
        assert verdict.ok, verdict.message
        assert {action.kind for actions in schedule.actions for action in actions} == set("FIW")


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_with_the_memory_of_1f1b_no_rank_idles_in_the_middle(num_ranks):
    costs = Costs(forward=3, input=3, weight=2)

    def schedule_of(num_microbatches):
        return periodic_schedule(
            costs,
            placement=Placement.loop(num_ranks, num_ranks),
            num_microbatches=num_microbatches,
            memory_limit=num_ranks,
        )

    assert period_of(schedule_of, costs) == pytest.approx(8)


def test_the_period_is_the_work_of_the_slowest_rank():
    costs = Costs(forward=[1, 2, 1], input=[1, 2, 1], weight=[1, 1, 1])

    def schedule_of(num_microbatches):
        return periodic_schedule(
            costs, placement=Placement.loop(3, 3), num_microbatches=num_microbatches
        )

    assert period_of(schedule_of, costs) == pytest.approx(5)


def test_less_memory_makes_the_period_longer_not_the_limit_wrong():
    costs = Costs(forward=1, input=1, weight=1)
    placement = Placement.loop(4, 4)
    schedule = periodic_schedule(costs, placement=placement, num_microbatches=8, memory_limit=2)
    assert schedule.verify(memory_limit=2).ok

    def schedule_of(num_microbatches):
        return periodic_schedule(
            costs, placement=placement, num_microbatches=num_microbatches, memory_limit=2
        )

    # Bound 4 of docs/schedules.md: a microbatch takes 4 (F + I) + W, and two may be on their way.
    assert period_of(schedule_of, costs) >= 4.5 - 1e-9


def test_a_limit_for_each_rank_and_a_size_for_each_stage():
    limits, sizes = [4.0, 3.0], [1.0, 1.5]
    schedule = periodic_schedule(
        Costs(),
        placement=Placement.loop(2, 2),
        num_microbatches=6,
        memory_limit=limits,
        activation_size=sizes,
    )
    assert schedule.verify(memory_limit=limits, activation_size=sizes).ok


def test_a_latency_of_one_edge_is_regarded():
    costs = Costs(latency={(0, 1): 6.0, None: 0.0})
    schedule = periodic_schedule(
        costs, placement=Placement.loop(2, 2), num_microbatches=12, memory_limit=5
    )
    timeline = schedule.simulate(costs)
    # Two forwards pass on rank 0 while a message is on its way: so many are ahead that none waits.
    assert timeline.makespan <= 12 * 3 + 2 + 6 + 3


def test_a_search_goes_on_from_a_pattern():
    costs = Costs(forward=3, input=3, weight=2, latency=0.1)
    placement = Placement.v_shaped(3, 6)
    seed = periodic_schedule(costs, placement=placement, num_microbatches=9, memory_limit=7)
    found = pipert.Schedule.search(
        costs, 3, 9, 7, placements=placement, seeds=[seed], iterations=500
    )
    assert ("periodic", seed.simulate(costs).makespan) in found.seeds
    assert found.value <= seed.simulate(costs).makespan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_microbatches": 0}, "num_microbatches must be at least 1, got 0"),
        ({"time_limit": 0}, "time_limit must be above 0, got 0"),
        ({"memory_limit": [1, 2, 3]}, r"memory_limit must be one number or 2 \(num_ranks\), got 3"),
        ({"memory_limit": -1}, "memory_limit must be finite and at least 0, got -1"),
        ({"activation_size": [1, 2, 3]}, r"activation_size must be one number or 2 \(num_stages\)"),
        ({"costs": Costs(forward=[1, 2, 3])}, r"forward must be one number or 2 \(num_stages\)"),
        ({"placement": Placement.bidirectional(2)}, "one copy of the model, got 2"),
        ({"memory_limit": 0.5}, "memory_limit must be at least 1 on rank 0"),
    ],
)
def test_what_does_not_fit_is_told(change, message):
    arguments = {
        "costs": Costs(),
        "placement": Placement.loop(2, 2),
        "num_microbatches": 4,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        periodic_schedule(arguments.pop("costs"), **arguments)


@pytest.mark.parametrize("num_ranks", [1, 3, 8])
def test_the_least_memory_is_enough(num_ranks):
    placement = Placement.loop(num_ranks, num_ranks)
    schedule = periodic_schedule(
        Costs(), placement=placement, num_microbatches=4, memory_limit=np.ones(num_ranks)
    )
    assert schedule.verify(memory_limit=1).ok


def test_actions_that_take_no_time_have_a_pattern_too():
    costs = Costs(forward=0, input=0, weight=0)
    schedule = periodic_schedule(costs, placement=Placement.v_shaped(2, 4), num_microbatches=3)
    assert schedule.verify().ok


def test_no_pattern_in_time_is_told():
    with pytest.raises(TimeoutError, match=r"no pattern was found in 1e-09 s \(time_limit\)"):
        periodic_schedule(
            Costs(), placement=Placement.loop(2, 2), num_microbatches=4, time_limit=1e-9
        )


def test_without_the_solver_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    with pytest.raises(ImportError, match=r"pip install 'pipert\[search\]'"):
        pipert.periodic_schedule(Costs(), placement=Placement.loop(2, 2), num_microbatches=4)
