import subprocess
import sys
from pathlib import Path

import published_table
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipert import Costs, Placement, Schedule, lower_bounds, schedule_options, schedules

CHUNK_PROFILES = [
    # F, I, W, latency of one chunk in ms, and the makespan to reach on 8 ranks of two chunks
    ((14.407, 14.380, 9.676, 1.610), 1969),
    ((9.458, 9.748, 7.288, 0.879), 1346),
]
ROUNDING = 1 + 1e-9


def costs_of(times, share=1.0):
    forward, input_half, weight_half, latency = times
    return Costs(
        forward=forward,
        input=input_half,
        weight=weight_half,
        latency=latency,
        weight_share=share,
    )


def objective_of(timeline, objective):
    return timeline.makespan if objective == "makespan" else max(timeline.spans)


def weight_share(row):
    hidden, heads, length = (int(row[column]) for column in ("hidden", "heads", "seq"))
    return 32 / (34 + 5 * heads * length / hidden)


def assert_sound(result, costs, limit, objective, sizes=1.0):
    verdict = result.schedule.verify(memory_limit=limit, activation_size=sizes)
    assert verdict, verdict.message
    value = objective_of(result.schedule.simulate(costs), objective)
    assert result.value == value == objective_of(result.timeline, objective)
    assert result.bound <= value * ROUNDING
    gap = 1 - result.bound / value if value > 0 else 0
    assert result.gap == pytest.approx(gap, abs=1e-9)
    assert result.gap >= 0
    assert all(value <= seed * ROUNDING for _, seed in result.seeds)
    names = [name for name, _ in result.seeds]
    assert len(names) == len(set(names))


@settings(deadline=None, max_examples=60)
@given(
    p=st.integers(1, 4),
    chunks=st.integers(1, 3),
    m=st.integers(1, 8),
    room=st.floats(1, 4),
    objective=st.sampled_from(["makespan", "span"]),
    data=st.data(),
)
def test_what_comes_out_is_valid_within_memory_and_never_worse_than_a_name(
    p, chunks, m, room, objective, data
):
    number = st.floats(0, 9).map(lambda x: round(x, 2))
    times = st.lists(number, min_size=p * chunks, max_size=p * chunks)
    costs = Costs(
        forward=data.draw(times),
        input=data.draw(times),
        weight=data.draw(times),
        latency=data.draw(number),
    )
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=p * chunks, max_size=p * chunks))
    limit = room * p * 3 * chunks
    result = Schedule.search(
        costs, p, m, limit, activation_size=sizes, objective=objective, iterations=400
    )
    assert_sound(result, costs, limit, objective, sizes)
    placements = [Placement.loop(p, p * chunks), Placement.v_shaped(p, p * chunks)]
    assert result.schedule.placement in placements
    for name in schedules():
        try:
            named = Schedule.build(name, num_ranks=p, num_microbatches=m, num_stages=p * chunks)
            fits = named.verify(memory_limit=limit, activation_size=sizes)
        except ValueError:
            continue
        if fits and named.placement in placements:
            best = objective_of(named.simulate(costs), objective)
            assert result.value <= best * ROUNDING


@settings(deadline=None, max_examples=60)
@given(
    p=st.integers(1, 4),
    m=st.integers(1, 8),
    times=st.tuples(*[st.sampled_from([0, 0.1, 0.5, 1, 1.5, 2, 3])] * 4),
    room=st.floats(1, 9),
    share=st.sampled_from([0.0, 0.4, 1.0]),
    size=st.sampled_from([0.5, 1, 2]),
)
def test_zb_auto_as_a_seed_is_the_one_of_its_defaults_or_options(p, m, times, room, share, size):
    costs = costs_of(times, share)
    limit = room * size
    result = Schedule.search(costs, p, m, limit, activation_size=size, iterations=0)
    options = schedule_options("zb_auto", costs, memory_limit=limit, activation_size=size)
    build = {"num_ranks": p, "num_microbatches": m}
    ways = [Schedule.build("zb_auto", **build, **each) for each in ({}, options)]
    for name, value in result.seeds:
        if name == "zb_auto":
            assert value in [way.simulate(costs).makespan for way in ways]
    if result.source == "zb_auto":
        assert result.options in ({}, options)
    if result.source in schedules():
        again = Schedule.build(result.source, **build, **result.options)
        assert again.actions == result.schedule.actions


def test_the_source_of_a_search_is_zb_auto_made_for_its_costs():
    costs = costs_of((1, 1.5, 0.5, 0.1))
    result = Schedule.search(costs, 4, 8, 6, iterations=10)
    assert result.source == "zb_auto"
    assert result.options == schedule_options("zb_auto", costs, memory_limit=6)
    made = Schedule.build("zb_auto", num_ranks=4, num_microbatches=8, **result.options)
    default = Schedule.build("zb_auto", num_ranks=4, num_microbatches=8)
    assert result.schedule.actions == made.actions != default.actions


def test_options_are_one_time_of_each_kind_and_the_tightest_limit():
    costs = Costs(forward=[1, 3], input=4, weight=1, latency={None: 2, (0, 1): 9}, weight_share=0.4)
    options = schedule_options("zb_auto", costs, memory_limit=[7, 5.5], activation_size=[1, 2])
    assert options == {
        "forward": 500_000,
        "input": 1_000_000,
        "weight": 250_000,
        "latency": 500_000,
        "weight_percent": 40,
        "memory_limit": 2,
    }
    uneven = schedule_options("zb_auto", Costs(weight_share=[0.2, 0.6]))
    assert (uneven["weight_percent"], uneven["memory_limit"]) == (60, 2**31 - 1)
    assert schedule_options("zb_auto", Costs(), memory_limit=0.5)["memory_limit"] == 1
    assert [name for name in schedules() if schedule_options(name, costs)] == ["zb_auto"]


@pytest.mark.parametrize(
    ("name", "costs", "arguments", "message"),
    [
        ("zb_aut", Costs(), {}, "unknown schedule 'zb_aut': did you mean 'zb_auto'"),
        ("zb_auto", Costs(forward=-1), {}, "forward must be finite and at least 0, got -1"),
        ("zb_auto", Costs(latency=float("inf")), {}, "latency must be finite.*got inf"),
        ("zb_auto", Costs(), {"memory_limit": float("nan")}, "memory_limit must be finite"),
        ("zb_auto", Costs(weight=[]), {}, "weight must be at least one number, got none"),
        ("zb_auto", Costs(), {"activation_size": []}, "activation_size must be at least one num"),
        ("zb_auto", Costs(), {"memory_limit": []}, "memory_limit must be one number or one for"),
        ("1f1b", Costs(weight_share=2), {}, "weight_share must be from 0 to 1, got 2"),
    ],
)
def test_options_for_bad_numbers_are_refused(name, costs, arguments, message):
    with pytest.raises(ValueError, match=message):
        schedule_options(name, costs, **arguments)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("row", published_table.rows(), ids=published_table.name)
def test_at_most_a_point_above_the_bound_on_the_published_profiles_at_any_cap(row):
    p, m = published_table.sizes(row)
    costs = costs_of(published_table.times(row))
    work = m * sum(published_table.times(row)[:3])
    for objective in ("span", "makespan"):
        for limit in (p, 5 * p // 4, 3 * p // 2, 7 * p // 4, 2 * p):
            result = Schedule.search(costs, p, m, limit, objective=objective, iterations=1200)
            assert_sound(result, costs, limit, objective)
            assert {"1f1b", "zb_h1", "zb_auto"} <= {name for name, _ in result.seeds}
            assert work / result.bound - work / result.value < 0.01


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("row", published_table.rows(), ids=published_table.name)
def test_at_most_a_point_above_the_bound_where_a_part_is_freed_at_the_input_half(row):
    p, m = published_table.sizes(row)
    share = weight_share(row)
    costs = costs_of(published_table.times(row), share)
    work = m * sum(published_table.times(row)[:3])
    for objective in ("span", "makespan"):
        for limit in (p, 2 * p):
            result = Schedule.search(costs, p, m, limit, objective=objective, iterations=1200)
            verdict = result.schedule.verify(memory_limit=limit, weight_share=share)
            assert verdict, verdict.message
            assert all(result.value <= value * ROUNDING for _, value in result.seeds)
            assert work / result.bound - work / result.value < 0.01


def test_the_first_profile_at_one_and_a_half_times_the_memory():
    row = published_table.rows()[0]
    costs = costs_of(published_table.times(row))
    work = 24 * sum(published_table.times(row)[:3])
    held = Schedule.search(costs, 8, 24, 12, objective="span", iterations=1200)
    assert held.gap < 1e-9  # nothing can be better, as long as activations stay until W
    assert f"{1 - work / held.value:.4f}" == "0.1281"
    costs = costs_of(published_table.times(row), weight_share(row))
    freed = Schedule.search(costs, 8, 24, 12, objective="span", iterations=1200)
    assert freed.gap < 1e-9
    assert f"{1 - work / freed.value:.4f}" == "0.0524"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("times", "most"), CHUNK_PROFILES)
def test_two_chunks_a_rank_in_a_v_with_a_quarter_more_memory(times, most):
    costs = costs_of(times)
    result = Schedule.search(costs, 8, 24, 20, placements="v", iterations=2_500_000)
    assert_sound(result, costs, 20, "makespan")
    assert result.value <= most
    assert result.source == "local search"


def test_the_answer_depends_on_the_arguments_alone_where_iterations_are_the_limit():
    costs = Costs(forward=[2, 3, 1, 2, 2, 1], input=3, weight=1.5, latency=0.3)

    def search(seed, num_threads):
        return Schedule.search(costs, 3, 7, 5, iterations=4000, seed=seed, num_threads=num_threads)

    one, again, other = search(0, 1), search(0, 3), search(1, 1)
    assert one.schedule == again.schedule
    assert (one.value, one.source, one.iterations) == (again.value, again.source, again.iterations)
    assert other.bound == one.bound


def test_one_limit_for_each_rank_and_none_at_all():
    limits = [4, 3, 2, 1]
    result = Schedule.search(Costs(), 4, 8, limits, iterations=500)
    assert_sound(result, Costs(), limits, "makespan")
    free = Schedule.search(Costs(), 4, 8, iterations=500)
    assert free.value <= result.value
    assert free.bounds.makespan == lower_bounds(Placement.loop(4, 4), 8, Costs()).makespan


def test_a_slow_stage_costs_no_more_than_its_own_work():
    costs = Costs(forward=[1, 1.4, 1, 1], input=[1, 1.4, 1, 1], weight=[1, 1.4, 1, 1])
    result = Schedule.search(costs, 4, 16, 8, iterations=2000)
    assert result.gap < 0.01
    assert result.bounds.makespan_reason == "work"


@pytest.mark.parametrize("objective", ["makespan", "span"])
@pytest.mark.parametrize(
    "transfers",
    [
        {"bandwidth": 0.5, "bytes": 1},
        {"bandwidth": 0.5, "bytes": [1, 2, 1, 1], "links": [[(0, 1), (1, 2), (2, 3)]]},
        {"latency": {None: 0.2, (1, 2): 3.0}},
        {"latency": 0.4, "blocking": True},
        {"update": 2.0, "reduce": [1, 0, 0, 4]},
    ],
    ids=["queues", "a shared link", "a slow edge", "blocking", "updates"],
)
def test_what_the_search_does_not_clock_counts_in_what_comes_out(transfers, objective):
    costs = Costs(**transfers)
    result = Schedule.search(costs, 4, 8, 5, objective=objective, iterations=1500)
    assert_sound(result, costs, 5, objective)
    assert len(result.seeds) > 2


@pytest.mark.parametrize("placements", ["loop", "v", None])
@pytest.mark.parametrize("num_stages", [4, 8])
def test_schedules_that_would_deadlock_where_transfers_block_are_left_out(num_stages, placements):
    costs = Costs(latency=0.1, blocking=True)
    result = Schedule.search(
        costs, 4, 8, placements=placements, num_stages=num_stages, iterations=200
    )
    assert result.value == result.schedule.simulate(costs).makespan
    refused = 0
    for name, _ in result.seeds:
        schedule = Schedule.build(name, num_ranks=4, num_microbatches=8, num_stages=num_stages)
        assert schedule.simulate(costs)
    for name in ("zb_h2", "zb_interleaved", "zb_v"):
        try:
            Schedule.build(name, num_ranks=4, num_microbatches=8, num_stages=num_stages).simulate(
                costs
            )
        except ValueError:
            refused += 1
            assert name not in dict(result.seeds)
    assert refused > 0


def test_a_seed_that_would_deadlock_is_named():
    seed = Schedule.build("zb_h2", num_ranks=4, num_microbatches=8)
    with pytest.raises(ValueError, match="seed 'zb_h2': it deadlocks where transfers hold up"):
        Schedule.search(Costs(blocking=True), 4, 8, seeds=[seed])


@pytest.mark.parametrize("seed", range(6))
def test_it_is_never_worse_than_any_group_size(seed):
    p, m = 2 + seed % 3, 6 + seed
    costs = Costs(forward=1 + seed / 7, input=1.3, weight=0.4, latency=0.3)
    found = Schedule.search(costs, p, m, placements="loop", num_stages=2 * p, iterations=0)
    for name in ("interleaved_1f1b", "zb_interleaved"):
        for size in range(p, m + 1):
            try:
                schedule = Schedule.build(
                    name, num_ranks=p, num_microbatches=m, num_stages=2 * p, group_size=size
                )
            except ValueError:
                continue
            assert found.value <= schedule.simulate(costs).makespan * ROUNDING


def test_a_named_source_can_be_built_again_with_its_options():
    rebuilt = 0
    for p, m in ((2, 5), (2, 7), (3, 8), (4, 9), (4, 12)):
        for stages in (p, 2 * p):
            costs = Costs(forward=1.2, input=1.5, weight=0.5, latency=0.1)
            found = Schedule.search(costs, p, m, 2 * stages, num_stages=stages, iterations=0)
            if found.source not in schedules():
                assert found.options == {}
                continue
            rebuilt += 1
            again = Schedule.build(
                found.source,
                num_ranks=p,
                num_microbatches=m,
                num_stages=stages,
                **found.options,
            )
            assert again.simulate(costs).makespan == found.value
    assert rebuilt > 0


def test_many_threads_are_no_harm():
    result = Schedule.search(Costs(latency=0.1), 3, 6, 3, time_limit=0.3, num_threads=400)
    assert_sound(result, Costs(latency=0.1), 3, "makespan")


def test_schedules_of_placements_that_were_not_asked_for_are_no_seeds():
    def names(**arguments):
        result = Schedule.search(Costs(), 4, 8, iterations=10, num_stages=8, **arguments)
        return {name for name, _ in result.seeds}

    assert "interleaved_1f1b" in names(placements="loop")
    assert "zb_v" not in names(placements=["loop"])
    assert names(placements=Placement.v_shaped(4, 8)) == names(placements="v") >= {"zb_v"}
    assert names() == names(placements=["loop", "v"]) >= {"zb_v", "interleaved_1f1b"}
    odd = Placement(4, [0, 2, 1, 3, 3, 1, 2, 0])
    assert Schedule.search(Costs(), 4, 8, 8, placements=odd, iterations=50).seeds == []


def test_no_time_still_gives_what_the_names_give():
    result = Schedule.search(Costs(), 4, 8, 4, time_limit=0)
    assert_sound(result, Costs(), 4, "makespan")
    assert result.seeds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory_limit": 0.5}, r"memory_limit must be at least 1 on rank 0 .*, got 0.5"),
        ({"memory_limit": 3, "placements": "v", "activation_size": 2}, "must be at least 4 on"),
        ({"objective": "speed"}, "objective must be 'makespan' or 'span', got 'speed'"),
        ({"placements": "w"}, "unknown placement 'w'"),
        ({"placements": []}, "placements must be at least one, got none"),
        ({"placements": Placement.loop(3, 3)}, "placements must have 2 ranks and 3 stages, got 3"),
        ({"placements": Placement.bidirectional(2)}, "one copy of the model, got 2 copies"),
        ({"num_stages": 3}, "num_stages must be a positive multiple of"),
        ({"costs": Costs(forward=[1, 2], input=[1, 2, 3, 4])}, "must be one number or [24]"),
        ({"costs": Costs(weight=-1)}, "weight must be finite and at least 0, got -1"),
        ({"num_ranks": 0}, "num_ranks must be at least 1, got 0"),
        ({"num_microbatches": 0}, "num_microbatches must be at least 1, got 0"),
        ({"num_microbatches": 2_000_000_000}, "must be at most 100000000, got 2 x 2000000000"),
        ({"time_limit": -1}, "time_limit must be at least 0, got -1"),
        ({"iterations": -1}, "iterations must be at least 0, got -1"),
        ({"num_threads": 0}, "num_threads must be at least 1, got 0"),
        ({"costs": Costs(weight_share=1.5)}, "weight_share must be from 0 to 1, got 1.5"),
    ],
)
def test_mistakes_are_told(arguments, message):
    call = {"costs": Costs(), "num_ranks": 2, "num_microbatches": 4, "iterations": 1, **arguments}
    with pytest.raises(ValueError, match=message):
        Schedule.search(**call)


INTERRUPTED = """
import os, signal, threading
import pipert

costs = pipert.Costs(forward=2, input=3, weight=1, latency=1)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    # It can't reach its bound, so it takes as long as it may. Room for 1.9 activations is room for
    # one: no microbatch starts on rank 0 before the last one is through all ranks and back, which
    # takes 4 x (2 + 3) + 6 x 1 + 1 = 27, times 16 = 432. The bound counts 1.9 at a time.
    pipert.Schedule.search(costs, 4, 16, 1.9, placements="loop", time_limit=1000)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_it():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        timeout=90,
        check=True,
    )
    assert done.stdout == "interrupted\n"
