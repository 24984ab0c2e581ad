import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedule_strategies import action_texts

from pipert import Action


@given(action_texts())
def test_parse_then_print_is_the_identity(text):
    assert str(Action.parse(text)) == text


@given(action_texts())
def test_actions_are_equal_hashed_and_pickled_by_value(text):
    action = Action.parse(text)
    assert action == Action.parse(text)
    assert hash(action) == hash(Action.parse(text))
    assert pickle.loads(pickle.dumps(action)) == action


@given(st.text())
def test_any_text_is_an_action_or_a_value_error(text):
    try:
        action = Action.parse(text)
    except ValueError:
        return
    assert str(action) != ""


@given(st.text(alphabet="0123456789FBIWRsv_SENDRCVUPATLO();", max_size=12))
def test_text_near_the_grammar_is_taken_whole_or_rejected(text):
    try:
        action = Action.parse(text)
    except ValueError:
        return
    assert Action.parse(str(action)) == action


@pytest.mark.parametrize(
    ("text", "kind", "stage", "microbatch"),
    [
        ("2F0", "F", 2, 0),
        ("10B37", "B", 10, 37),
        ("1I3", "I", 1, 3),
        ("1W3", "W", 1, 3),
        ("1SEND_F2", "SEND_F", 1, 2),
        ("2RECV_F2", "RECV_F", 2, 2),
        ("2SEND_B1", "SEND_B", 2, 1),
        ("1RECV_B1", "RECV_B", 1, 1),
        ("3UNSHARD", "UNSHARD", 3, None),
        ("3RESHARD", "RESHARD", 3, None),
        ("3REDUCE_GRAD", "REDUCE_GRAD", 3, None),
    ],
)
def test_the_grammar(text, kind, stage, microbatch):
    action = Action.parse(text)
    assert (action.kind, action.stage, action.microbatch) == (kind, stage, microbatch)
    assert Action(kind, stage, microbatch) == action


@pytest.mark.parametrize(
    ("text", "fields", "slice_", "version"),
    [
        ("2R0", ("R", 2, 0), None, 0),
        ("2OFFLOAD0", ("OFFLOAD", 2, 0), None, 0),
        ("2RELOAD0", ("RELOAD", 2, 0), None, 0),
        ("2UPDATEv4", ("UPDATE", 2, None), None, 4),
        ("2F3s1", ("F", 2, 3), 1, 0),
        ("2F3v7", ("F", 2, 3), None, 7),
        ("2I3s0v7", ("I", 2, 3), 0, 7),
        ("1SEND_F2s1", ("SEND_F", 1, 2), 1, 0),
    ],
)
def test_the_superset_of_the_grammar(text, fields, slice_, version):
    action = Action.parse(text)
    assert (action.kind, action.stage, action.microbatch) == fields
    assert (action.slice, action.version) == (slice_, version)
    assert Action(*fields, slice=slice_, version=version) == action
    assert str(action) == text


def test_an_overlapped_pair_keeps_the_slices_and_versions_of_both():
    pair = Action.parse("(0F7s1v3;7B3s0v2)OVERLAP_F_B")
    assert (pair.slice, pair.version) == (1, 3)
    assert pair.paired == Action("B", 7, 3, slice=0, version=2)
    assert Action("OVERLAP_F_B", 0, 7, slice=1, version=3, paired=pair.paired) == pair


def test_an_overlapped_pair_holds_a_forward_and_a_backward():
    pair = Action.parse("(0F7;7B3)OVERLAP_F_B")
    assert (pair.kind, pair.stage, pair.microbatch) == ("OVERLAP_F_B", 0, 7)
    assert pair.paired == Action("B", 7, 3)
    assert Action("OVERLAP_F_B", 0, 7, paired=Action("B", 7, 3)) == pair
    assert Action("F", 0, 7).paired is None


@pytest.mark.parametrize("text", ["2F0", "1I3", "1W3", "0B5", "2R0", "(0F7;7B3)OVERLAP_F_B"])
def test_what_runs_on_the_compute_lane(text):
    assert Action.parse(text).is_compute


@pytest.mark.parametrize(
    "text", ["1SEND_F2", "2RECV_F2", "3UNSHARD", "3REDUCE_GRAD", "2OFFLOAD0", "2UPDATEv1"]
)
def test_what_does_not(text):
    assert not Action.parse(text).is_compute


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected the stage index, a number at its end"),
        ("0F1xyz", 'expected nothing more at "xyz"'),
        ("0F1 ", 'expected nothing more at " "'),
        (" 0F1", "expected the stage index"),
        ("F1", "expected the stage index"),
        ("2X0", "expected F, B, I, W"),
        ("2f0", "expected F, B, I, W"),
        ("2F", "expected the microbatch index, a number at its end"),
        ("-1F0", "expected the stage index"),
        ("2F-1", "expected the microbatch index"),
        ("2F+1", "expected the microbatch index"),
        ("3UNSHARD1", "UNSHARD takes no microbatch"),
        ("1000000000F0", "the stage index must be at most 999999999"),
        ("0F99999999999999999999", "the microbatch index must be at most 999999999"),
        ("0OVERLAP_F_B1", "expected F, B, I, W"),
        ("(0F7;7B3)", r'expected "\)OVERLAP_F_B"'),
        ("(0F7,7B3)OVERLAP_F_B", 'expected ";"'),
        ("(7B3;0F7)OVERLAP_F_B", "expected a forward first"),
        ("(0F7;7W3)OVERLAP_F_B", r"expected a backward \(B or I\) second"),
        ("((0F7;7B3)OVERLAP_F_B;7B3)OVERLAP_F_B", "expected the stage index"),
        ("0F1s", "expected the slice, a number at its end"),
        ("0F1s10000", "the slice must be at most 9999"),
        ("0F1v", "expected the weight version, a number at its end"),
        ("0F1v2s1", 'expected nothing more at "s1"'),
        ("3UNSHARDs1", 'UNSHARD takes no slice at "s1"'),
        ("3UPDATEs1v1", "UPDATE takes no slice"),
        ("1SEND_F2v1", 'SEND_F takes no weight version at "v1"'),
        ("1OFFLOAD2v1", "OFFLOAD takes no weight version"),
        ("3UPDATE", "expected v and the version that is made at its end"),
        ("3UPDATEv0", "an update makes version 1 or a later one"),
        ("3UPDATE1v1", "UPDATE takes no microbatch"),
        ("０F1", "expected the stage index"),  # noqa: RUF001  a digit, but not one of ours
    ],
)
def test_a_bad_text_is_rejected_with_the_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        Action.parse(text)


def test_the_error_shows_the_text_escaped_and_cut():
    with pytest.raises(ValueError, match=r'bad action "0F1\\x00\\xc3\\xa9": '):
        Action.parse("0F1\0é")
    with pytest.raises(ValueError, match=r'x{60}"\.\.\.'):
        Action.parse("x" * 5000)


def test_a_bad_kind_names_the_near_ones():
    with pytest.raises(ValueError, match="unknown action kind 'SENDF': did you mean 'SEND_F'"):
        Action("SENDF", 0, 0)


def test_indices_that_do_not_fit_the_kind_are_rejected():
    with pytest.raises(ValueError, match="expected the microbatch index"):
        Action("F", 0)
    with pytest.raises(ValueError, match="UNSHARD takes no microbatch"):
        Action("UNSHARD", 0, 1)
    with pytest.raises(ValueError, match="paired must be given for OVERLAP_F_B"):
        Action("F", 0, 1, paired=Action("B", 0, 0))
    with pytest.raises(ValueError, match="expected the stage index"):
        Action("F", -1, 0)
    with pytest.raises(ValueError, match=r"slice must be in \[0, 9999\], got -1"):
        Action("F", 0, 0, slice=-1)
    with pytest.raises(ValueError, match="microbatch must be at least 0, got -1"):
        Action("UNSHARD", 0, -1)
    with pytest.raises(ValueError, match="SEND_F takes no weight version"):
        Action("SEND_F", 0, 0, version=1)
