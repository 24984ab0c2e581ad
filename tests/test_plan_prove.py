"""prove: good programs are proved; one with one thing changed is refused, or still right."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from program_interpreter import run_by_lanes
from schedule_strategies import good_schedules

import pipert
from pipert import _C, Schedule
from pipert.local.programs import Programs

SEEDS = range(4)
examples = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def lowered(draw, **sizes):
    """(schedule, its programs), of any options, with activations on the host or without."""
    schedule = draw(good_schedules(**sizes))
    if draw(st.booleans()):
        schedule = schedule.with_offload(ahead=draw(st.integers(0, 2)))
    if draw(st.integers(0, 3)) == 0:
        schedule = schedule.forward_only()
    programs = pipert.lower(
        schedule,
        receive_slots=draw(st.integers(1, 4)),
        send_slots=draw(st.none() | st.integers(1, 3)),
    )
    return schedule, programs


def named(name="1f1b", num_ranks=2, num_microbatches=3, **options):
    schedule = Schedule.build(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
    return pipert.lower(schedule, **options)


def slots_of(instruction):
    if instruction["kind"] == "run":
        return [*instruction["reads"], *instruction["writes"]]
    return [instruction["slot"]] if "slot" in instruction else []


def changed(program, at, **changes):
    instruction = program.instructions[at]
    given = {
        "waits": instruction["waits"],
        "mark": instruction["mark"],
        "slots": slots_of(instruction),
    }
    return _C.edit_program(program, at, **{**given, **changes})


@examples
@given(lowered())
def test_what_lower_makes_is_proved(made):
    _, programs = made
    proof = pipert.prove(programs)
    assert proof, proof.message
    assert proof.is_whole
    assert proof.num_assumed == 0
    assert proof.places == []
    assert all(pipert.prove([program]) for program in programs)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lowered(min_ranks=17, max_ranks=19, max_stages=24, max_microbatches=3))
def test_what_lower_makes_for_a_wide_pipeline_is_proved(made):
    proof = pipert.prove(made[1])
    assert proof, proof.message


@examples
@given(st.sampled_from(["dualpipe", "dualpipe_v"]), st.integers(1, 3), st.integers(2, 10))
def test_joint_pairs_are_proved(name, half, num_microbatches):
    num_ranks, num_microbatches = 2 * half, 2 * max(num_microbatches, 2 * half)
    schedule = Schedule.build(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
    programs = pipert.lower(schedule, joint_pairs=True)
    assert any(program.joint_pairs for program in programs)
    proof = pipert.prove(programs)
    assert proof, proof.message


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lowered(), st.data())
def test_a_changed_program_is_refused_or_right_in_random_orders(made, data):
    schedule, programs = made
    rank = data.draw(st.sampled_from([r for r, p in enumerate(programs) if len(p)]))
    program = programs[rank]
    at = data.draw(st.integers(0, len(program) - 1))
    instruction = program.instructions[at]
    waits, slots = list(instruction["waits"]), slots_of(instruction)
    what = data.draw(st.sampled_from(["wait", "mark", "slot"]))
    if what == "wait" and waits:
        waits.pop(data.draw(st.integers(0, len(waits) - 1)))
        if data.draw(st.booleans()):
            waits.append(data.draw(st.integers(0, program.num_marks - 1)))
        programs[rank] = changed(program, at, waits=waits)
    elif what == "slot" and slots:
        slots[data.draw(st.integers(0, len(slots) - 1))] = data.draw(
            st.integers(0, len(program.slots) - 1)
        )
        programs[rank] = changed(program, at, slots=slots)
    else:
        programs[rank] = changed(program, at, mark=None)
    proof = pipert.prove(programs)
    if not proof:
        assert proof.message
        assert proof.flaw
        return
    copies = schedule.placement.num_copies
    for seed in SEEDS:
        assert run_by_lanes(programs, seed, num_copies=copies) is not None


def test_a_missing_wait_is_a_race_of_two_instructions():
    programs = named()
    programs[0] = changed(programs[0], 3, waits=[])  # of the Send behind 0F0
    proof = pipert.prove(programs)
    assert proof.flaw == "race"
    assert proof.message == (
        "rank 0: %3 (send activation of stage 0, microbatch 0 #0 s2): s2: may use the slot before "
        "the end of %2 (run 0F0 writes s2)"
    )
    assert proof.places == [
        {"rank": 0, "instruction": 2, "text": "run 0F0 writes s2"},
        {"rank": 0, "instruction": 3, "text": "send activation of stage 0, microbatch 0 #0 s2"},
    ]
    assert repr(proof) == f"<Proof: {proof.message}>"


def without_a_wait_for_a_release():
    """An evaluation with two send slots, of which a Run no longer waits for the Release."""
    schedule = Schedule.build("gpipe", num_ranks=2, num_microbatches=5).forward_only()
    programs = pipert.lower(schedule, send_slots=1)
    programs[0] = changed(programs[0], first_that_waits(programs[0]), waits=[])
    return programs


def first_that_waits(program):
    runs = [i for i, each in enumerate(program.instructions) if each["kind"] == "run"]
    return next(i for i in runs if program.instructions[i]["waits"])


def test_a_race_across_ranks_needs_all_programs_to_be_seen():
    programs = without_a_wait_for_a_release()
    whole = Schedule.build("gpipe", num_ranks=2, num_microbatches=5).forward_only()
    at = first_that_waits(pipert.lower(whole, send_slots=1)[0])
    alone = pipert.prove(programs[:1])
    assert alone
    assert not alone.is_whole
    assert alone.num_assumed > 0
    together = pipert.prove(programs)
    assert together.flaw == "race"
    assert together.is_whole
    assert together.places[1]["instruction"] == at
    assert together.message.endswith("nothing that came back shows that the message has arrived")


def test_ranks_that_wait_for_each_other_are_named_as_a_cycle():
    """Rank 0 reads the gradient before it sends the activation that the gradient needs."""
    eager, lazy = ["0F0", "0F1", "0B0", "0B1"], ["0F0", "0B0", "0F1", "0B1"]
    last, turns = ["1F0", "1F1", "1B0", "1B1"], ["1F0", "1B0", "1F1", "1B1"]
    programs = [pipert.lower(Schedule([lazy, turns]))[0], pipert.lower(Schedule([eager, last]))[1]]
    proof = pipert.prove(programs)
    assert proof.flaw == "deadlock"
    assert {place["rank"] for place in proof.places} == {0, 1}
    assert any(place["text"].startswith("run 0B0") for place in proof.places)
    assert any(place["text"].startswith("run 1F1") for place in proof.places)
    assert ", which waits for rank " in proof.message


def test_ends_that_disagree_are_named_on_both_ranks():
    one, other = named("1f1b"), named("gpipe", num_microbatches=4)
    proof = pipert.prove([one[0], other[1]])
    assert proof.flaw == "message"
    assert proof.places


def test_marks_that_nobody_needs_are_found():
    programs = named()
    assert pipert.prove(programs).unneeded == []
    send = programs[0].instructions[3]
    mark = programs[0].instructions[2]["mark"]
    programs[0] = changed(programs[0], 5, waits=[4, mark])  # of the Send behind 0F1
    proof = pipert.prove(programs)
    assert proof.ok
    assert send["waits"] == [mark]
    assert proof.unneeded == [{"rank": 0, "instruction": 5, "mark": mark, "kind": "wait"}]
    programs[0] = changed(programs[0], 11, mark=programs[0].instructions[3]["mark"])
    assert pipert.prove(programs).flaw == "mark"  # set twice


def setter_of(program, mark):
    return next(each for each in program.instructions if each["mark"] == mark)


@examples
@given(lowered())
def test_what_lower_leaves_unneeded_is_of_three_kinds(made):
    _, programs = made
    for each in pipert.prove(programs).unneeded:
        program = programs[each["rank"]]
        instruction = program.instructions[each["instruction"]]
        setter = setter_of(program, each["mark"])
        assert (each["kind"], instruction["kind"], setter["kind"]) in {
            ("wait", "run", "recv"),  # a message that came before one that was read already
            ("wait", "move", "move"),  # a RELOAD whose OFFLOAD another has waited past
            ("mark", "run", "run"),  # one behind which no receive takes its slot
        }
        if each["kind"] == "mark":
            assert any(program.slots[slot]["kind"] == "receive" for slot in instruction["reads"])


@examples
@given(lowered())
def test_what_is_unneeded_can_all_be_left_out(made):
    schedule, programs = made
    while unneeded := pipert.prove(programs).unneeded:
        for each in unneeded:
            rank, at = each["rank"], each["instruction"]
            waits = list(programs[rank].instructions[at]["waits"])
            if each["kind"] == "wait":
                waits.remove(each["mark"])
                programs[rank] = changed(programs[rank], at, waits=waits)
            else:
                programs[rank] = changed(programs[rank], at, mark=None)
        proof = pipert.prove(programs)
        assert proof, proof.message
    for seed in SEEDS:
        copies = schedule.placement.num_copies
        assert run_by_lanes(programs, seed, num_copies=copies) is not None


# --- before the first step -----------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [[0, 1], [0], [1]])
def test_a_wrong_program_is_refused_by_every_process_before_it_runs(ranks):
    programs = named()
    assert list(Programs.proved(programs, ranks)) == [programs[rank] for rank in ranks]
    programs[0] = changed(programs[0], 3, waits=[])
    with pytest.raises(RuntimeError, match=r"please report it\. rank 0: %3 \(send activation"):
        Programs.proved(programs, ranks)


def test_programs_that_are_too_many_together_are_proved_each_alone():
    programs = without_a_wait_for_a_release()
    size = len(programs[0]) * 2
    with pytest.raises(RuntimeError, match="nothing that came back"):
        Programs.proved(programs, [0], most_together=size)
    assert Programs.proved(programs, [0], most_together=size - 1).prove().num_assumed > 0
    with pytest.raises(RuntimeError, match="nothing that came back"):  # all are here already
        Programs.proved(programs, [0, 1], most_together=size - 1)
    programs[0] = changed(programs[0], 1, waits=[])
    with pytest.raises(RuntimeError, match="may use the slot before"):
        Programs.proved(programs, [0], most_together=size - 1)


def test_a_pair_may_fill_the_slot_that_its_other_half_has_emptied():
    before, after = "0F0 0F1 1F0 2F0", "2F1 1B0 0B0 2B1 1B1 0B1"
    schedule = Schedule([[*before.split(), "(1F1;2B0)OVERLAP_F_B", *after.split()]])
    [program] = pipert.lower(schedule, joint_pairs=True)
    [first] = [at for at, i in enumerate(program.instructions) if str(i.get("action")) == "1F1"]
    assert set(slots_of(program.instructions[first])) & set(
        slots_of(program.instructions[first + 1])
    )
    proof = pipert.prove([program])
    assert proof, proof.message


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        ([], "expected the programs of one rank or more, got none"),
        ([*named(), *named(num_ranks=3)], "expected programs of a pipeline of 2 ranks"),
        (named()[:1] * 2, "got rank 0 twice"),
    ],
)
def test_programs_of_no_one_pipeline_are_told(programs, message):
    with pytest.raises(ValueError, match=message):
        pipert.prove(programs)
