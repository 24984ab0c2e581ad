import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from schedule_strategies import good_schedules

from pipert import Costs, Schedule, Timeline, render_svg

SVG = "{http://www.w3.org/2000/svg}"


def one_f_one_b():
    return Schedule.build("1f1b", num_ranks=2, num_microbatches=2)


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
    assert {"as scheduled", "a < b & c ", "rank 0", "rank 1", "33%", "8", "bubble", "peak"} <= words
    assert {"F forward", "B backward"} <= words
    assert "W weight gradient" not in words


def words_of(schedule, costs=None):
    svg = render_svg([("t", schedule.simulate(costs or Costs()))])
    return " ".join(node.text for node in ElementTree.fromstring(svg).iter(f"{SVG}text"))


def test_a_box_has_the_version_of_the_weights_where_it_fits():
    ranks = [["0F0", "0B0", "0UPDATEv1", "0F1v1", "0B1v1", "0UPDATEv2"]]
    words = words_of(Schedule(ranks), Costs(update=1))
    assert " 1v1 " in words
    assert "v2: with version 2 of the weights" in words
    assert " 0v0 " not in words
    narrow = words_of(Schedule(ranks), Costs(forward=0.01, update=1))
    assert narrow.count("1v1") == 1  # of the backward alone
    plain = words_of(one_f_one_b())
    assert "version" not in plain


def test_a_measured_timeline_may_start_at_any_time():
    timeline = one_f_one_b().simulate()
    later = Timeline.from_spans(
        [[(s.action, s.start + 1e6, s.end + 1e6) for s in rank] for rank in timeline.ranks]
    )
    assert render_svg([("", later)]) == render_svg([("", timeline)])


def test_an_empty_timeline_is_drawn():
    empty = Timeline.from_spans([[], []])
    assert len(empty.render().splitlines()) == 2 + 3  # head, axis, legend
    assert boxes(render_svg([("empty", empty)])) == []
    assert boxes(render_svg([])) == []


def test_the_same_timeline_gives_the_same_bytes():
    schedule = Schedule.build("zb_v", num_ranks=4, num_microbatches=8)
    first, second = schedule.simulate(), schedule.simulate()
    assert first.render() == second.render()
    assert render_svg([("", first)], transfers=True) == render_svg([("", second)], transfers=True)


@pytest.mark.parametrize("title", ["<&>\"'", "]]>", "\x00\x1b\uffff", "ä→😀", "x" * 10_000])
def test_any_title_makes_a_well_formed_picture(title):
    svg = render_svg([(title, one_f_one_b().simulate())])
    root = ElementTree.fromstring(svg)
    (drawn,) = [node.text for node in root.iter(f"{SVG}text") if node.get("class") == "title"]
    assert len(drawn) <= 110
    if len(title) <= 5 and title.isprintable():
        assert drawn == title


def test_chunks_of_a_rank_have_feet_of_their_own():
    schedule = Schedule.build("interleaved_1f1b", num_ranks=2, num_microbatches=2, num_stages=8)
    feet = defaultdict(set)
    for group in ElementTree.fromstring(render_svg([("", schedule.simulate())])).iter(f"{SVG}g"):
        stage = int(group.find(f"{SVG}title").text[0])
        feet[stage // 2].add(tuple(rect.get("height") for rect in group.iter(f"{SVG}rect"))[1:])
    assert all(len(heights) == 1 for heights in feet.values())
    assert len({next(iter(heights)) for heights in feet.values()}) == 4


def arrows(svg):
    """(kind, from, to) of each arrow below the legend."""
    lines = ElementTree.fromstring(svg).iter(f"{SVG}line")
    ends = [
        (line.get("class"), *(float(line.get(k)) for k in ("x1", "y1", "x2"))) for line in lines
    ]
    return [(kind, x1, x2) for kind, x1, y1, x2 in ends if y1 > 60]


@given(good_schedules())
@settings(deadline=None, max_examples=30)
def test_an_arrow_for_each_message_leads_forward_in_time(schedule):
    timeline = schedule.simulate(Costs(latency=0.5))
    rank_of = schedule.placement.rank_of
    crossings = sum(
        rank_of(stage) != rank_of(stage + 1) for stage in range(schedule.num_stages - 1)
    )
    drawn = arrows(render_svg([("", timeline)], transfers=True))
    assert all(start <= end for _, start, end in drawn)
    for kind in ("activation", "gradient"):
        count = sum(each == kind for each, _, _ in drawn)
        assert count == crossings * schedule.num_microbatches
    assert arrows(render_svg([("", timeline)])) == []


@pytest.mark.parametrize("blocking", [False, True])
def test_arrows_lead_from_when_a_message_leaves_to_when_it_arrives(blocking):
    schedule = Schedule.build("gpipe", num_ranks=3, num_microbatches=3)
    costs = Costs(forward=[1, 3, 1], latency=0.5, bandwidth=1, bytes=2, blocking=blocking)
    timeline = schedule.simulate(costs)
    left, right = 72, 1200 - 112  # of the plot

    def x_of(time):
        return left + time / timeline.makespan * (right - left)

    drawn = arrows(render_svg([("", timeline)], transfers=True))
    assert [(start, end) for _, start, end in drawn] == [
        (pytest.approx(x_of(m.begun), abs=0.01), pytest.approx(x_of(m.arrived), abs=0.01))
        for m in timeline.messages
    ]
    spans = {str(s.action): s for rank in timeline.ranks for s in rank}
    waits = [spans[str(m.reader)].start - m.arrived for m in timeline.messages]
    assert (min(waits), max(waits) > 0) == (0, not blocking)  # some arrive before they are read


def test_a_legend_that_is_too_long_goes_on_below():
    ranks = [["0F0", "0R0", "2F0", "2I0", "2W0", "0B0"], ["1F0", "1B0"]]
    schedule = Schedule(ranks)
    costs = Costs(update=1, reduce=1, latency=1)
    for transfers in (False, True):
        root = ElementTree.fromstring(
            render_svg([("t", schedule.simulate(costs))], transfers=transfers)
        )
        texts = {node.text: node for node in root.iter(f"{SVG}text")}
        legend = [node for node in root.iter(f"{SVG}text") if node.get("class") == "legend"]
        ends = [float(node.get("x")) + 6.7 * len(node.text) for node in legend]
        assert max(ends) <= float(root.get("width"))
        lowest = max(float(node.get("y")) for node in legend)
        assert lowest < float(texts["t"].get("y")) - 20
        assert {"R forward again", "moves of data", "update"} <= set(texts)


def test_a_huge_schedule_makes_a_picture_of_bounded_size():
    few = Schedule.build("zb_h1", num_ranks=8, num_microbatches=1000).simulate()
    many = Schedule.build("zb_h1", num_ranks=8, num_microbatches=8000).simulate()
    sizes = [len(render_svg([("", timeline)])) for timeline in (few, many)]
    assert max(sizes) < 1_000_000
    root = ElementTree.fromstring(render_svg([("", many)]))
    assert list(root.iter(f"{SVG}title")) == []
    assert {"rank 0", "rank 7"} <= {node.text for node in root.iter(f"{SVG}text")}


def test_a_column_has_the_colour_of_what_takes_most_of_its_time():
    actions = [[f"0F{i}" for i in range(3000)] + [f"0B{i}" for i in range(3000)]]
    svg = render_svg([("", Schedule(actions).simulate(Costs(forward=2, input=0.5, weight=0.5)))])
    marker_paths = ElementTree.fromstring(svg).iter(f"{SVG}path")
    runs = [path.get("d") for path in marker_paths if path.get("stroke-width")]
    assert [run.count("M") for run in runs] == [1, 1]
    forward, backward = (float(run.rpartition("h")[2]) for run in runs)
    assert forward == pytest.approx(2 * backward, rel=0.01)


def test_what_cannot_be_drawn_is_rejected():
    action = one_f_one_b().actions[0][0]
    crowd = Timeline.from_spans([[]] * 4097)
    with pytest.raises(ValueError, match="at most 4096 ranks fit into an SVG picture, got 4097"):
        render_svg([("", crowd)])
    endless = Timeline.from_spans([[(action, -1.7e308, -1.7e308), (action, 1.7e308, 1.7e308)]])
    with pytest.raises(ValueError, match="a makespan must be finite to be drawn"):
        render_svg([("", endless)])
    busy = Schedule.build("1f1b", num_ranks=8, num_microbatches=450).simulate()
    with pytest.raises(ValueError, match=r"transfers can be drawn for at most 5000 messages.*6300"):
        render_svg([("", busy)], transfers=True)
