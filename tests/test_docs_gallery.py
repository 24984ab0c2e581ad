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
    assert gallery.profiles() == rows()
    assert len(rows()) == 12
    for row in rows():
        p, m = sizes(row)
        for name in ("1f1b", "zb_h1", "zb_h2"):
            found = gallery.predict(name, row)
            schedule = pipert.Schedule.build(name, num_ranks=p, num_microbatches=m)
            assert found.span_bubble == pytest.approx(bubble_rate(schedule, row))
            assert f"{found.span_bubble:.4f}" == row[f"bubble_{name}"]
            assert found.makespan_bubble >= found.span_bubble - 1e-12


def test_the_tables_have_a_row_for_each_schedule_and_a_column_for_each_profile():
    part = DOCUMENT.partition("<!-- predictions")[2].partition("<!-- end of predictions")[0]
    tables = [table for table in part.split("\n\n") if table.startswith("| schedule")]
    assert len(tables) == 3
    for table in tables:
        head, _, *body = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
        assert [f"{model} span" in head for model in ("1.5B", "6.2B", "14.6B", "28.3B")] == [
            True
        ] * 4
        names = dict.fromkeys(re.sub("[`,].*", "", cells[1].strip("`")) for cells in body)
        assert list(names) == pipert.schedules()
    published = {row["bubble_zb_h1"] for row in rows()}
    shown = re.findall(r"^\| `zb_h1` \|(.*)$", part, re.MULTILINE)
    assert published <= {cell.strip() for line in shown for cell in line.split("|")}


def test_zb_auto_is_made_for_the_times_of_each_profile():
    for row in rows():
        p, m = sizes(row)
        default = gallery.predict("zb_auto", row)
        single, double = (gallery.predict("zb_auto", row, limit) for limit in (1, 2))
        assert (single.peak, double.peak <= 2 * p) == (p, True)
        assert single.span_bubble <= default.span_bubble + 1e-12
        assert f"{single.span_bubble:.4f}" == row["bubble_zb_1p"]
        zb_h2 = pipert.Schedule.build("zb_h2", num_ranks=p, num_microbatches=m)
        assert double.span_bubble < bubble_rate(zb_h2, row)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("gpipe", lambda p, m: m),
        ("1f1b", lambda p, m: p),
        ("zb_v", lambda p, m: p),
        ("zb_h2", lambda p, m: 2 * p - 1),
    ],
)
def test_peak_memory_is_in_shares_of_a_rank(name, peak):
    for row in rows():
        assert gallery.predict(name, row).peak == peak(*sizes(row))


def test_updates_and_versions_are_seen_in_the_pictures_of_asynchronous_schedules():
    pictures = {}
    for name in ("1f1b", "pipedream", "pipedream_vertical_sync", "pipedream_2bw"):
        svg = (gallery.IMAGES / f"{name}.svg").read_text()
        pictures[name] = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="[a-z]+">([^<]*)<', svg)
        updates = re.findall(r"<title>\d+UPDATEv\d+</title><rect [^>]*width=\"([\d.]+)\"", svg)
        assert len(updates) == {"1f1b": 0, "pipedream_2bw": 8}.get(name, 32)
        assert all(float(width) > 5 for width in updates)
    words = {name: {text for _, _, text in found} for name, found in pictures.items()}
    assert "7v7" in words["pipedream"]
    assert "7v4" in words["pipedream_vertical_sync"]
    assert "7v7" not in words["pipedream_vertical_sync"]
