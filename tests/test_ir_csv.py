import csv
import io

import pytest
import torch_schedules
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_strategies import good_schedules
from torch.distributed.pipelining.schedules import _Action, _ComputationType

from pipert import Schedule, schedules


def test_a_row_for_each_rank_and_a_cell_for_each_action(tmp_path):
    schedule = Schedule.build("1f1b", num_ranks=2, num_microbatches=2)
    assert schedule.to_csv() == "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n"
    path = tmp_path / "two.csv"
    schedule.to_csv(path)
    assert path.read_text() == schedule.to_csv()
    assert Schedule.from_csv(path) == schedule
    assert Schedule.from_csv(str(path)).name == "two"
    assert Schedule.from_csv(path, name="mine").name == "mine"


@given(good_schedules())
@settings(deadline=None, max_examples=50)
def test_csv_round_trip(schedule):
    again = Schedule.parse_csv(schedule.to_csv())
    assert again.actions == schedule.actions
    assert again.num_microbatches == schedule.num_microbatches
    assert again == schedule


def test_empty_cells_blanks_and_line_ends_carry_no_meaning():
    loose = Schedule.parse_csv(",0F0,, 0B0 ,\r\n\t1F0,1B0,,,")
    assert loose == Schedule.parse_csv("0F0,0B0\n1F0,1B0\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0F1xyz\n", 'row 1, column 2: bad action "0F1xyz": expected nothing more at "xyz"'),
        ("0F0\n1F0,,1Q1\n", 'row 2, column 3: bad action "1Q1": expected F, B, I, W'),
        ("0F0,4294967296F0\n", "row 1, column 2: .*the stage index must be at most 999999999"),
        (
            "0F0\n0B0\n",
            r'stage 0 must be on one rank, got rank 0 \(row 1, column 1, "0F0"\) '
            r'and rank 1 \(row 2, column 1, "0B0"\)',
        ),
        ("0F0,2F0\n", 'stage 1 has no compute action but stage 2 has .row 1, column 2, "2F0".'),
        ("0F0\n\n1F0\n", "row 2: every rank must have a compute action, rank 1 has none"),
        ("0F0\n1RECV_F0\n", "row 2: every rank must have a compute action, rank 1 has none"),
        ("0UNSHARD\n", "a CSV schedule must have compute actions, got none"),
        ("", "a CSV schedule must have a row for each rank, got an empty text"),
        ('"0F0"\n', r'row 1, column 1: bad action "\\"0F0\\""'),
        ("0F0;0B0\n", "row 1, column 1: .*expected nothing more"),
    ],
)
def test_a_bad_cell_is_rejected_with_its_row_and_column(text, message):
    with pytest.raises(ValueError, match=message):
        Schedule.parse_csv(text)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Schedule.from_csv(tmp_path / "none.csv")


def test_a_binary_file_is_a_value_error(tmp_path):
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe0\x00F\x00")
    with pytest.raises(ValueError, match=r'row 1, column 1: bad action "\\xff\\xfe0\\x00F'):
        Schedule.from_csv(path)


@given(st.text(alphabet="01239FBIW,\n;()_SENDRCV ", max_size=60))
@settings(deadline=None)
def test_any_text_is_a_schedule_or_a_value_error(text):
    try:
        schedule = Schedule.parse_csv(text)
    except ValueError:
        return
    assert Schedule.parse_csv(schedule.to_csv()) == schedule


def test_a_huge_index_takes_no_huge_memory():
    schedule = Schedule.parse_csv("0F0,0B0,0F999999999\n")
    assert schedule.num_microbatches == 1_000_000_000
    assert schedule.verify().message == "0F1 is missing on rank 0"


def texts(schedule):
    return [[str(action) for action in actions] for actions in schedule.actions]


TORCH = [
    ("ScheduleInterleaved1F1B", 4, 2, 8),
    ("ScheduleLoopedBFS", 2, 3, 4),
    ("ScheduleInterleavedZeroBubble", 4, 2, 8),
    ("ScheduleZBVZeroBubble", 4, 2, 8),
    ("ScheduleDualPipeV", 4, 2, 10),
]


@pytest.mark.parametrize("form", ["compute_only", "compute_comms"])
@pytest.mark.parametrize(("name", "num_ranks", "num_chunks", "num_microbatches"), TORCH)
def test_pytorch_schedules_are_read_verified_and_simulated(
    name, num_ranks, num_chunks, num_microbatches, form, tmp_path
):
    theirs = torch_schedules.build(name, num_ranks, num_chunks, num_microbatches)
    path = tmp_path / "theirs.csv"
    theirs._dump_csv(str(path), format=form)
    order = theirs.pipeline_order if form == "compute_only" else theirs.pipeline_order_with_comms

    ours = Schedule.from_csv(path)
    assert texts(ours) == torch_schedules.texts(order)
    assert (ours.num_stages, ours.num_microbatches) == (num_ranks * num_chunks, num_microbatches)
    assert ours.verify(), ours.verify().message
    assert min(ours.simulate().busy) > 0


@pytest.mark.parametrize(("name", "num_ranks", "num_chunks", "num_microbatches"), TORCH)
def test_pytorch_lowered_schedules_even_run_with_blocking_sends(
    name, num_ranks, num_chunks, num_microbatches
):
    theirs = torch_schedules.build(name, num_ranks, num_chunks, num_microbatches)
    ours = Schedule(torch_schedules.texts(theirs.pipeline_order_with_comms))
    assert ours.verify(rendezvous=True), ours.verify(rendezvous=True).message


def test_all_schedules_and_all_kinds_of_pytorch_are_among_those():
    multi = {
        name
        for name in dir(torch_schedules.torch_schedules)
        if name.startswith("Schedule") and name not in {"ScheduleGPipe", "Schedule1F1B"}
    }
    assert {name for name, *_ in TORCH} == multi
    kinds = set()
    for name, *sizes in TORCH:
        order = torch_schedules.build(name, *sizes).pipeline_order_with_comms
        kinds |= {str(a.computation_type) for actions in order.values() for a in actions}
    missing = {str(kind) for kind in _ComputationType} - kinds
    assert missing == set()


def test_pytorch_schedules_of_one_stage_a_rank_are_read_and_judged():
    gpipe = torch_schedules.build_single("ScheduleGPipe", 4, 6)._get_pipeline_order()
    ours = Schedule(torch_schedules.texts(gpipe))
    assert ours.verify(), ours.verify().message
    assert ours.num_microbatches == 6

    # Its 1F1B is short of the first forward on the last rank (PyTorch 2.13), and we say so.
    one_f_one_b = torch_schedules.build_single("Schedule1F1B", 4, 6)._get_pipeline_order()
    theirs = torch_schedules.texts(one_f_one_b)
    built = texts(Schedule.build("1f1b", num_ranks=4, num_microbatches=6))
    assert [rank[:-1] for rank in theirs[:3]] == built[:3]
    if [*built[3], "3REDUCE_GRAD"] != theirs[3]:
        assert not Schedule(theirs, num_microbatches=6).verify()


@pytest.mark.parametrize(("name", "num_ranks", "num_chunks", "num_microbatches"), TORCH)
@pytest.mark.parametrize("form", ["compute_only", "compute_comms"])
def test_pytorch_reads_back_what_we_read_of_it(
    name, num_ranks, num_chunks, num_microbatches, form, tmp_path
):
    theirs = torch_schedules.build(name, num_ranks, num_chunks, num_microbatches)
    path = tmp_path / "there.csv"
    theirs._dump_csv(str(path), format=form)
    ours = Schedule.from_csv(path)
    ours.to_csv(path)

    again = torch_schedules.build(name, num_ranks, num_chunks, num_microbatches)
    again.pipeline_order = again.pipeline_order_with_comms = None
    if form == "compute_only":
        again.pipeline_order = {}
    again._load_csv(str(path), format=form)
    read = again.pipeline_order if form == "compute_only" else again.pipeline_order_with_comms
    assert torch_schedules.texts(read) == texts(ours)
    assert torch_schedules.texts(again.pipeline_order_with_comms) == torch_schedules.texts(
        theirs.pipeline_order_with_comms
    )


def test_pytorch_reads_every_schedule_of_ours_that_it_has_words_for(tmp_path):
    path = tmp_path / "ours.csv"
    for name in schedules():
        ours = Schedule.build(name, num_ranks=4, num_microbatches=8)
        if ours.is_asynchronous or ours.placement.num_copies > 1:
            continue
        ours.to_csv(path)
        chunks = ours.num_stages // ours.num_ranks
        theirs = torch_schedules.build("ScheduleLoopedBFS", 4, chunks, 8)
        theirs.pipeline_order = {}
        theirs._load_csv(str(path), format="compute_only")
        assert torch_schedules.texts(theirs.pipeline_order) == texts(ours)
        lowered = Schedule(torch_schedules.texts(theirs.pipeline_order_with_comms))
        assert lowered.verify(), f"{name}: {lowered.verify().message}"


def test_a_million_cells():
    row = ",".join(f"0{kind}{m}" for kind in "FB" for m in range(500_000))
    schedule = Schedule.parse_csv(row + "\n")
    assert [len(rank) for rank in schedule.actions] == [1_000_000]
    assert schedule.to_csv() == row + "\n"
    assert schedule.verify(), schedule.verify().message


def test_a_mistake_in_the_last_of_a_million_cells_is_found():
    row = ",".join(f"0F{m}" for m in range(999_999))
    with pytest.raises(ValueError, match='row 1, column 1000000: bad action "0F"'):
        Schedule.parse_csv(row + ",0F\n")


def test_rows_may_differ_in_length_and_what_is_missing_is_told():
    schedule = Schedule.parse_csv("0F0,0F1,0B0,0B1\n1F0,1B0\n")
    assert [len(rank) for rank in schedule.actions] == [4, 2]
    assert schedule.verify().message == "1F1 is missing on rank 1"


def test_a_microbatch_out_of_range_is_told():
    schedule = Schedule.parse_csv("0F0,0F7,0B0,0B7\n")
    assert (schedule.num_microbatches, schedule.verify().message) == (8, "0F1 is missing on rank 0")
    beyond = Schedule([["0F0", "0F7", "0B0", "0B7"]], num_microbatches=1)
    message = "0F7 on rank 0 (position 1): microbatch must be in [0, 1), got 7"
    assert beyond.verify().message == message


@pytest.mark.parametrize("group_size", [4, 8])
def test_pytorch_reads_ours(group_size, tmp_path):
    ours = Schedule.build(
        "interleaved_1f1b", num_ranks=4, num_stages=8, num_microbatches=8, group_size=group_size
    )
    path = tmp_path / "ours.csv"
    ours.to_csv(path)
    theirs = torch_schedules.build("ScheduleLoopedBFS", 4, 2, 8)
    theirs._load_csv(str(path), format="compute_only")
    assert torch_schedules.texts(theirs.pipeline_order) == texts(ours)


@given(good_schedules())
@settings(deadline=None, max_examples=30)
def test_pytorch_parses_every_cell_to_the_same_text(schedule):
    for row in csv.reader(io.StringIO(schedule.to_csv())):
        for cell in row:
            assert repr(_Action.from_str(cell)) == cell
