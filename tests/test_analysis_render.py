import importlib
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from schedule_strategies import good_schedules

from pipert import Schedule


def one_f_one_b():
    return Schedule.build("1f1b", num_ranks=2, num_microbatches=2)


def test_text_shows_ranks_on_lines_with_bubble_peak_memory_and_axis():
    assert one_f_one_b().render(width=58).splitlines() == [
        "                                              bubble  peak",
        "rank 0 |F0--F1--........B0------....B1------|    33%     2",
        "rank 1 |....F0--B0------F1--B1------........|    33%     1",
        "time    0                   5",
        "F0: microbatch 0; dots: idle",
    ]


def test_text_names_the_stage_where_a_rank_has_several():
    lines = Schedule([["0F0", "1F0", "1B0", "0B0"]]).render(width=60).splitlines()
    assert lines[1].startswith("rank 0 |0F0")
    assert lines[-1] == "2F0: stage 2, microbatch 0; dots: idle"


@given(good_schedules())
@settings(deadline=None, max_examples=30)
def test_text_is_as_wide_as_asked(schedule):
    head, *ranks, axis, legend = schedule.render(width=72).splitlines()
    assert {len(line) for line in (head, *ranks)} == {72}
    assert max(len(axis), len(legend)) <= 72


@pytest.mark.parametrize("width", [39, 10_001, 2**31 - 1])
def test_a_width_that_no_terminal_has_is_rejected(width):
    told = f"width must be at least 40 and at most 10000, got {width}"
    with pytest.raises(ValueError, match=told):
        one_f_one_b().render(width=width)


def test_files_are_written_by_their_suffix(tmp_path):
    schedule = one_f_one_b()
    drawn = schedule.render(tmp_path / "a.svg", title="mine")
    assert (tmp_path / "a.svg").read_text() == drawn
    assert ">mine</text>" in drawn
    assert schedule.render(str(tmp_path / "a.txt")) == schedule.render()
    assert (tmp_path / "a.txt").read_text() == schedule.render()
    with pytest.raises(ValueError, match=r"path must end in .svg, .png or .txt, got 'a.gif'"):
        schedule.render("a.gif")


def test_a_png_is_the_svg_at_twice_its_size(tmp_path):
    try:
        importlib.import_module("cairosvg")
    except (ImportError, OSError) as error:  # OSError: it is there, and the cairo library is not
        pytest.skip(str(error).partition("\n")[0])
    svg = one_f_one_b().render(tmp_path / "a.png", transfers=True)
    png = (tmp_path / "a.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    sizes = [int.from_bytes(png[i : i + 4], "big") for i in (16, 20)]
    root = ElementTree.fromstring(svg)
    assert sizes == [2 * int(root.get("width")), 2 * int(root.get("height"))]


def test_a_png_without_its_extra_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cairosvg", None)
    with pytest.raises(ImportError, match=r"pip install 'pipert\[png\]'"):
        one_f_one_b().render(tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
