"""What a verdict says beyond words: places, waits and pictures."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipert import Placement, Schedule


def verdict_of(*ranks, num_microbatches=2, **options):
    schedule = Schedule(
        [rank.split() for rank in ranks],
        placement=Placement.loop(2, 2),
        num_microbatches=num_microbatches,
    )
    return schedule.verify(**options)


def places_of(verdict):
    return [
        (place["role"], place["rank"], place["position"], str(place["action"]))
        for place in verdict.counterexample["places"]
    ]


def waits_of(verdict):
    return [
        (wait["source"], wait["target"], wait["reason"]) for wait in verdict.counterexample["waits"]
    ]


DEADLOCK = ("0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1")
FOUR = ("0F0 0F1 0F2 0F3 0B0 0B1 0B2 0B3", "1F0 1B0 1F1 1B1 1F2 1B2 1F3 1B3")


def test_a_good_schedule_has_none():
    verdict = verdict_of("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1")
    assert verdict.counterexample is None
    assert verdict.render() == "ok\n"


@pytest.mark.parametrize(
    ("ranks", "options", "places", "waits"),
    [
        (
            ("0F0 0F1 0B0 0B1 0F2", "1F0 1B0 1F1 1B1"),
            {},
            [("culprit", 0, 4, "0F2")],
            [],
        ),
        (
            ("0F0 0F1 0B0 1B1", "1F0 1B0 1F1 0B1"),
            {},
            [("culprit", 0, 3, "1B1"), ("absent", 1, 3, "1B1")],
            [],
        ),
        (("0F0 0F1 0B0", "1F0 1B0 1F1 1B1"), {}, [("absent", 0, 3, "0B1")], []),
        (
            ("0F0 0F1 0B0 0I1", "1F0 1B0 1F1 1B1"),
            {},
            [("absent", 0, 4, "0W1"), ("related", 0, 3, "0I1")],
            [],
        ),
        (
            ("0F0 0F1 0F0 0B0 0B1", "1F0 1B0 1F1 1B1"),
            {},
            [("culprit", 0, 2, "0F0"), ("related", 0, 0, "0F0")],
            [],
        ),
        (
            ("0F0 0F1 0B0 0B1", "1F0 1B0 1B1 1F1"),
            {},
            [("culprit", 1, 2, "1B1"), ("related", 1, 3, "1F1")],
            [(0, 1, "input")],
        ),
        (
            ("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"),
            {"memory_limit": 1},
            [("culprit", 0, 1, "0F1"), ("related", 0, 2, "0B0")],
            [],
        ),
        (
            DEADLOCK,
            {},
            [
                ("culprit", 0, 1, "0B0"),
                ("culprit", 1, 1, "1F1"),
                ("related", 1, 2, "1B0"),
                ("related", 0, 2, "0F1"),
            ],
            [(0, 2, "message"), (1, 3, "message")],
        ),
        (
            ("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"),
            {"rendezvous": True},
            [
                ("culprit", 0, 1, "0F1"),
                ("culprit", 1, 1, "1B0"),
                ("related", 1, 2, "1F1"),
                ("related", 0, 2, "0B0"),
            ],
            [(0, 2, "receiver"), (1, 3, "receiver")],
        ),
    ],
)
def test_each_defect_says_where_it_is(ranks, options, places, waits):
    verdict = verdict_of(*ranks, **options)
    assert places_of(verdict) == places
    assert waits_of(verdict) == waits


def test_a_full_edge_is_waited_for_until_there_is_room():
    verdict = verdict_of(*FOUR, num_microbatches=4, capacity=1)
    assert [reason for _, _, reason in waits_of(verdict)] == ["room", "room"]


def test_positions_are_those_of_the_schedule_with_its_pairs_together():
    verdict = verdict_of("0F0 (0F1;0B0)OVERLAP_F_B 0B1", "1F0 1B0 (1F1;1I1)OVERLAP_F_B")
    assert places_of(verdict) == [("absent", 1, 3, "1W1"), ("related", 1, 2, "1I1")]
    verdict = verdict_of("0F0 (0F1;0B0)OVERLAP_F_B 0B0 0B1", "1F0 1B0 1F1 1B1")
    assert places_of(verdict) == [("culprit", 0, 2, "0B0"), ("related", 0, 1, "0B0")]


def test_a_schedule_without_the_ranks_of_its_placement_has_no_place():
    verdict = verdict_of("0F0 0F1 0B0 0B1")
    assert verdict.counterexample == {"places": [], "waits": []}
    assert verdict.render() == verdict.message + "\n"


# --- drawn --------------------------------------------------------------------------------------


def test_the_text_shows_the_ranks_concerned_around_what_is_wrong():
    assert verdict_of(*DEADLOCK).render() == (
        "deadlock: rank 0 at 0B0 waits for 1B0 on rank 1, which at 1F1 waits for 0F1 on rank 0\n"
        "rank 0 | 0F0 [0B0] <0F1> 0B1\n"
        "             waits for 1B0\n"
        "rank 1 | 1F0 [1F1] <1B0> 1B1\n"
        "             waits for 0F1\n"
    )


def test_the_text_leaves_out_what_is_far_away():
    schedule = Schedule.build("1f1b", num_ranks=2, num_microbatches=90)
    ranks = [list(actions) for actions in schedule.actions]
    ranks[1].append(ranks[1][10])
    assert Schedule(ranks).verify().render() == (
        "1F5 is on rank 1 twice\n"
        "rank 1 | .. #8 1F4 1B4 <1F5> 1B5 1F6 .. #178 1F89 1B89 [1F5]\n"
        "                       once\n"
        "                                                       again\n"
    )


def test_memory_is_counted_up_to_the_limit():
    schedule = Schedule.build("gpipe", num_ranks=1, num_microbatches=3)
    assert schedule.verify(memory_limit=2).render().splitlines()[1:3] == [
        "rank 0 | 0F0 0F1 [0F2] <0B0> 0B1 0B2",
        "         1   2   3     3     2   1 alive, of 2",
    ]


SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("rendezvous", [False, True])
def test_a_cycle_is_drawn_as_an_arrow_for_each_wait(tmp_path, rendezvous):
    ranks = DEADLOCK if not rendezvous else ("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1")
    path = tmp_path / "cycle.svg"
    drawn = verdict_of(*ranks, rendezvous=rendezvous).render(path)
    assert path.read_text() == drawn
    root = ElementTree.fromstring(drawn)
    waits = [path for path in root.iter(f"{SVG}path") if path.get("class") == "wait"]
    order = [path for path in root.iter(f"{SVG}path") if path.get("class") == "order"]
    assert (len(waits), len(order)) == (2, 2)
    outlines = [rect.get("class") for rect in root.iter(f"{SVG}rect")]
    assert outlines.count("culprit") == 2
    assert outlines.count("related") == 2


@pytest.mark.parametrize(
    ("ranks", "look"),
    [
        (("0F0 0F1 0B0", "1F0 1B0 1F1 1B1"), "absent"),
        (("0F0 0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"), "culprit"),
        (("0F0 0F1 0B0 0B1 0F2", "1F0 1B0 1F1 1B1"), "culprit"),
    ],
)
def test_what_is_wrong_is_outlined(tmp_path, ranks, look):
    verdict = verdict_of(*ranks)
    root = ElementTree.fromstring(verdict.render(tmp_path / "picture.svg"))
    outlined = [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") == look]
    assert len(outlined) == 1
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert verdict.message in " ".join(texts)
    assert verdict.counterexample["places"][0]["note"] in texts


def test_the_documented_picture_is_what_is_drawn(tmp_path):
    picture = Path(__file__).resolve().parent.parent / "docs" / "images" / "counterexample.svg"
    assert verdict_of(*DEADLOCK).render(tmp_path / "picture.svg") == picture.read_text()


def test_a_png_is_made_of_the_svg(tmp_path):
    pytest.importorskip("cairosvg")
    path = tmp_path / "cycle.png"
    assert verdict_of(*DEADLOCK).render(path).startswith("<svg")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in .svg, .png or .txt, got '.*cycle.gif'"):
        verdict_of(*DEADLOCK).render(tmp_path / "cycle.gif")
