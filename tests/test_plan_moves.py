"""Moves to the host and back in Programs: lanes of their own, and no mark too many or too few."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from program_interpreter import RaceError, run_by_lanes, run_in_issue_order
from schedule_strategies import good_schedules

import pipert
from pipert import Schedule

SEEDS = (0, 1, 2)
examples = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def moved_schedules(draw):
    schedule = draw(good_schedules())
    stages = draw(st.none() | st.lists(st.integers(0, schedule.num_stages - 1)))
    return schedule.with_offload(stages=stages, ahead=draw(st.integers(0, 2)))


def test_a_program_with_moves_prints_them():
    (program,) = pipert.lower(Schedule([["0F0", "0OFFLOAD0", "0F1", "0RELOAD0", "0B0", "0B1"]]))
    assert str(program).splitlines() == [
        "program of rank 0 of 1: 6 instructions, 3 lanes, 0 slots, 3 marks, at most 2 live "
        "activations",
        "  %0 = run 0F0  on compute  sets m0",
        "  %1 = move 0OFFLOAD0  on offload  waits m0  sets m1",
        "  %2 = run 0F1  on compute",
        "  %3 = move 0RELOAD0  on reload  waits m1  sets m2",
        "  %4 = run 0B0  on compute  waits m2",
        "  %5 = run 0B1  on compute",
    ]


@examples
@given(moved_schedules(), st.integers(1, 3))
def test_programs_with_moves_end_and_compute_the_right_dataflow(schedule, slots):
    programs = pipert.lower(schedule, receive_slots=slots)
    for seed in SEEDS:
        assert run_in_issue_order(programs, seed) == schedule.actions
        done = run_by_lanes(programs, seed)
        assert done is not None
        assert [sorted(map(str, actions)) for actions in done] == [
            sorted(map(str, actions)) for actions in schedule.actions
        ]


@examples
@given(moved_schedules())
def test_moves_add_the_marks_that_they_need_alone(schedule):
    """OFFLOAD waits for its F, RELOAD for its OFFLOAD, B or I for its RELOAD."""
    plain = Schedule(
        [[a for a in actions if a.is_compute] for actions in schedule.actions],
        placement=schedule.placement,
        num_microbatches=schedule.num_microbatches,
    )
    for with_moves, without in zip(pipert.lower(schedule), pipert.lower(plain), strict=True):
        moves = [i for i in with_moves.instructions if i["kind"] == "move"]
        num_moved = len(moves) // 2

        def waits(program):
            return sum(len(i["waits"]) for i in program.instructions)

        assert waits(with_moves) == waits(without) + 3 * num_moved
        assert without.num_marks + 2 * num_moved <= with_moves.num_marks
        assert with_moves.num_marks <= without.num_marks + 3 * num_moved  # F may have had one
        lanes = {with_moves.lanes[i["lane"]]["kind"] for i in moves}
        assert lanes == ({"offload", "reload"} if moves else set())


class Edited:
    """A Program of which one instruction waits for less."""

    def __init__(self, program, at, mark):
        self.num_stages = program.num_stages
        self.stage_graph = program.stage_graph
        self.slots = program.slots
        self.instructions = program.instructions
        self.instructions[at]["waits"].remove(mark)


def play(programs):
    for seed in range(200):
        run_by_lanes(programs, seed)


def test_without_any_one_of_the_marks_lanes_race():
    schedule = Schedule.build("1f1b", num_ranks=2, num_microbatches=4).with_offload(ahead=0)
    programs = pipert.lower(schedule)
    moves = [i for i in programs[0].instructions if i["kind"] == "move"]
    marks = {i["mark"] for i in moves} | {mark for i in moves for mark in i["waits"]}
    num_tried = 0
    for at, instruction in enumerate(programs[0].instructions):
        for mark in instruction["waits"]:
            if mark not in marks or instruction["kind"] == "send":
                continue
            num_tried += 1
            edited = [Edited(programs[0], at, mark), programs[1]]
            with pytest.raises(RaceError):
                play(edited)
    assert num_tried >= 3


def test_recomputation_runs_behind_what_it_reads():
    (program,) = pipert.lower(
        Schedule([["0F0", "0OFFLOAD0", "0F1", "0RELOAD0", "0R0", "0B0", "0R1", "0B1"]])
    )
    text = str(program)
    assert "run 0R0  on compute  waits m2" in text
    assert "run 0B0  on compute\n" in text
    assert program.peak_activations == 1


def test_a_run_may_wait_for_an_arrival_a_release_and_a_move():
    schedule = Schedule.build("zb_h1", num_ranks=3, num_microbatches=6).with_offload(ahead=0)
    programs = pipert.lower(schedule, send_slots=1, receive_slots=1)
    assert max(len(i["waits"]) for p in programs for i in p.instructions) == 3
    for seed in SEEDS:
        assert run_in_issue_order(programs, seed, sends_may_wait=True) == schedule.actions


@pytest.mark.parametrize(
    ("actions", "refused"),
    [
        ("0UNSHARD 0F0 0B0 0RESHARD", "0UNSHARD"),
        ("0F0 0B0 0REDUCE_GRAD", "0REDUCE_GRAD"),
        ("0F0 0B0 0UPDATEv1", "0UPDATEv1"),
    ],
)
def test_actions_for_which_a_pipeline_alone_has_no_meaning_are_refused(actions, refused):
    with pytest.raises(ValueError, match=rf"must hold F, B, I, W, R, OFFLOAD, .* got {refused}"):
        pipert.lower(Schedule([actions.split()]))


def test_an_evaluation_moves_nothing():
    schedule = Schedule.build("gpipe", num_ranks=2, num_microbatches=4).with_offload()
    for program in pipert.lower(schedule.forward_only()):
        assert all(i["kind"] != "move" for i in program.instructions)
