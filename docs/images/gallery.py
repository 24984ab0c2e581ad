"""Draws docs/images/schedules/ and writes what docs/schedules.md says of each schedule in numbers.

python docs/images/gallery.py
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import pipert
from pipert import Costs, Schedule

RANKS, MICROBATCHES = 4, 8
IMAGES = Path(__file__).parent / "schedules"
DOCUMENT = Path(__file__).parents[1] / "schedules.md"
PROFILES = Path(__file__).parents[2] / "tests" / "data" / "zero_bubble_table.csv"
UPDATE = 0.3  # of a schedule that updates between its microbatches


def picture(name: str) -> str:
    """The SVG of one schedule, with F, I and W of a stage equally long; with its updates."""
    schedule = Schedule.build(name, num_ranks=RANKS, num_microbatches=MICROBATCHES)
    stages = f"{schedule.num_stages} stages, " if schedule.num_stages > RANKS else ""
    title = f"{name}: {RANKS} ranks, {stages}{MICROBATCHES} microbatches, F = I = W = 1"
    if not schedule.is_asynchronous:
        return pipert.render_svg([(title, schedule.simulate())])
    title += f", updates {UPDATE:g}"
    return pipert.render_svg([(title, schedule.simulate(Costs(update=UPDATE)))])


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
    """The published profiles: four models, each with three numbers of microbatches."""
    with PROFILES.open(newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Prediction:
    """What a schedule does on a profile; peak memory is in activations of a rank's whole share."""

    stages: int  # a rank
    span_bubble: float
    makespan_bubble: float
    peak: float


def predict(name: str, profile: dict[str, str], limit: int | None = None) -> Prediction:
    """What the schedule does on a profile; a rank's times are split evenly between its stages.

    With a limit it is made for the profile's times and a memory of limit x p.
    """
    ranks, microbatches = int(profile["p"]), int(profile["m"])
    schedule = Schedule.build(name, num_ranks=ranks, num_microbatches=microbatches)
    share = ranks * schedule.placement.num_copies / schedule.num_stages
    times = {
        word: float(profile[column]) * share
        for word, column in (("forward", "F_ms"), ("input", "I_ms"), ("weight", "W_ms"))
    }
    costs = Costs(**times, latency=float(profile["c_ms"]))
    if limit is not None:
        options = pipert.schedule_options(name, costs, memory_limit=limit * ranks)
        schedule = Schedule.build(name, num_ranks=ranks, num_microbatches=microbatches, **options)
    timeline = schedule.simulate(costs)
    work = max(timeline.busy)
    return Prediction(
        stages=schedule.num_stages // ranks,
        span_bubble=1 - work / max(timeline.spans),
        makespan_bubble=1 - work / timeline.makespan,
        peak=max(timeline.peak_memory) * share,
    )


def prediction_rows() -> list[tuple[str, str, int | None]]:
    """The head of each row, its schedule, and the limit of one that is made for given times."""
    rows: list[tuple[str, str, int | None]] = []
    for name in pipert.schedules():
        if pipert.schedule_options(name, Costs()):
            rows += [(f"`{name}`, p", name, 1), (f"`{name}`, 2p", name, 2)]
        else:
            rows.append((f"`{name}`", name, None))
    return rows


def prediction_table(factor: int) -> str:
    """The table of all schedules on the profiles with m = factor x p."""
    chosen = [row for row in profiles() if int(row["m"]) == factor * int(row["p"])]
    ranks = sorted({int(row["p"]) for row in chosen})
    heads = ["schedule", "stages"]
    heads += [f"{row['model']} {kind}" for row in chosen for kind in ("span", "makespan")]
    heads += [f"peak p={p}" for p in ranks]
    lines = [
        "| " + " | ".join(heads) + " |",
        "|" + " --- |" + " ---: |" * (len(heads) - 1),
    ]
    for head, name, limit in prediction_rows():
        results = [predict(name, row, limit) for row in chosen]
        cells = [head, str(results[0].stages)]
        for result in results:
            cells += [f"{result.span_bubble:.4f}", f"{result.makespan_bubble:.4f}"]
        for p in ranks:
            peaks = [
                each.peak for each, row in zip(results, chosen, strict=True) if int(row["p"]) == p
            ]
            cells.append(f"{max(peaks):g}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def predictions_part() -> str:
    """A table for each number of microbatches a rank."""
    factors = sorted({int(row["m"]) // int(row["p"]) for row in profiles()})
    return "\n\n".join(f"**m = {factor}p**\n\n{prediction_table(factor)}" for factor in factors)


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
