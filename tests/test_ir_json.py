"""JSON loses nothing of a schedule, and what is no schedule is told with row and column."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_strategies import action_texts, good_schedules

from pipert import Placement, Schedule, schedules

TWO = Schedule.build("1f1b", num_ranks=2, num_microbatches=2)
TEXT = """{
"format": "pipert.schedule",
"version": 1,
"name": "1f1b",
"num_microbatches": 2,
"num_slices": 1,
"placement": {"ranks": [0, 1], "num_copies": 1},
"actions": [
["0F0", "0F1", "0B0", "0B1"],
["1F0", "1B0", "1F1", "1B1"]
]
}
"""


def same(one, other):
    return one == other and one.name == other.name


def test_a_line_for_each_rank():
    assert TWO.to_json() == TEXT
    assert same(Schedule.parse_json(TEXT), TWO)


def test_files(tmp_path):
    path = tmp_path / "two.json"
    assert TWO.to_json(path) == path.read_text() == TEXT
    assert same(Schedule.from_json(path), TWO)
    assert same(Schedule.from_json(str(path)), TWO)
    with pytest.raises(FileNotFoundError):
        Schedule.from_json(tmp_path / "none.json")
    path.write_bytes(TEXT.replace("1f1b", "\xff").encode("latin-1"))
    with pytest.raises(ValueError, match=r'row 4, column 9, name: expected UTF-8 at "\\"\\xff'):
        Schedule.from_json(path)


@pytest.mark.parametrize("name", schedules())
def test_every_generator_survives(name):
    schedule = Schedule.build(name, num_ranks=4, num_microbatches=8)
    assert same(Schedule.parse_json(schedule.to_json()), schedule)


@given(good_schedules())
@settings(deadline=None, max_examples=50)
def test_a_good_schedule_survives(schedule):
    assert same(Schedule.parse_json(schedule.to_json()), schedule)


SIZES = st.integers(-(2**31), 2**31 - 1)
NAMES = st.text(st.characters(exclude_categories=["Cs"]))


@st.composite
def any_schedules(draw):
    """Schedules good and bad: all that the types can hold."""
    num_copies = draw(st.integers(1, 3))
    num_stages = num_copies * draw(st.integers(1, 4))
    num_ranks = draw(st.integers(1, num_stages))
    random = draw(st.randoms(use_true_random=False))
    rank_of = [*range(num_ranks), *random.choices(range(num_ranks), k=num_stages - num_ranks)]
    random.shuffle(rank_of)
    return Schedule(
        draw(st.lists(st.lists(action_texts(), max_size=4), max_size=4)),
        placement=Placement(num_ranks, rank_of, num_copies),
        num_microbatches=draw(SIZES),
        num_slices=draw(SIZES),
        name=draw(NAMES),
    )


@given(any_schedules())
@settings(deadline=None)
def test_what_csv_cannot_carry_survives(schedule):
    again = Schedule.parse_json(schedule.to_json())
    assert same(again, schedule)
    assert again.placement.num_copies == schedule.placement.num_copies


@given(NAMES)
def test_names_are_quoted_as_other_programs_do(name):
    schedule = Schedule([["0F0", "0B0"]], name=name)
    assert json.loads(schedule.to_json())["name"] == name
    for is_ascii in (True, False):
        text = json.dumps(json.loads(schedule.to_json()), ensure_ascii=is_ascii)
        assert same(Schedule.parse_json(text), schedule)


def test_order_of_keys_and_blanks_carry_no_meaning():
    members = json.loads(TEXT)
    backwards = dict(reversed(members.items()))
    for indent in (None, 3):
        assert same(Schedule.parse_json(json.dumps(backwards, indent=indent)), TWO)
    assert same(Schedule.parse_json(TEXT.replace("\n", "\r\n\t ")), TWO)


def changed(old, new):
    assert old in TEXT
    return TEXT.replace(old, new, 1)


MISTAKES = [
    ("", "row 1, column 1: expected an object at its end"),
    ("\ufeff{}", r'row 1, column 1: expected an object at "\xef\xbb\xbf{}"'),
    ("[]", 'row 1, column 1: expected an object at "[]"'),
    ("{}", "row 1, column 1: expected the key 'format'"),
    (TEXT + "1", 'row 13, column 1: expected nothing more at "1"'),
    (TEXT[:-3], "row 11, column 2: expected , or } at its end"),
    (changed("pipert.schedule", "x"), 'row 2, column 11, format: expected "pipert.schedule"'),
    (
        changed('"version": 1', '"version": 2'),
        "row 3, column 12, version: expected 1, the version that is known here, got 2",
    ),
    (changed('"num_slices": 1,\n', ""), "row 1, column 1: expected the key 'num_slices'"),
    (
        changed('"num_slices"', '"num_slice"'),
        "row 6, column 1, num_slice: unknown key 'num_slice': did you mean 'num_slices'? known: "
        "format, version, name, num_microbatches, num_slices, placement, actions",
    ),
    (changed('"num_slices"', '"name"'), "row 6, column 1, name: the key is there twice"),
    (changed(": 2,", ": 2.5,"), "row 5, column 21, num_microbatches: expected an integer"),
    (changed(": 2,", ": 02,"), "row 5, column 21, num_microbatches: expected an integer"),
    (changed(": 2,", ": 1e9,"), "row 5, column 21, num_microbatches: expected an integer"),
    (
        changed(": 2,", ": 99999999999999999999,"),
        "row 5, column 21, num_microbatches: an integer must be in [-2147483648, 2147483647]",
    ),
    (changed(": 2,", ": null,"), 'column 21, num_microbatches: expected an integer at "null,'),
    (changed(": 2,", ": -,"), 'column 22, num_microbatches: expected an integer at ",'),
    (changed('"1f1b"', "7"), 'row 4, column 9, name: expected a string at "7,'),
    (changed('"1f1b"', "'1f1b'"), "row 4, column 9, name: expected a string at \"'1f1b'"),
    (changed('"1f1b"', '"1f1b'), "row 4, column 15, name: expected no control character at"),
    (changed("1f1b", r"\x"), r'row 4, column 11, name: expected an escape at "x\",'),
    (changed("1f1b", r"\u12g"), "name: expected four hexadecimal digits at"),
    (changed("1f1b", r"\ud83d"), "name: expected both halves of a surrogate pair at"),
    (changed("1f1b", r"\ude00"), "name: expected both halves of a surrogate pair at"),
    (changed("1f1b", r"\ud83d\ud83d"), "name: expected both halves of a surrogate pair at"),
    (
        changed("0, 1]", "0, 5]"),
        "row 7, column 14, placement: the rank of stage 1 must be in [0, 2), got 5",
    ),
    (changed("0, 1]", "0, -1]"), "placement: the rank of stage 1 must be in [0, 1), got -1"),
    (changed("0, 1]", "1, 1]"), "placement: every rank must own a stage, rank 0 owns none"),
    (changed("0, 1]", "0, 1,]"), "placement.ranks[2]: expected one more after the comma at"),
    (
        changed('"num_copies": 1', '"num_copies": 3'),
        "placement: num_copies must divide the number of stages, 2, got 3",
    ),
    (changed(', "num_copies": 1', ""), "placement: expected the key 'num_copies'"),
    (
        changed('"1F1"', '"1F1x"'),
        'row 10, column 16, actions[1][2]: bad action "1F1x": expected nothing more at "x"',
    ),
    (changed('"1F1"', "1"), 'row 10, column 16, actions[1][2]: expected a string at "1, '),
    (changed('"0F1", ', '"0F1" '), "row 9, column 15, actions[0][2]: expected , or ] at"),
    (changed('["1F0"', '"1F0"'), "row 10, column 1, actions[1]: expected an array at"),
    (
        changed('"1f1b"', '"é", "1F1": 2'),
        "row 4, column 14, 1F1: unknown key '1F1'; known: format,",
    ),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_is_told_with_row_column_and_path(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Schedule.parse_json(text)


def test_a_deeply_nested_text_is_refused_at_once():
    for text in ("[" * 1_000_000, TEXT.replace('["0F0"', "[" * 1_000_000)):
        with pytest.raises(ValueError, match=r"expected (an object|a string) at"):
            Schedule.parse_json(text)


@st.composite
def mutated_texts(draw):
    """A good text with some of its characters changed, and what else JSON is made of put in."""
    text = draw(
        st.sampled_from([TEXT, Schedule([["0F0s0"], ["(1F0s1v2;1I0s0)OVERLAP_F_B"]]).to_json()])
    )
    piece = st.one_of(
        st.text(max_size=3), st.sampled_from(["[", "]", "{", "}", ",", '"', "\\u", "0", "-1", "F"])
    )
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(piece) + text[at + draw(st.integers(0, 5)) :]
    return text


@given(mutated_texts())
@settings(deadline=None, max_examples=500)
def test_a_mutated_text_is_a_schedule_or_a_value_error_with_its_place(text):
    reason = ""
    try:
        schedule = Schedule.parse_json(text)
    except ValueError as error:
        reason = str(error)
    if reason:
        assert re.match(r"row \d+, column \d+(, .+)?: .+", reason)
    else:
        assert same(Schedule.parse_json(schedule.to_json()), schedule)


def test_a_million_actions():
    rank = [f"0{kind}{m}" for kind in "FB" for m in range(500_000)]
    schedule = Schedule([rank])
    assert Schedule.parse_json(schedule.to_json()) == schedule
