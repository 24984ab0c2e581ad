"""Skips: what stages that are no neighbours exchange, in costs and in simulated steps."""

import re

import pytest
from cost_strategies import skips_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schedule_strategies import good_schedules
from test_analysis_render_svg import arrows
from test_plan_skips import graphs_of_schedules

import pipert
from pipert import Costs, Schedule
from pipert.balancing.exchange_costs import exchange_costs
from pipert.local.routes import routes_of
from pipert.stages import Stages, StageSpec, Value

examples = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def simulated(schedule, costs):
    """(maker, source, destination, reader) of each message."""
    messages = schedule.simulate(costs).messages
    return sorted((str(m.sender), m.source, m.destination, str(m.reader)) for m in messages)


def lowered(schedule, graph):
    """The same of each message that the Programs send, by the first Run that reads it."""
    found = []
    for program in pipert.lower(schedule, stage_graph=graph):
        held = {}
        for each in program.instructions:
            if each["kind"] == "recv":
                held[each["slot"]] = each["message"]
            if each["kind"] != "run":
                continue
            for slot in each["reads"]:
                if slot in held:
                    source = program.slots[slot]["source"]
                    kind, stage, microbatch = held.pop(slot)
                    made = maker(schedule, kind, stage, microbatch)
                    found.append((made, source, program.rank, str(each["action"])))
    return sorted(found)


def maker(schedule, kind, stage, microbatch):
    if kind == "activation":
        return f"{stage}F{microbatch}"
    done = {str(action) for action in schedule.actions[schedule.placement.ranks[stage]]}
    return next(text for k in "IB" if (text := f"{stage}{k}{microbatch}") in done)


@examples
@given(graphs_of_schedules())
def test_a_simulated_step_has_the_messages_of_the_programs(made):
    schedule, graph = made
    pairs = [*graph.activations, *graph.gradients]
    costs = Costs(skips=[(*pair, 1) for pair in pairs], latency=1)
    assert costs.stage_graph == graph
    for some in (schedule, schedule.forward_only()):
        assert simulated(some, costs) == lowered(some, graph)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "interleaved_1f1b", "zb_h1", "zb_v", "hanayo"])
def test_the_messages_of_named_schedules_are_those_of_their_programs(name):
    schedule = Schedule.build(name, num_ranks=3, num_microbatches=6)
    last = schedule.num_stages - 1
    costs = Costs(skips=[(0, range(1, last + 1), 8), (last, [0], 8)] if last > 1 else [])
    assert simulated(schedule, costs) == lowered(schedule, costs.stage_graph)


@examples
@given(st.data())
def test_a_lowered_schedule_has_the_messages_of_the_same_without_transfers(data):
    schedule = data.draw(good_schedules())
    costs = Costs(skips=data.draw(skips_for(schedule.num_stages)), latency=2)
    whole = schedule.simulate(costs)
    spelled_out = with_transfers(schedule).simulate(costs)
    assert [str(r) for r in whole.ranks] == [str(r) for r in spelled_out.ranks]
    assert simulated(schedule, costs) == simulated(with_transfers(schedule), costs)


def with_transfers(schedule):
    """Each result is sent where it is made, and received right before it is read."""
    rank_of = schedule.placement.ranks
    ranks = []
    for rank, actions in enumerate(schedule.actions):
        texts = []
        for action in actions:
            step = {"F": 1, "B": -1, "I": -1}.get(action.kind, 0)
            word = "F" if step > 0 else "B"
            for neighbour, verb in ((action.stage - step, "RECV"), (action.stage + step, "SEND")):
                crosses = 0 <= neighbour < schedule.num_stages and rank_of[neighbour] != rank
                transfer = f"{action.stage}{verb}_{word}{action.microbatch}"
                if verb == "RECV" and step and crosses:
                    texts.append(transfer)
                if verb == "RECV":
                    texts.append(str(action))
                if verb == "SEND" and step and crosses:
                    texts.append(transfer)
        ranks.append(texts)
    return Schedule(ranks, placement=schedule.placement, num_microbatches=schedule.num_microbatches)


def test_what_goes_to_one_rank_at_a_time_is_one_message():
    schedule = Schedule([["0F0", "2F0"], ["1F0", "3F0"]], num_microbatches=1)
    costs = Costs(bytes=1, bandwidth=1, skips=[(0, [1, 3], 10), (0, [2, 3], 100), (0, 2, 1000)])
    messages = schedule.simulate(costs).messages
    # Stages 1 and 3 are on rank 1, stage 2 on stage 0's own.
    assert [(str(m.sender), str(m.reader), m.arrived - m.begun) for m in messages] == [
        ("1F0", "2F0", 1),
        ("0F0", "1F0", 1 + 10 + 100),
        ("2F0", "3F0", 1),
    ]


def test_a_step_waits_for_the_last_of_what_it_reads():
    schedule = Schedule([["0F0"], ["1F0"], ["2F0"]], num_microbatches=1)
    slow = Costs(latency={(0, 2): 9, None: 1}, skips=[(0, 2, 1)])
    timeline = schedule.simulate(slow)
    assert [spans[0].start for spans in timeline.ranks] == [0, 2, 10]
    assert [str(span.action) for span in timeline.critical_path] == ["0F0", "2F0"]
    last = timeline.gaps[2]
    assert [gap.reason for gap in last] == [
        "waits for 0F0 on rank 0",
        "the message of 0F0 is on the way from rank 0",
    ]
    assert [str(m.sender) for m in timeline.messages if m.destination == 2] == ["0F0", "1F0"]


def test_skips_hold_in_each_copy_of_the_model():
    schedule = Schedule.build("dualpipe", num_ranks=4, num_microbatches=8)
    messages = simulated(schedule, Costs(skips=[(0, 3, 1), (3, 0, 1)]))
    assert len(messages) == 8 * 2 * (3 + 1)
    assert ("0F0", 0, 3, "3F0") in messages
    assert ("4F4", 3, 0, "7F4") in messages


def test_what_waits_for_its_reader_takes_memory_beside_the_activations():
    schedule = Schedule([["0F0", "0F1"], ["1F0", "1F1"], ["2F0", "2F1"]], num_microbatches=2)
    sizes = {"activation_bytes": 100, "bytes": 7}
    assert schedule.simulate(Costs(**sizes)).peak_bytes == [100, 100, 100]
    # 0F0's arrives at 1, 0F1's at 2 and 2F0 reads the first until 3.
    timeline = schedule.simulate(Costs(**sizes, skips=[(0, 2, 10)]))
    assert timeline.peak_bytes == [100, 100, 120]


def test_a_rank_keeps_a_value_until_its_last_reader_has_run():
    schedule = Schedule([["0F0", "2F0", "0F1", "2F1"], ["1F0", "1F1"]], num_microbatches=2)
    timeline = schedule.simulate(Costs(activation_bytes=100, skips=[(0, 2, 10)]))
    assert timeline.peak_bytes == [110, 100]
    assert not [m for m in timeline.messages if m.source == m.destination]


def test_an_input_that_is_kept_alone_has_all_that_the_stage_reads():
    last = ["2F0", "2F1", "2R0", "2B0", "2R1", "2B1"]
    others = [[f"{s}{kind}{m}" for kind in "FB" for m in range(2)] for s in range(2)]
    again = Schedule([*others, last])
    sizes = {"activation_bytes": 100, "bytes": 7}
    assert again.simulate(Costs(**sizes)).peak_bytes[2] == 100 + 7
    # While 2F1 runs: its own activation, its message that has just been read, and 2F0's inputs.
    assert again.simulate(Costs(**sizes, skips=[(0, 2, 10)])).peak_bytes[2] == 100 + 10 + 17


def test_the_last_simulation_of_a_search_and_its_bounds_have_the_skips():
    costs = Costs(latency=0.1, bandwidth=10, bytes=1, skips=[(0, [1, 3], 2), (0, 2, 90), (3, 0, 4)])
    found = Schedule.search(costs, num_ranks=4, num_microbatches=4)
    assert simulated(found.schedule, costs) == lowered(found.schedule, costs.stage_graph)
    assert len(simulated(found.schedule, costs)) == 4 * (6 + 3)
    timeline = found.schedule.simulate(costs)
    assert found.value == found.timeline.makespan == timeline.makespan
    assert timeline.makespan > found.schedule.simulate(Costs(latency=0.1)).makespan + 5
    # Of the first stage's 3 bytes to the second, 2 are a skip's.
    alone = Costs(latency=0.1, bandwidth=10, bytes=[3, 1, 1, 0], gradient_bytes=1)
    bounds = [
        pipert.lower_bounds(found.schedule.placement, 4, some).makespan for some in (costs, alone)
    ]
    assert bounds[0] == bounds[1] <= found.value


def test_an_arrow_is_drawn_for_each_message_of_a_skip():
    schedule = Schedule.build("1f1b", num_ranks=3, num_microbatches=1)
    costs = Costs(latency=1, skips=[(0, 2, 1), (2, 0, 1)])
    svg = pipert.render_svg([("", schedule.simulate(costs))], transfers=True)
    drawn = [(kind, a, b) for kind, a, b, *_ in arrows(svg)]
    assert len(drawn) == 4 + 2


@st.composite
def exchanged(draw):
    """Stages, and values that they hand to each other."""
    num_stages = draw(st.integers(1, 6))
    values = []
    for maker in (
        draw(st.lists(st.integers(0, num_stages - 2), max_size=6)) if num_stages > 1 else []
    ):
        readers = draw(st.sets(st.integers(maker + 1, num_stages - 1), min_size=1))
        name = f"v{len(values)}"
        size = draw(st.none() | st.integers(0, 9))
        values.append(Value(name, maker, tuple(sorted(readers)), draw(st.booleans()), size))
    specs = [
        StageSpec(
            inputs=tuple(v.name for v in values if stage in v.readers),
            outputs=tuple(v.name for v in values if v.maker == stage),
        )
        for stage in range(num_stages)
    ]
    return Stages([abs] * num_stages, specs=specs, values=values, names=[[]] * num_stages)


@examples
@given(exchanged())
def test_costs_of_values_go_the_ways_of_the_runtime(stages):
    costs = Costs(**exchange_costs(stages.values, len(stages)))
    assert costs.stage_graph == routes_of(stages).stage_graph()
    forward, back = 0, 0
    for value in stages.values:
        forward += value.bytes or 0
        back += (value.bytes or 0) * value.differentiable * len(value.readers)
    skipping = [skip for skip in costs.skips if skip[1][0] > skip[0]]
    returning = [skip for skip in costs.skips if skip[1][0] < skip[0]]
    assert sum(costs.bytes) + sum(size for _, _, size in skipping) == forward
    assert sum(costs.gradient_bytes) + sum(size for _, _, size in returning) == back


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        ((0, [], 1), "skips: expected a stage from 0 to 3 and others, .*got 0 and []"),
        ((0, 4, 1), "got 0 and [4]"),
        ((-1, 2, 1), "got -1 and [2]"),
        ((1, [0, 2], 1), "got 1 and [0, 2]"),
        ((0, [3, 2], 1), "got 0 and [3, 2]"),
        ((2, [2], 1), "got 2 and [2]"),
        ((0, 2, -1), "bytes of a skip must be"),
    ],
)
def test_skips_of_no_stages_are_refused(skip, message):
    schedule = Schedule.build("1f1b", num_ranks=4, num_microbatches=4)
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        schedule.simulate(Costs(skips=[skip]))


def test_ranks_that_block_in_skips_and_wait_for_each_other_are_told():
    schedule = Schedule.build("1f1b", num_ranks=4, num_microbatches=8)
    costs = Costs(latency=1, blocking=True, skips=[(0, 3, 1), (3, 0, 1)])
    with pytest.raises(ValueError, match="got '1f1b', whose skips have them do so"):
        schedule.simulate(costs)
