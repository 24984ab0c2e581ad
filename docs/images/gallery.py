"""Draws docs/images/schedules/ and writes what docs/schedules.md says of each schedule in numbers.

python docs/images/gallery.py
"""

import csv
import re
from pathlib import Path

import pipert
from pipert import Costs, Schedule

RANKS, MICROBATCHES = 4, 8
IMAGES = Path(__file__).parent / "schedules"
DOCUMENT = Path(__file__).parents[1] / "schedules.md"
PROFILES = Path(__file__).parents[2] / "tests" / "data" / "zero_bubble_table.csv"
PROFILE_SIZES = {"p": "8", "m": "24"}


def picture(name: str) -> str:
    """The SVG of one schedule, with F, I and W of a stage equally long."""
    schedule = Schedule.build(name, num_ranks=RANKS, num_microbatches=MICROBATCHES)
    stages = f"{schedule.num_stages} stages, " if schedule.num_stages > RANKS else ""
    title = f"{name}: {RANKS} ranks, {stages}{MICROBATCHES} microbatches, F = I = W = 1"
    return pipert.render_svg([(title, schedule.simulate())])


def between(word: str, text: str) -> str:
    """What stands between the marks of a part that this script writes."""
    return f"<!-- {word}: images/gallery.py writes this -->\n\n{text}\n\n<!-- end of {word} -->\n"


def with_part(document: str, word: str, heading: str, text: str) -> str:
    """Puts a part right below its heading, in place of the one that is there."""
    old = rf"(?:<!-- {word}: [^\n]*\n.*?<!-- end of {word} -->\n)?"
    pattern = re.compile(rf"^({re.escape(heading)}\n){old}", re.MULTILINE | re.DOTALL)
    new, count = pattern.subn(lambda found: found[1] + between(word, text), document, count=1)
    if count != 1:
        raise ValueError(f"docs/schedules.md must have the heading {heading!r}")
    return new


def formulas(document: str, name: str) -> str:
    """The schedule's row of the table of generators, as a sentence."""
    row = re.search(rf"^\| `{name}` \|(.*)\|(.*)\|(.*)\|$", document, re.MULTILINE)
    if row is None:
        raise ValueError(f"docs/schedules.md must have a row for `{name}`")
    idle, peak, takes = (cell.strip() for cell in row.groups())
    return f"Idle: {idle}. Peak on rank r: {peak}. Takes {takes}."


def gallery_part(document: str, name: str) -> str:
    """A schedule's picture and its formulas."""
    text = f"{name} on {RANKS} ranks with {MICROBATCHES} microbatches"
    return f"![{text}](images/schedules/{name}.svg)\n\n{formulas(document, name)}"


def profiles() -> list[dict[str, str]]:
    """The published profiles of PROFILE_SIZES, one for each model."""
    with PROFILES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if PROFILE_SIZES.items() <= row.items()]


def predict(name: str, profile: dict[str, str]) -> tuple[Schedule, float, float, float]:
    """The schedule, its span bubble, its makespan bubble, and its peak memory in shares of a rank.

    A rank's times are split evenly between its stages.
    """
    ranks, microbatches = int(profile["p"]), int(profile["m"])
    schedule = Schedule.build(name, num_ranks=ranks, num_microbatches=microbatches)
    share = ranks * schedule.placement.num_copies / schedule.num_stages
    times = {
        word: float(profile[column]) * share
        for word, column in (("forward", "F_ms"), ("input", "I_ms"), ("weight", "W_ms"))
    }
    timeline = schedule.simulate(Costs(**times, latency=float(profile["c_ms"])))
    work = max(timeline.busy)
    return (
        schedule,
        1 - work / max(timeline.spans),
        1 - work / timeline.makespan,
        max(timeline.peak_memory) * share,
    )


def predictions_part() -> str:
    """The table of all schedules on the published profiles."""
    models = profiles()
    heads = [f"{row['model']}: {kind} bubble" for row in models for kind in ("span", "makespan")]
    lines = [
        "| " + " | ".join(["schedule", "stages a rank", *heads, "peak memory"]) + " |",
        "|" + " --- |" + " ---: |" * (len(heads) + 2),
    ]
    for name in pipert.schedules():
        results = [predict(name, row) for row in models]
        schedule, peak = results[0][0], results[0][3]
        stages = schedule.num_stages // schedule.num_ranks
        bubbles = [f"{value:.4f}" for result in results for value in result[1:3]]
        lines.append("| " + " | ".join([f"`{name}`", str(stages), *bubbles, f"{peak:g}"]) + " |")
    return "\n".join(lines)


def written(document: str) -> str:
    """The document with all that this script writes in it."""
    for name in pipert.schedules():
        document = with_part(document, "gallery", f"### {name}", gallery_part(document, name))
    return with_part(document, "predictions", "## Predictions", predictions_part())


def main() -> None:
    """Draws each schedule and writes the document anew."""
    IMAGES.mkdir(exist_ok=True)
    for name in pipert.schedules():
        (IMAGES / f"{name}.svg").write_text(picture(name))
    DOCUMENT.write_text(written(DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
