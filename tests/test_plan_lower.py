"""lower: what it promises of a Program holds for every schedule and size."""

import gc
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from program_interpreter import run_by_lanes, run_in_issue_order
from schedule_strategies import good_schedules

import pipert

SEEDS = (0, 1, 2)


@st.composite
def named_schedules(draw):
    name = draw(st.sampled_from(["gpipe", "1f1b", "interleaved_1f1b"]))
    num_ranks = draw(st.integers(1, 4))
    if name != "interleaved_1f1b":
        num_microbatches = draw(st.integers(num_ranks if name == "1f1b" else 1, 9))
        return pipert.Schedule.build(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
    try:
        return pipert.Schedule.build(
            name,
            num_ranks=num_ranks,
            num_stages=num_ranks * draw(st.integers(1, 3)),
            num_microbatches=draw(st.integers(1, 9)),
            group_size=draw(st.integers(1, 6)),
        )
    except ValueError:
        assume(False)  # sizes that the schedule refuses


# More ranks than those up to which each tracks all others (kTrackAll in csrc/plan/clocks.h).
WIDE = {
    "1f1b": 1,
    "interleaved_1f1b": 1,
    "looped_bfs": 1,
    "hanayo": 1,
    "zb_interleaved": 1,
    "zb_v": 1,
    "v_half": 1,
    "chimera": 1,
    "dualpipe_v": 2,
    "dualpipe": 2,
}


@st.composite
def wide_named_schedules(draw):
    name = draw(st.sampled_from(list(WIDE)))
    num_ranks = 18
    return pipert.Schedule.build(
        name,
        num_ranks=num_ranks,
        num_microbatches=WIDE[name] * num_ranks + draw(st.sampled_from([0, num_ranks])),
    )


wide_schedules = st.one_of(
    wide_named_schedules(),
    good_schedules(min_ranks=17, max_ranks=19, max_stages=24, max_microbatches=3),
)
schedules = st.one_of(named_schedules(), good_schedules())
receive_slots = st.integers(1, 4)
few_examples = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
examples = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def of_kind(program, kind):
    return [i for i in program.instructions if i["kind"] == kind]


def edge_of(program, instruction):
    slot = program.slots[instruction["slot"]]
    return slot["source"], slot["destination"]


def runs_of(actions):
    """The compute actions, overlapped pairs taken apart."""
    for action in actions:
        if action.paired is not None:
            yield pipert.Action("F", action.stage, action.microbatch)
            yield action.paired
        elif action.is_compute:
            yield action


def gradient_maker(schedule):
    """(stage, microbatch) -> the action that makes the gradient of its input."""
    return {
        (a.stage, a.microbatch): a
        for actions in schedule.actions
        for a in actions
        if a.kind in "BI"
    }


def crossing_messages(schedule):
    """(message, source, destination) of every result that goes to another rank."""
    rank_of = schedule.placement.ranks
    for stage in range(schedule.num_stages - 1):
        here, there = rank_of[stage], rank_of[stage + 1]
        if here == there:
            continue
        for m in range(schedule.num_microbatches):
            yield ("activation", stage, m), here, there
            yield ("gradient", stage + 1, m), there, here


@examples
@given(schedules, receive_slots)
def test_each_program_runs_its_ranks_actions_in_their_order(schedule, slots):
    for program, actions in zip(
        pipert.lower(schedule, receive_slots=slots), schedule.actions, strict=True
    ):
        assert [i["action"] for i in of_kind(program, "run")] == list(runs_of(actions))


@examples
@given(schedules, receive_slots)
def test_every_message_that_crosses_ranks_is_sent_once_and_received_once(schedule, slots):
    programs = pipert.lower(schedule, receive_slots=slots)
    expected = Counter(crossing_messages(schedule))
    for kind in ("send", "recv", "release"):
        assert expected == Counter(
            (i["message"], *edge_of(program, i))
            for program in programs
            for i in of_kind(program, kind)
        )
    for program in programs:
        assert all(edge_of(program, i)[0] == program.rank for i in of_kind(program, "send"))
        assert all(edge_of(program, i)[1] == program.rank for i in of_kind(program, "recv"))


@examples
@given(schedules, receive_slots)
def test_both_ends_of_an_edge_number_its_messages_alike(schedule, slots):
    programs = pipert.lower(schedule, receive_slots=slots)
    orders = {}
    for kind in ("send", "recv"):
        for program in programs:
            for i in of_kind(program, kind):
                orders.setdefault((kind, edge_of(program, i)), []).append(
                    (i["sequence"], i["message"])
                )
    for (kind, edge), messages in orders.items():
        assert [sequence for sequence, _ in messages] == list(range(len(messages)))
        assert messages == orders["recv" if kind == "send" else "send", edge]


@examples
@given(schedules, receive_slots)
def test_a_slot_holds_one_message_at_a_time(schedule, slots):
    """Along each program: filled, then emptied, then filled again."""
    for program in pipert.lower(schedule, receive_slots=slots):
        busy = set()

        def fill(slot, busy=busy):
            assert slot not in busy
            busy.add(slot)

        for i in program.instructions:
            if i["kind"] == "recv":
                fill(i["slot"])
            elif i["kind"] == "run":
                busy -= set(
                    i["reads"]
                )  # a KeyError would hide in discard: checked by the interpreter
                for slot in i["writes"]:
                    fill(slot)
            elif i["kind"] == "release":
                assert i["slot"] in busy
                busy.remove(i["slot"])
        assert not busy


@examples
@given(schedules, receive_slots)
def test_receive_slots_are_bounded_by_what_is_asked_for_and_read_late(schedule, slots):
    for program in pipert.lower(schedule, receive_slots=slots):
        sequences = {}  # edge -> the sequences in the order in which they are read
        recv_into = {}
        for i in program.instructions:
            if i["kind"] == "recv":
                recv_into[i["slot"]] = i
            elif i["kind"] == "run":
                for slot in i["reads"]:
                    if program.slots[slot]["kind"] == "receive":
                        recv = recv_into[slot]
                        sequences.setdefault(edge_of(program, recv), []).append(recv["sequence"])
        for edge, order in sequences.items():
            used = sum(
                s["kind"] == "receive" and (s["source"], s["destination"]) == edge
                for s in program.slots
            )
            # Messages that came before the one to be read and are still unread, and that one.
            needed = max(
                1 + sum(other < sequence for other in order[at + 1 :])
                for at, sequence in enumerate(order)
            )
            assert used <= needed + slots - 1


@examples
@given(schedules, st.integers(2, 4))
def test_a_receive_is_posted_before_the_compute_that_precedes_its_use(schedule, slots):
    for program in pipert.lower(schedule, receive_slots=slots):
        posted, runs_so_far = {}, 0
        for i in program.instructions:
            if i["kind"] == "recv":
                posted[i["slot"]] = runs_so_far
            elif i["kind"] == "run":
                for slot in i["reads"]:
                    if program.slots[slot]["kind"] == "receive":
                        assert posted[slot] <= max(0, runs_so_far - 1)
                runs_so_far += 1


@examples
@given(schedules, receive_slots)
def test_every_mark_is_set_once_and_before_it_is_waited_for(schedule, slots):
    for program in pipert.lower(schedule, receive_slots=slots):
        marks = set()
        for i in program.instructions:
            assert marks.issuperset(i["waits"])
            if i["mark"] is not None:
                assert i["mark"] not in marks
                marks.add(i["mark"])
        assert marks == set(range(program.num_marks))


@examples
@given(schedules, receive_slots)
def test_every_instruction_is_on_the_lane_of_its_edge(schedule, slots):
    kinds = {"recv": "receive", "send": "send", "release": "send", "run": "compute"}
    for program in pipert.lower(schedule, receive_slots=slots):
        lanes = [(lane["kind"], lane["source"], lane["destination"]) for lane in program.lanes]
        assert len(set(lanes)) == len(lanes)
        for i in program.instructions:
            kind, *edge = lanes[i["lane"]]
            assert kind == kinds[i["kind"]]
            assert i["kind"] == "run" or tuple(edge) == edge_of(program, i)


@few_examples
@given(wide_schedules, receive_slots, st.sampled_from([None, 1, 3]))
def test_a_wide_pipeline_runs_in_any_order_that_its_programs_allow(schedule, slots, bound):
    num_copies = schedule.placement.num_copies
    expected = [list(runs_of(actions)) for actions in schedule.actions]
    programs = pipert.lower(schedule, receive_slots=slots, send_slots=bound)
    waits = bound is not None
    done = run_in_issue_order(programs, slots, sends_may_wait=waits, num_copies=num_copies)
    assert done == expected
    assert run_by_lanes(programs, slots, num_copies=num_copies) == expected


@few_examples
@given(wide_schedules)
def test_a_release_in_a_wide_pipeline_never_comes_before_its_message_is_known_to_be_read(schedule):
    for some in (schedule, schedule.forward_only()):
        check_releases(pipert.lower(some))


@few_examples
@given(wide_named_schedules())
def test_a_release_in_a_named_wide_pipeline_comes_as_soon_as_it_can(schedule):
    check_releases_are_early(pipert.lower(schedule))


@few_examples
@given(st.one_of(schedules, wide_schedules), receive_slots, st.sampled_from([None, 2]))
def test_one_rank_at_a_time_gives_the_programs_of_all(schedule, slots, bound):
    lowering = pipert.Lowering(schedule, receive_slots=slots, send_slots=bound)
    programs = pipert.lower(schedule, receive_slots=slots, send_slots=bound)
    assert len(lowering) == len(programs)
    assert [str(lowering[rank]) for rank in reversed(range(len(lowering)))] == [
        str(program) for program in reversed(programs)
    ]


def test_a_lowering_keeps_its_schedule():
    lowering = pipert.Lowering(pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=2))
    gc.collect()
    assert [program.rank for program in lowering] == [0, 1]


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_is_not_there_has_no_program(rank):
    lowering = pipert.Lowering(pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=2))
    with pytest.raises(IndexError, match=rf"rank must be in \[0, 2\), got {rank}"):
        lowering[rank]


@examples
@given(schedules, receive_slots)
def test_a_release_comes_after_a_run_that_needs_the_reader_to_have_started(schedule, slots):
    check_releases(pipert.lower(schedule, receive_slots=slots))


def check_releases(programs):
    before = happens_before(programs)
    reader = readers(programs)
    for program in programs:
        num_runs = len(of_kind(program, "run"))
        runs_so_far = 0
        for i in program.instructions:
            if i["kind"] == "run":
                runs_so_far += 1
            elif i["kind"] == "release" and runs_so_far < num_runs:
                known = (program.rank, runs_so_far - 1)
                assert before(reader[edge_of(program, i), i["sequence"]], known)


@examples
@given(schedules, receive_slots)
def test_a_release_comes_as_soon_as_it_can(schedule, slots):
    check_releases_are_early(pipert.lower(schedule, receive_slots=slots))


def check_releases_are_early(programs):
    before = happens_before(programs)
    reader = readers(programs)
    for program in programs:
        runs_so_far, sent_at = 0, {}
        for i in program.instructions:
            if i["kind"] == "run":
                runs_so_far += 1
            elif i["kind"] == "send":
                sent_at[edge_of(program, i), i["sequence"]] = runs_so_far - 1
            elif i["kind"] == "release":
                key = edge_of(program, i), i["sequence"]
                earlier = runs_so_far - 2  # what was known to a Run is known to all behind it
                if earlier > sent_at[key]:
                    assert not before(reader[key], (program.rank, earlier))


def readers(programs):
    """(edge, sequence) -> (rank, position) of the Run that reads the message."""
    found = {}
    for program in programs:
        recv_into, position = {}, 0
        for i in program.instructions:
            if i["kind"] == "recv":
                recv_into[i["slot"]] = (edge_of(program, i), i["sequence"])
            elif i["kind"] == "run":
                for slot in i["reads"]:
                    if program.slots[slot]["kind"] == "receive":
                        found[recv_into[slot]] = (program.rank, position)
                position += 1
    return found


def happens_before(programs):
    """Whether a Run, (rank, position), must have started when another starts, by closure."""
    needs = {}
    writer = {}
    for program in programs:
        position = -1
        for i in program.instructions:
            if i["kind"] == "run":
                position += 1
                needs[program.rank, position] = (
                    {(program.rank, position - 1)} if position > 0 else set()
                )
            elif i["kind"] == "send":
                writer[edge_of(program, i), i["sequence"]] = (program.rank, position)
    for message, run in readers(programs).items():
        needs[run].add(writer[message])
    bit = {run: i for i, run in enumerate(needs)}
    closure = {}  # of bits

    def visit(run):
        stack = [run]
        while stack:
            top = stack[-1]
            missing = [need for need in needs[top] if need not in closure]
            if missing:
                stack += missing
                continue
            stack.pop()
            started = 1 << bit[top]
            for need in needs[top]:
                started |= closure[need]
            closure[top] = started

    for run in needs:
        visit(run)
    return lambda earlier, run: bool(closure[run] >> bit[earlier] & 1)


@examples
@given(schedules, receive_slots)
def test_peak_activations_are_counted_pair_by_pair(schedule, slots):
    for program, actions in zip(
        pipert.lower(schedule, receive_slots=slots), schedule.actions, strict=True
    ):
        split = {(a.stage, a.microbatch) for a in actions if a.kind == "W"}
        live, peak = set(), 0
        for action in actions:
            pair = (action.stage, action.microbatch)
            if action.kind == "F":
                live.add(pair)
            elif action.kind == ("W" if pair in split else "B"):
                live.remove(pair)
            peak = max(peak, len(live))
        assert not live
        assert program.peak_activations == peak


@examples
@given(schedules, receive_slots)
def test_programs_end_and_compute_the_right_dataflow_in_issue_order(schedule, slots):
    programs = pipert.lower(schedule, receive_slots=slots)
    for seed in SEEDS:
        assert run_in_issue_order(programs, seed) == [list(runs_of(a)) for a in schedule.actions]


@examples
@given(schedules, receive_slots)
def test_programs_end_and_never_race_when_only_marks_order_their_lanes(schedule, slots):
    programs = pipert.lower(schedule, receive_slots=slots)
    for seed in SEEDS:
        assert run_by_lanes(programs, seed) == [list(runs_of(a)) for a in schedule.actions]


@examples
@given(schedules, receive_slots)
def test_forward_only_programs_end_and_hold_no_message(schedule, slots):
    forward = schedule.forward_only()
    programs = pipert.lower(forward, receive_slots=slots)
    for seed in SEEDS:
        assert run_by_lanes(programs, seed) == [list(a) for a in forward.actions]
    assert not any("gradient" in i["text"] for p in programs for i in p.instructions)


@examples
@given(schedules, receive_slots, st.integers(1, 5))
def test_with_send_slots_no_more_messages_are_on_their_way_and_all_arrive(schedule, slots, bound):
    for some in (schedule, schedule.forward_only()):
        programs = pipert.lower(some, receive_slots=slots, send_slots=bound)
        for seed in SEEDS:
            done = run_in_issue_order(programs, seed, sends_may_wait=True)
            assert done == run_in_issue_order(pipert.lower(some), seed)
            assert done == run_by_lanes(programs, seed)
        if not some.verify(capacity=bound, forward_only=some != schedule).ok:
            assert list(map(str, programs)) == list(
                map(str, pipert.lower(some, receive_slots=slots))
            )
            continue
        for program in programs:
            on_their_way = Counter()
            for i in program.instructions:
                on_their_way[i["kind"] != "run" and edge_of(program, i)] += {
                    "send": 1,
                    "release": -1,
                }.get(i["kind"], 0)
                assert all(0 <= n <= bound for n in on_their_way.values())


@pytest.mark.parametrize("bound", [1, 2, 3])
def test_a_send_waits_for_the_message_that_is_read_next_not_for_the_one_sent_first(bound):
    """Rank 1 reads microbatch 0 last: who waits until it has been read waits for ever."""
    forward = pipert.Schedule(
        [[f"0F{m}" for m in range(6)], ["1F1", "1F2", "1F3", "1F0", "1F4", "1F5"]]
    )
    programs = pipert.lower(forward, send_slots=bound)
    assert bound == 1 or any(i["kind"] == "release" for i in programs[0].instructions[:-2])
    for seed in SEEDS:
        assert run_in_issue_order(programs, seed, sends_may_wait=True) is not None


def test_an_inference_keeps_no_more_send_buffers_than_it_was_given():
    """Nothing comes back that would show that a message was read."""
    forward = pipert.Schedule.build("gpipe", num_ranks=2, num_microbatches=20).forward_only()

    def num_buffers(**options):
        return sum(slot["kind"] == "send" for slot in pipert.lower(forward, **options)[0].slots)

    assert num_buffers() == 20
    assert num_buffers(send_slots=3) == 4  # and one that is being written


def test_a_hand_over_inside_a_rank_costs_no_message():
    schedule = pipert.Schedule.build("gpipe", num_ranks=1, num_microbatches=3)
    chain = pipert.Schedule(
        [["0F0", "1F0", "2F0", "2B0", "1B0", "0B0"]], placement=pipert.Placement(1, [0, 0, 0])
    )
    for lowered in (schedule, chain):
        (program,) = pipert.lower(lowered)
        assert {i["kind"] for i in program.instructions} == {"run"}
        assert all(slot["kind"] == "local" for slot in program.slots)
        assert program.num_marks == 0


def test_the_1f1b_program_of_two_ranks_is_the_one_drawn():
    """Rank 1 of 2, three microbatches: the second receive is posted before the first Run."""
    programs = pipert.lower(pipert.Schedule.build("1f1b", num_ranks=2, num_microbatches=3))
    kinds = [
        i["kind"] if i["kind"] != "run" else str(i["action"]) for i in programs[1].instructions
    ]
    assert kinds == [
        *("recv", "recv", "1F0", "recv", "1B0", "send", "1F1", "1B1", "send"),
        *("1F2", "release", "1B2", "send", "release", "release"),
    ]
    assert programs[1].peak_activations == 1
    assert programs[0].peak_activations == 2


def test_transfers_that_a_schedule_writes_out_are_derived_all_the_same():
    plain = pipert.Schedule([["0F0", "0B0"], ["1F0", "1B0"]])
    written = pipert.Schedule(
        [["0F0", "0SEND_F0", "0RECV_B0", "0B0"], ["1RECV_F0", "1F0", "1B0", "1SEND_B0"]]
    )
    assert list(map(str, pipert.lower(plain))) == list(map(str, pipert.lower(written)))


def test_slots_do_not_grow_with_the_number_of_microbatches():
    def num_slots(num_microbatches):
        schedule = pipert.Schedule.build("1f1b", num_ranks=4, num_microbatches=num_microbatches)
        return [len(program.slots) for program in pipert.lower(schedule)]

    assert num_slots(64) == num_slots(16)


def test_instructions_grow_linearly_with_the_number_of_microbatches():
    sizes = [
        sum(
            map(
                len,
                pipert.lower(pipert.Schedule.build("1f1b", num_ranks=4, num_microbatches=m)),
            )
        )
        for m in (8, 16, 24)
    ]
    assert len({b - a for a, b in pairwise(sizes)}) == 1


@pytest.mark.parametrize("slots", [0, -1])
def test_fewer_than_one_receive_slot_is_refused(slots):
    schedule = pipert.Schedule.build("gpipe", num_ranks=2, num_microbatches=1)
    with pytest.raises(ValueError, match=rf"receive_slots must be at least 1, got {slots}"):
        pipert.lower(schedule, receive_slots=slots)


def test_a_schedule_that_is_not_valid_is_refused_with_its_counterexample():
    with pytest.raises(ValueError, match="1B0"):
        pipert.lower(pipert.Schedule([["0F0", "0B0"], ["1F0"]]))


def test_actions_of_sharded_parameters_are_refused_by_name():
    schedule = pipert.Schedule([["0UNSHARD", "0F0", "0B0"]])
    with pytest.raises(ValueError, match="0UNSHARD"):
        pipert.lower(schedule)


def test_as_many_receive_slots_as_there_can_be_are_no_harm():
    schedule = pipert.Schedule.build("hanayo", num_ranks=3, num_microbatches=7)
    most = 2**31 - 1
    for ours, usual in zip(
        pipert.lower(schedule, receive_slots=most),
        pipert.lower(schedule, receive_slots=1000),
        strict=True,
    ):
        assert str(ours) == str(usual)
