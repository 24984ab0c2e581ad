"""verify() agrees with what becomes of a schedule in the real Executor, legal or not."""

from collections import Counter

import pytest
import schedule_mutations
from schedule_mutations import apart

import pipert
from pipert import Placement, Schedule
from pipert._C import lower_blindly, rehearse

# When nothing moves for so long, a pass counts as stalled. A loaded machine may take longer to wake
# a thread, so a stall that a claim contests is given a second and much longer chance. One that the
# claim expects is not contested, and would hide a deadlock that verify() only imagines: every
# SAMPLE-th of these is run again, with a limit that a machine hardly misses by chance.
SHORT_MS, PATIENT_MS, LONG_MS = 4, 300, 10_000
SAMPLE = 25

# What may become of a schedule with each defect.
ENDINGS = {
    None: {"completed"},
    "malformed": {"refused", "failed", "stalled"},
    "misplaced": {"refused"},
    "missing": {"completed", "failed", "stalled"},
    "doubled": {"completed", "failed", "stalled"},
    "unordered": {"failed", "stalled"},
    "deadlock": {"stalled"},
}


def all_done_once(schedule, actions, forward_only):
    """Each microbatch passed each stage of one copy of the model once, there and back."""
    per_copy = schedule.num_stages // schedule.placement.num_copies
    done = Counter(action for rank in actions for action in rank)
    copies = {(a.microbatch, a.stage // per_copy) for a in done}
    kinds: dict[tuple[int, int], str] = {}
    moved: dict[tuple[int, int], int] = {}
    for action in sorted(done, key=lambda a: a.kind):
        at = (action.stage, action.microbatch)
        if action.kind in ("OFFLOAD", "RELOAD"):
            moved[at] = moved.get(at, 0) + 1
        elif action.kind != "R":
            kinds[at] = kinds.get(at, "") + action.kind
    passed = {(copy * per_copy + s, m) for m, copy in copies for s in range(per_copy)}
    return (
        set(kinds) == passed
        and set(kinds.values()) <= ({"F"} if forward_only else {"BF", "FIW"})
        and set(done.values()) == {1}
        and set(moved.values()) <= {2}
        and sorted(m for m, _ in copies) == list(range(schedule.num_microbatches))
    )


def run(schedule, limit_ms, *, forward_only, capacity):
    programs = lower_blindly(schedule)
    return rehearse(
        programs,
        schedule.placement,
        training=not forward_only,
        capacity=capacity,
        limit_ms=limit_ms,
    )


def compare(schedule, *, forward_only, capacity, limit_ms=SHORT_MS):
    """Asserts that verdict and outcome agree. Returns both."""
    verdict = schedule.verify(forward_only=forward_only, capacity=capacity)
    options = {"forward_only": forward_only, "capacity": capacity}
    rehearsal = run(schedule, limit_ms, **options)
    if rehearsal.ending == "stalled" and verdict.ok:
        rehearsal = run(schedule, LONG_MS, **options)
    told = f"{verdict.defect}: {verdict.message}\n{rehearsal.ending}: {rehearsal.message}"
    told += "\n" + "\n".join(" ".join(map(str, actions)) for actions in schedule.actions)
    told += f"\nplacement {schedule.placement.ranks}, capacity {capacity}"
    good = rehearsal.ending == "completed" and all_done_once(
        schedule, rehearsal.actions, forward_only
    )
    assert verdict.ok == good, told
    assert rehearsal.ending in ENDINGS[verdict.defect], told
    return verdict, rehearsal


@pytest.mark.parametrize("capacity", [None, 0, 1, 2])
@pytest.mark.parametrize("forward_only", [False, True])
def test_the_verdict_is_what_becomes_of_a_thousand_schedules(forward_only, capacity):
    defects, stalls = Counter(), Counter()
    seed = f"{forward_only} {capacity}"
    options = {"forward_only": forward_only, "capacity": capacity}
    drawn = schedule_mutations.batch(seed, 1000, forward_only=forward_only, splits=not forward_only)
    for _, schedule in drawn:
        verdict, rehearsal = compare(schedule, **options)
        defects[verdict.defect] += 1
        if rehearsal.ending == "stalled":
            stalls[verdict.defect] += 1
            if stalls[verdict.defect] % SAMPLE == 1:
                compare(schedule, **options, limit_ms=PATIENT_MS)
    wanted = {None, "malformed", "misplaced", "missing", "doubled"}
    if not forward_only:
        wanted |= {"unordered", "deadlock"}
    assert set(defects) >= wanted
    assert all(defects[defect] >= 10 for defect in wanted), defects


@pytest.mark.parametrize("capacity", [None, 1])
def test_the_verdict_is_what_becomes_of_schedules_that_move_activations(capacity):
    defects = Counter()
    drawn = schedule_mutations.batch(f"moves {capacity}", 1000, splits=True, moves=True)
    for _, schedule in drawn:
        verdict, _ = compare(schedule, forward_only=False, capacity=capacity)
        moves = any(a.kind in ("OFFLOAD", "RELOAD") for rank in schedule.actions for a in rank)
        defects[verdict.defect] += moves
    wanted = {None, "misplaced", "missing", "doubled", "unordered"}
    assert all(defects[defect] >= 10 for defect in wanted), defects


@pytest.mark.parametrize("capacity", [None, 0, 1, 3])
def test_the_ranks_of_a_cycle_stand_where_the_counterexample_says(capacity):
    num_cycles = 0
    for _, drawn in schedule_mutations.batch(
        f"cycle {capacity}", 2500, most_mutations=2, splits=True
    ):
        # Positions count the actions that run, which are those of pairs taken apart.
        schedule = Schedule(
            [list(apart(actions)) for actions in drawn.actions],
            placement=drawn.placement,
            num_microbatches=drawn.num_microbatches,
        )
        verdict = schedule.verify(capacity=capacity)
        if verdict.defect != "deadlock":
            continue
        num_cycles += 1
        places = [
            verdict.counterexample["places"][wait["source"]]
            for wait in verdict.counterexample["waits"]
        ]
        told = {place["rank"]: place["position"] for place in places}
        for limit_ms in (20, PATIENT_MS, LONG_MS):
            rehearsal = run(schedule, limit_ms, forward_only=False, capacity=capacity)
            stands = {rank: rehearsal.stalled_at[rank] for rank in told}
            if stands == told:
                break
        assert stands == told, verdict.message
    assert num_cycles > 30


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"receive_slots": 1},
        {"receive_slots": 4, "send_slots": 1},
    ],
)
def test_what_verify_accepts_completes_as_lower_makes_it(options):
    for _, schedule in schedule_mutations.batch(
        str(options), 300, most_mutations=1, splits=True, moves=True
    ):
        if not schedule.verify():
            continue
        programs = pipert.lower(schedule, **options)
        rehearsal = rehearse(programs, schedule.placement, limit_ms=LONG_MS)
        assert rehearsal.ending == "completed", rehearsal.message
        assert rehearsal.actions == [list(apart(actions)) for actions in schedule.actions]


# --- each ending --------------------------------------------------------------------------------


def ending_of(*ranks, num_microbatches=1):
    schedule = Schedule(
        [rank.split() for rank in ranks],
        placement=Placement.loop(2, 2),
        num_microbatches=num_microbatches,
    )
    rehearsal = run(schedule, 50, forward_only=False, capacity=None)
    return rehearsal.ending, rehearsal.message


@pytest.mark.parametrize(
    ("ranks", "ending", "message"),
    [
        (("0F0 0B0", "1F0 1B0"), "completed", ""),
        (("0B0 0F0", "1F0 1B0"), "stalled", "nothing moved for 50 ms"),
        (("0F0 0B0", "1B0 1F0"), "failed", "rank 1: 1B0 runs before its forward"),
        (("0F0 0F0 0B0", "1F0 1B0"), "failed", "rank 0: 0F0 ran already"),
        (("0F0 0B0 0B0", "1F0 1B0"), "stalled", "nothing moved for 50 ms"),
        (("0B0", "1F0 1B0"), "stalled", "nothing moved for 50 ms"),
        (("0F0 1F0 0B0", "1B0"), "refused", "rank 0 has no stage 1, but 1F0 to run"),
        (
            ("0F0 0B0 0F1", "1F0 1B0"),
            "failed",
            "rank 0: 0F1: microbatch must be in [0, 1), got 1",
        ),
        (("0F0 0I0 0W0", "1F0 1B0"), "completed", ""),
        (("0F0 0W0 0I0", "1F0 1B0"), "failed", "rank 0: 0W0 runs before its input half"),
        (("0F0 0I0 0W0 0W0", "1F0 1B0"), "failed", "rank 0: 0W0 ran already"),
        (("0F0 0I0 0W0", "1F0 1I0"), "completed", ""),
        (("0F0 0OFFLOAD0 0RELOAD0 0B0", "1F0 1OFFLOAD0 1RELOAD0 1I0 1W0"), "completed", ""),
        (("0F0 0B0", "1F0 1OFFLOAD0 1B0"), "failed", "rank 1: 1B0 needs what is on the host"),
        (("0OFFLOAD0 0F0 0B0", "1F0 1B0"), "failed", "rank 0: 0OFFLOAD0 runs before its forward"),
        (("0F0 0RELOAD0 0B0", "1F0 1B0"), "failed", "rank 0: 0RELOAD0 runs before its OFFLOAD"),
        (("0F0 0B0 0OFFLOAD0", "1F0 1B0"), "failed", "rank 0: 0OFFLOAD0 runs after its backward"),
        (("0F0 0OFFLOAD0 0OFFLOAD0", "1F0"), "failed", "rank 0: 0OFFLOAD0 ran already"),
        (("0F0 0R0 0B0", "1F0 1OFFLOAD0 1RELOAD0 1R0 1B0"), "completed", ""),
        (("0R0 0F0 0B0", "1F0 1B0"), "failed", "rank 0: 0R0 runs before its forward"),
        (("0F0 0R0 0R0", "1F0 1B0"), "failed", "rank 0: 0R0 ran already"),
        (("0F0", "1F0 1OFFLOAD0 1R0"), "failed", "rank 1: 1R0 needs what is on the host"),
    ],
)
def test_each_ending_says_why(ranks, ending, message):
    assert ending_of(*ranks) == (ending, message)


def test_an_input_that_the_rank_makes_later_is_told():
    schedule = Schedule([["1F0", "0F0", "1B0", "0B0"]])
    rehearsal = run(schedule, 50, forward_only=False, capacity=None)
    assert rehearsal.message == (
        "rank 0: 1F0 needs the activation of stage 0, microbatch 0 as its input, got nothing"
    )


def test_passes_follow_each_other_until_one_does_not_complete():
    schedule = Schedule.build("zb_h1", num_ranks=2, num_microbatches=3)
    rehearsal = rehearse(
        pipert.lower(schedule), schedule.placement, num_passes=5, limit_ms=LONG_MS, spin_us=50
    )
    assert rehearsal.ending == "completed"
    assert len(rehearsal.pass_ns) == 5
    assert all(ns > 0 for ns in rehearsal.pass_ns)
    assert [len(actions) for actions in rehearsal.actions] == [9, 9]  # of the last pass alone
    stuck = Schedule([["0B0", "0F0"]])
    rehearsal = rehearse(lower_blindly(stuck), stuck.placement, num_passes=5)
    assert rehearsal.ending == "failed"
    assert rehearsal.pass_ns == []


def test_a_rehearsal_wants_a_program_for_each_rank():
    schedule = Schedule.build("1f1b", num_ranks=2, num_microbatches=2)
    programs = pipert.lower(schedule)
    with pytest.raises(
        ValueError, match=r"one program for each of the 2 ranks .* got those of ranks \[0\]"
    ):
        rehearse(programs[:1], schedule.placement)
    with pytest.raises(ValueError, match="capacity must be at least 0, got -1"):
        rehearse(programs, schedule.placement, capacity=-1)
    with pytest.raises(ValueError, match="num_passes must be at least 1, got 0"):
        rehearse(programs, schedule.placement, num_passes=0)
    with pytest.raises(ValueError, match="spin_us must be at least 0, got -1"):
        rehearse(programs, schedule.placement, spin_us=-1)
    with pytest.raises(ValueError, match=r"in rank order, got those of ranks \[0, 0\]"):
        rehearse([programs[0], programs[0]], schedule.placement)


def test_blind_programs_hold_what_a_stage_could_run():
    nothing = Schedule([["0F0"]], num_microbatches=-1)
    with pytest.raises(ValueError, match="num_microbatches must be at least 1, got -1"):
        lower_blindly(nothing)
    with pytest.raises(ValueError, match=r"expected F, B, I, W, .*, got 0REDUCE_GRAD"):
        lower_blindly(Schedule([["0F0", "0B0", "0REDUCE_GRAD"]]))
