"""Programs of stages that read beyond the chain: who sends what to whom, how often, and in what."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from program_interpreter import run_by_lanes, run_in_issue_order
from schedule_strategies import good_schedules

import pipert
from pipert import _C, Schedule

SEEDS = (0, 1, 2)
examples = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def graphs(draw, num_stages):
    """Any pairs of stages that are no neighbours."""
    pairs = [(i, j) for i in range(num_stages) for j in range(i + 2, num_stages)]
    some = st.lists(st.sampled_from(pairs), unique=True) if pairs else st.just([])
    return _C.StageGraph(activations=draw(some), gradients=[(j, i) for i, j in draw(some)])


@st.composite
def graphs_of_schedules(draw, **sizes):
    """(schedule, a graph of its stages), in one copy or two."""
    copies = draw(st.sampled_from([1, 1, 2]))
    schedule = draw(good_schedules(num_copies=copies, max_stages=6 * copies, **sizes))
    return schedule, draw(graphs(schedule.num_stages // copies))


def of_kind(program, kind):
    return [i for i in program.instructions if i["kind"] == kind]


def edge_of(program, slot):
    spec = program.slots[slot]
    return spec["source"], spec["destination"]


def computed(schedule):
    """What each rank runs, pairs taken apart."""
    return [
        [
            half
            for a in actions
            for half in (
                [a] if a.paired is None else [pipert.Action("F", a.stage, a.microbatch), a.paired]
            )
        ]
        for actions in schedule.actions
    ]


def needed_messages(schedule, graph):
    """(message, source, destination): one for each other rank with a reader of what was made."""
    rank_of = schedule.placement.ranks
    size = schedule.num_stages // schedule.placement.num_copies
    chain = range(size - 1)
    pairs = {
        "activation": {*graph.activations, *((s, s + 1) for s in chain)},
        "gradient": {*graph.gradients, *((s + 1, s) for s in chain)},
    }
    needed = set()
    for rank, actions in enumerate(computed(schedule)):
        for action in actions:
            kind = {"F": "activation", "B": "gradient", "I": "gradient"}.get(action.kind)
            own = action.stage % size
            for source, reader in pairs.get(kind, ()):
                destination = rank_of[action.stage - own + reader]
                if source == own and destination != rank:
                    key = (kind, action.stage, action.microbatch)
                    needed.add((key, rank, destination))
    return needed


@examples
@given(graphs_of_schedules(), st.integers(1, 3), st.sampled_from([None, 1, 2]))
def test_programs_of_any_graph_are_proved_and_compute_the_right_dataflow(made, slots, bound):
    schedule, graph = made
    copies = schedule.placement.num_copies
    for some in (schedule, schedule.forward_only()):
        programs = pipert.lower(some, receive_slots=slots, send_slots=bound, stage_graph=graph)
        proof = pipert.prove(programs)
        assert proof, proof.message
        assert all(program.stage_graph == graph for program in programs)
        for seed in SEEDS:
            done = run_in_issue_order(programs, seed, sends_may_wait=True, num_copies=copies)
            assert done == computed(some)
            assert run_by_lanes(programs, seed, num_copies=copies) == computed(some)


@examples
@given(graphs_of_schedules())
def test_each_message_goes_once_to_each_rank_that_reads_it(made):
    schedule, graph = made
    for some in (schedule, schedule.forward_only()):
        programs = pipert.lower(some, stage_graph=graph)
        expected = Counter(needed_messages(some, graph))
        for kind in ("send", "recv", "release"):
            assert expected == Counter(
                (i["message"], *edge_of(program, i["slot"]))
                for program in programs
                for i in of_kind(program, kind)
            )


@examples
@given(graphs_of_schedules(), st.integers(1, 3), st.integers(1, 3))
def test_slots_are_bounded_by_what_is_asked_for_and_read_late(made, slots, bound):
    schedule, graph = made
    for some in (schedule, schedule.forward_only()):
        programs = pipert.lower(some, receive_slots=slots, send_slots=bound, stage_graph=graph)
        free = pipert.lower(some, receive_slots=slots, stage_graph=graph)
        is_bounded = list(map(str, programs)) != list(map(str, free))
        for program in programs:
            check_receive_slots(program, slots)
            if is_bounded:
                check_on_their_way(program, bound)


def check_receive_slots(program, slots):
    order = {}  # edge -> the sequences in the order in which they are read
    into = {}
    for i in program.instructions:
        if i["kind"] == "recv":
            into[i["slot"]] = i["sequence"]
        for slot in i.get("reads", ()):
            if program.slots[slot]["kind"] == "receive":
                order.setdefault(edge_of(program, slot), []).append(into[slot])
    for edge, sequences in order.items():
        used = sum(
            s["kind"] == "receive" and (s["source"], s["destination"]) == edge
            for s in program.slots
        )
        needed = max(
            1 + sum(other < sequence for other in sequences[at + 1 :])
            for at, sequence in enumerate(sequences)
        )
        assert used <= needed + slots - 1


def check_on_their_way(program, bound):
    on_their_way = Counter()
    for i in program.instructions:
        if i["kind"] in ("send", "release"):
            edge = edge_of(program, i["slot"])
            on_their_way[edge] += 1 if i["kind"] == "send" else -1
            assert 0 <= on_their_way[edge] <= bound


def sends_of(programs, kind="activation", microbatch=0):
    """[(stage that made it, source, destination), ...] of one microbatch."""
    return sorted(
        (i["message"][1], *edge_of(program, i["slot"]))
        for program in programs
        for i in of_kind(program, "send")
        if i["message"][0] == kind and i["message"][2] == microbatch
    )


def build(name, num_ranks, num_stages=None, num_microbatches=None):
    return Schedule.build(
        name,
        num_ranks=num_ranks,
        num_stages=num_stages or num_ranks,
        num_microbatches=num_microbatches or 2 * num_ranks,
    )


ALL_OF_4 = _C.StageGraph(activations=[(0, 2), (0, 3), (1, 3)], gradients=[(2, 0), (3, 0), (3, 1)])


@pytest.mark.parametrize(
    ("schedule", "activations", "gradients"),
    [
        # A rank each: all pairs are messages.
        (
            build("1f1b", 4),
            [(0, 0, 1), (0, 0, 2), (0, 0, 3), (1, 1, 2), (1, 1, 3), (2, 2, 3)],
            [(1, 1, 0), (2, 2, 0), (2, 2, 1), (3, 3, 0), (3, 3, 1), (3, 3, 2)],
        ),
        # Stages 0 and 2 on rank 0, 1 and 3 on rank 1: both readers of stage 0 there have one.
        (
            build("interleaved_1f1b", 2, 4),
            [(0, 0, 1), (1, 1, 0), (2, 0, 1)],
            [(1, 1, 0), (2, 0, 1), (3, 1, 0)],
        ),
        # Stages 0 and 3 on rank 0, 1 and 2 on rank 1.
        (
            build("zb_v", 2, 4),
            [(0, 0, 1), (1, 1, 0), (2, 1, 0)],
            [(1, 1, 0), (2, 1, 0), (3, 0, 1)],
        ),
        (
            build("dualpipe_v", 2, 4),
            [(0, 0, 1), (1, 1, 0), (2, 1, 0)],
            [(1, 1, 0), (2, 1, 0), (3, 0, 1)],
        ),
        (
            Schedule([[*(f"{s}F0" for s in range(4)), *(f"{s}B0" for s in reversed(range(4)))]]),
            [],
            [],
        ),
    ],
    ids=["a rank each", "looped", "zb_v", "dualpipe_v", "one rank"],
)
def test_a_rank_gets_what_its_stages_read_once_and_pays_nothing_for_its_own(
    schedule, activations, gradients
):
    programs = pipert.lower(schedule, stage_graph=ALL_OF_4)
    assert sends_of(programs) == activations
    assert sends_of(programs, "gradient") == gradients


def test_two_copies_of_the_model_each_have_the_graph():
    schedule = Schedule.build("dualpipe", num_ranks=4, num_microbatches=8)
    assert schedule.placement.num_copies == 2
    graph = _C.StageGraph(activations=[(0, 3)], gradients=[(3, 0)])
    programs = pipert.lower(schedule, stage_graph=graph)
    extra = {
        (i["message"][0], i["message"][1], *edge_of(program, i["slot"]))
        for program in programs
        for i in of_kind(program, "send")
    } - {
        (i["message"][0], i["message"][1], *edge_of(program, i["slot"]))
        for program in pipert.lower(schedule)
        for i in of_kind(program, "send")
    }
    assert extra == {
        ("activation", 0, 0, 3),
        ("gradient", 3, 3, 0),
        ("activation", 4, 3, 0),
        ("gradient", 7, 0, 3),
    }


def test_what_a_later_stage_of_a_rank_reads_is_kept_where_it_was_read_first():
    programs = pipert.lower(
        build("interleaved_1f1b", 2, 4), stage_graph=_C.StageGraph(activations=[(0, 3)])
    )
    runs = {str(i["action"]): i for i in of_kind(programs[1], "run")}
    first, last = runs["1F0"], runs["3F0"]
    (kept,) = first["keeps"]
    assert kept == last["reads"][1]
    assert programs[1].slots[kept]["kind"] == "local"
    assert last["keeps"] == [None, None]
    assert f"reads s{first['reads'][0]} keeping s{kept}" in first["text"]


def test_a_program_without_skip_edges_is_what_it_was():
    schedule = build("interleaved_1f1b", 2, 4)
    assert str(pipert.lower(schedule)[0]) == str(
        pipert.lower(schedule, stage_graph=_C.StageGraph())[0]
    )
    assert "beyond the chain" not in str(pipert.lower(schedule)[0])


def test_send_slots_are_left_out_where_skip_edges_alone_could_then_not_end():
    """With two on their way each rank can read in another order; stage 2 needs three of stage 0."""
    forward = Schedule(
        [
            [f"0F{m}" for m in range(4)],
            [f"1F{m}" for m in (1, 2, 3, 0)],
            [f"2F{m}" for m in (2, 3, 0, 1)],
        ]
    )
    graph = _C.StageGraph(activations=[(0, 2)])
    for some, is_bounded in ((None, True), (graph, False)):
        free = pipert.lower(forward, stage_graph=some)
        bounded = pipert.lower(forward, send_slots=2, stage_graph=some)
        assert (list(map(str, bounded)) != list(map(str, free))) == is_bounded
        assert run_in_issue_order(bounded, sends_may_wait=True) is not None
        assert pipert.prove(bounded)


@pytest.mark.parametrize("edge", [(0, 4), (2, 7)])
def test_a_graph_with_a_stage_that_is_not_there_is_refused(edge):
    graph = _C.StageGraph(activations=[edge])
    with pytest.raises(ValueError, match=rf"{edge[0]}->{edge[1]}, but there are 4 stages"):
        pipert.lower(build("1f1b", 4), stage_graph=graph)
    with pytest.raises(ValueError, match="there are 4 stages"):
        pipert.lower(Schedule.build("dualpipe", num_ranks=4, num_microbatches=8), stage_graph=graph)
