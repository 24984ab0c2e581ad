"""The notation of the zero-bubble authors: their nodes, and what their programs print."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipert import Placement, Schedule, schedules

SIZES = {"num_ranks": 4, "num_microbatches": 8}
WORDS = {"F": "F", "I": "B", "W": "W", "B": "BW", "R": "R"}


def node_of(schedule, rank, action):
    chunk = schedule.placement.stages_of(rank).index(action.stage)
    return (WORDS[action.kind], chunk, action.microbatch)


def nodes_of(schedule):
    """The schedule in their words."""
    return [
        [node_of(schedule, rank, action) for action in actions]
        for rank, actions in enumerate(schedule.actions)
    ]


def printed(nodes):
    """As they print it: the first chunk in small letters, BW as B."""

    def word(kind, chunk, microbatch):
        kind = "B" if kind == "BW" else kind
        return f"{kind.lower() if chunk == 0 else kind}{microbatch}"

    return "\n".join(" ".join(word(*node) for node in rank) for rank in nodes) + "\n"


WITHOUT_PAIRS = [
    name
    for name in schedules()
    if all(a.kind in WORDS for rank in Schedule.build(name, **SIZES).actions for a in rank)
]


def test_there_are_schedules_of_one_chunk_of_two_and_of_halves():
    assert {"gpipe", "1f1b", "zb_h1", "zb_h2", "zb_v", "v_half", "v_min"} <= set(WITHOUT_PAIRS)


@pytest.mark.parametrize("name", WITHOUT_PAIRS)
def test_nodes_and_what_is_printed_of_them_are_the_schedule(name):
    schedule = Schedule.build(name, **SIZES)
    nodes = nodes_of(schedule)
    placement = schedule.placement
    assert Schedule.from_zero_bubble(nodes, placement=placement) == schedule
    assert Schedule.parse_zero_bubble(printed(nodes), placement=placement) == schedule


@pytest.mark.parametrize("name", ["1f1b", "zb_h1", "zb_v", "v_half"])
def test_two_chunks_are_a_v_if_nothing_is_said(name):
    schedule = Schedule.build(name, **SIZES)
    assert Schedule.from_zero_bubble(nodes_of(schedule)) == schedule
    assert Schedule.parse_zero_bubble(printed(nodes_of(schedule))) == schedule


def texts(schedule):
    return [" ".join(map(str, actions)) for actions in schedule.actions]


def test_a_v_on_two_ranks():
    schedule = Schedule.parse_zero_bubble(
        "f0 f1 F0 B0 W0 b0 w0 F1 B1 b1 W1 w1\nf0 F0 B0 b0 f1 F1 B1 b1 w0 W0 w1 W1\n", name="mine"
    )
    assert schedule.name == "mine"
    assert schedule.placement == Placement.v_shaped(2, 4)
    assert texts(schedule) == [
        "0F0 0F1 3F0 3I0 3W0 0I0 0W0 3F1 3I1 0I1 3W1 0W1",
        "1F0 2F0 2I0 1I0 1F1 2F1 2I1 1I1 1W0 2W0 1W1 2W1",
    ]
    assert schedule.verify(), schedule.verify().message


def test_capital_letters_alone_are_one_chunk():
    schedule = Schedule.parse_zero_bubble("F0 F1 BW0 BW1\nF0 BW0 F1 BW1")
    assert schedule == Schedule.build("1f1b", num_ranks=2, num_microbatches=2)
    assert Schedule.parse_zero_bubble("F0\tB0  W0\r\n") == Schedule([["0F0", "0I0", "0W0"]])


def test_a_printed_b_without_its_w_is_a_whole_backward():
    assert texts(Schedule.parse_zero_bubble("f0 f1 b0 w0 b1\n")) == ["0F0 0F1 0I0 0W0 0B1"]


def test_a_node_b_is_the_input_half_whatever_there_is():
    schedule = Schedule.from_zero_bubble([[("F", 0, 0), ("B", 0, 0)]])
    assert schedule.verify().message == "0W0 is missing on rank 0, for its half 0I0"


def test_transfers_are_kept_and_what_is_of_their_optimizer_is_left_out():
    schedule = Schedule.parse_zero_bubble("rpv0 pv0 f0 sf0 rb0 b0 w0\nspv0 rf0 pv0 f0 b0 sb0 w0\n")
    assert texts(schedule) == ["0F0 0SEND_F0 0RECV_B0 0I0 0W0", "1RECV_F0 1F0 1I0 1SEND_B0 1W0"]
    assert schedule.verify(), schedule.verify().message
    nodes = [
        [("F", 0, 0), ("SEND_FORWARD", 0, 0), ("RECV_BACKWARD", 0, 0), ("BW", 0, 0)],
        [("RECV_FORWARD", 0, 0), ("F", 0, 0), ("BW", 0, 0), ("SEND_BACKWARD", 0, 0)],
    ]
    assert Schedule.from_zero_bubble(nodes).verify()


def test_recomputation_and_slices_are_taken():
    nodes = [[("F", 0, 0, 0), ("F", 0, 0, 1), ("R", 0, 0, 1), ("BW", 0, 0, 1), ("BW", 0, 0, 0)]]
    schedule = Schedule.from_zero_bubble(nodes)
    assert texts(schedule) == ["0F0s0 0F0s1 0R0s1 0B0s1 0B0s0"]
    assert schedule.num_slices == 2
    assert schedule.verify(), schedule.verify().message


LOOP = Placement.loop(2, 4)


@pytest.mark.parametrize(
    ("text", "placement", "message"),
    [
        ("f0\nf0 x0", None, "row 2, column 2: unknown type of node 'X': did you mean"),
        ("f0 f", None, 'row 1, column 2: expected a type and a microbatch such as f0, got "f"'),
        ("f0 0", None, 'row 1, column 2: expected a type and a microbatch such as f0, got "0"'),
        ("f0 f-1", None, "row 1, column 2: expected a type and a microbatch"),
        ("f0,f1", None, "row 1, column 1: expected a type and a microbatch"),
        ("f1000000000", None, "row 1, column 1: expected a type and a microbatch"),
        ("f0 Bw0", None, "row 1, column 2: expected small or capital letters, got both"),
        ("f0 ib0", None, "row 1, column 2: IB belongs to a parallel vocabulary"),
        ("f0 \xff", None, r'row 1, column 2: expected a type .*got "\\xc3\\xbf"'),
        ("", None, "a zero-bubble schedule must have a row for each rank, got none"),
        ("f0\n \nf0", None, "row 2: every rank must have a node, rank 1 has none"),
        ("f0", LOOP, "placement must be for 1 ranks, got one for 2"),
        ("f0\nF0", Placement.loop(2, 2), r"row 2, column 1: chunk must be in \[0, 0\], got 1"),
    ],
)
def test_a_mistake_is_told_with_row_and_column(text, placement, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Schedule.parse_zero_bubble(text, placement=placement)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (("F", -1, 0), r"row 1, column 2: chunk must be in \[0, 9999\], got -1"),
        (("F", 0, -1), r"row 1, column 2: microbatch must be in \[0, 999999999\], got -1"),
        (("F", 0, 0, -1), r"row 1, column 2: seq_split_idx must be in \[0, 9999\], got -1"),
        (("f", 0, 0), "row 1, column 2: unknown type of node 'f': did you mean 'F'"),
        (("S", 0, 0), "row 1, column 2: S belongs to a parallel vocabulary"),
        (("F", 2, 0), "placement must be given for more than 2 chunks, got 3"),
    ],
)
def test_a_node_that_is_none_is_told_with_row_and_column(node, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Schedule.from_zero_bubble([[("F", 0, 0), node]])


def test_a_node_of_another_form_is_a_type_error():
    with pytest.raises(TypeError):
        Schedule.from_zero_bubble([[("F", 0)]])


@given(st.text(alphabet="fFbBwWrRsSpPvV0123 \n\t,", max_size=40))
@settings(deadline=None)
def test_any_text_is_a_schedule_or_a_value_error(text):
    reason = ""
    try:
        schedule = Schedule.parse_zero_bubble(text)
    except ValueError as error:
        reason = str(error)
    if reason:
        assert re.match(r"row \d+(, column \d+)?: .+|a zero-bubble schedule must .+", reason)
    else:
        assert len(schedule.actions) == len(text.removesuffix("\n").split("\n"))
        assert Schedule.parse_json(schedule.to_json()) == schedule
