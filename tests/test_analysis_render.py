import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given, settings
from schedule_strategies import good_schedules

from pipert import Costs, Schedule, Timeline, render_svg

SVG = "{http://www.w3.org/2000/svg}"


def one_f_one_b():
    return Schedule.build("1f1b", num_ranks=2, num_microbatches=2)


def test_text_shows_each_rank_on_one_line_with_its_bubble():
    assert one_f_one_b().render(width=50).splitlines() == [
        "rank 0 |F0--F1--        B0------    B1------|  33%",
        "rank 1 |    F0--B0------F1--B1------        |  33%",
    ]


def test_text_names_the_stage_where_a_rank_has_several():
    schedule = Schedule([["0F0", "1F0", "1B0", "0B0"]])
    assert schedule.render(width=60).startswith("rank 0 |0F0")


@given(good_schedules())
@settings(deadline=None, max_examples=30)
def test_text_is_as_wide_as_asked(schedule):
    for line in schedule.render(width=72).splitlines():
        assert len(line) == 72


def test_a_width_below_40_is_rejected():
    with pytest.raises(ValueError, match="width must be at least 40, got 39"):
        one_f_one_b().render(width=39)


def boxes(svg):
    """(what the box is, its left edge, its width) of each action."""
    root = ElementTree.fromstring(svg)
    found = []
    for group in root.iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        left, width = float(rect.get("x")), float(rect.get("width"))
        found.append((group.find(f"{SVG}title").text, left, width))
    return found


@given(good_schedules())
@settings(deadline=None, max_examples=30)
def test_svg_has_a_box_for_each_action_inside_the_picture(schedule):
    timeline = schedule.simulate(Costs(latency=0.5))
    svg = render_svg([("random", timeline)])
    found = boxes(svg)
    wanted = [str(action) for actions in schedule.actions for action in actions]
    assert sorted(text for text, _, _ in found) == sorted(wanted)
    width = float(ElementTree.fromstring(svg).get("width"))
    assert all(left >= 0 and size > 0 and left + size <= width for _, left, size in found)


def test_svg_boxes_of_a_rank_do_not_overlap():
    schedule = Schedule.build("interleaved_1f1b", num_ranks=1, num_microbatches=30, num_stages=3)
    svg = render_svg([("", schedule.simulate())])
    edges = sorted((left, left + size) for _, left, size in boxes(svg))
    assert all(a[1] <= b[0] + 0.011 for a, b in pairwise(edges))


def test_svg_shows_titles_ranks_legend_and_axis():
    timeline = one_f_one_b().simulate()
    svg = render_svg([("as scheduled", timeline), ("a < b & c\n", timeline)])
    words = {node.text for node in ElementTree.fromstring(svg).iter(f"{SVG}text")}
    assert {"as scheduled", "a < b & c ", "rank 0", "rank 1", "33%", "8"} <= words
    assert {"F forward", "B backward"} <= words
    assert "W weight gradient" not in words


def test_a_measured_timeline_may_start_at_any_time():
    timeline = one_f_one_b().simulate()
    later = Timeline.from_spans(
        [[(s.action, s.start + 1e6, s.end + 1e6) for s in rank] for rank in timeline.ranks]
    )
    assert render_svg([("", later)]) == render_svg([("", timeline)])


def test_files_are_written_by_their_suffix(tmp_path):
    schedule = one_f_one_b()
    drawn = schedule.render(tmp_path / "a.svg", title="mine")
    assert (tmp_path / "a.svg").read_text() == drawn
    assert ">mine</text>" in drawn
    assert schedule.render(str(tmp_path / "a.txt")) == schedule.render()
    assert (tmp_path / "a.txt").read_text() == schedule.render()
    with pytest.raises(ValueError, match=r"path must end in .svg or .txt, got 'a.png'"):
        schedule.render("a.png")


def test_an_empty_timeline_is_drawn():
    empty = Timeline.from_spans([[], []])
    assert len(empty.render().splitlines()) == 2
    assert boxes(render_svg([("empty", empty)])) == []
    assert boxes(render_svg([])) == []
