"""docs/schedules.md shows every schedule, and what its script makes is what stands there."""

import importlib.util
import re
from pathlib import Path

import pytest
from published_table import bubble_rate, rows, sizes

import pipert

DOCS = Path(__file__).resolve().parent.parent / "docs"
SPEC = importlib.util.spec_from_file_location("gallery", DOCS / "images" / "gallery.py")
assert SPEC is not None
gallery = importlib.util.module_from_spec(SPEC)
assert SPEC.loader is not None
SPEC.loader.exec_module(gallery)

DOCUMENT = (DOCS / "schedules.md").read_text()


def test_the_gallery_shows_every_schedule():
    shown = re.findall(r"^!\[.*\]\(images/schedules/(\w+)\.svg\)$", DOCUMENT, re.MULTILINE)
    assert sorted(shown) == sorted(pipert.schedules())
    files = sorted(path.name for path in gallery.IMAGES.iterdir())
    assert files == sorted(f"{name}.svg" for name in pipert.schedules())


@pytest.mark.parametrize("name", pipert.schedules())
def test_a_picture_is_what_the_script_draws(name):
    drawn = (gallery.IMAGES / f"{name}.svg").read_text()
    assert drawn == gallery.picture(name), "run python docs/images/gallery.py"


def test_the_document_says_what_the_script_writes():
    assert gallery.written(DOCUMENT) == DOCUMENT, "run python docs/images/gallery.py"


def test_a_schedule_without_a_section_is_an_error():
    with pytest.raises(ValueError, match="must have the heading '### gpipe'"):
        gallery.written(DOCUMENT.replace("### gpipe\n", ""))
    with pytest.raises(ValueError, match="must have a row for `gpipe`"):
        gallery.written(DOCUMENT.replace("| `gpipe` |", "| gpipe |"))


def test_predictions_are_for_the_published_profiles():
    published = [row for row in rows() if sizes(row) == (8, 24)]
    assert gallery.profiles() == published
    for row in published:
        assert row["model"] in DOCUMENT
        for name in ("1f1b", "zb_h1", "zb_h2"):
            _, span, makespan, _ = gallery.predict(name, row)
            schedule = pipert.Schedule.build(name, num_ranks=8, num_microbatches=24)
            assert span == pytest.approx(bubble_rate(schedule, row))
            assert f"{span:.4f}" == row[f"bubble_{name}"]
            assert makespan >= span - 1e-12


@pytest.mark.parametrize(("name", "peak"), [("gpipe", 24), ("1f1b", 8), ("zb_v", 8), ("zb_h2", 15)])
def test_peak_memory_is_in_shares_of_a_rank(name, peak):
    assert {gallery.predict(name, row)[3] for row in gallery.profiles()} == {peak}
