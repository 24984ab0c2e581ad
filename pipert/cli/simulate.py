"""`pipert schedule simulate`: how long a schedule takes under given costs."""

import argparse
from typing import Any

from pipert import Span, Timeline
from pipert.cli.costs import add_costs, costs_of
from pipert.cli.costs import simulate as run_on_paper
from pipert.cli.output import print_json, table
from pipert.cli.source import add_source, describe, describe_json, load

NAME = "simulate"
SUMMARY = "print the makespan, bubble and memory of a schedule under given costs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the schedule and the costs."""
    add_source(parser)
    add_costs(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the makespan and a row for each rank."""
    schedule = load(args)
    timeline = run_on_paper(schedule, costs_of(args, schedule.num_stages))
    if args.json:
        print_json({**describe_json(schedule), **_timeline_json(timeline)})
        return 0
    print(describe(schedule))
    print(f"makespan {timeline.makespan:g}")
    columns = zip(timeline.busy, timeline.spans, timeline.bubble, timeline.peak_memory, strict=True)
    rows = [
        [str(rank), f"{busy:g}", f"{span:g}", f"{bubble:.4f}", str(peak)]
        for rank, (busy, span, bubble, peak) in enumerate(columns)
    ]
    print(table([["rank", "busy", "span", "bubble", "peak memory"], *rows]))
    return 0


def _timeline_json(timeline: Timeline) -> dict[str, Any]:
    return {
        "makespan": timeline.makespan,
        "bubble": timeline.bubble,
        "spans": timeline.spans,
        "busy": timeline.busy,
        "peak_memory": timeline.peak_memory,
        "critical_path": [_span_json(span) for span in timeline.critical_path],
        "ranks": [[_span_json(span) for span in spans] for spans in timeline.ranks],
    }


def _span_json(span: Span) -> dict[str, Any]:
    return {"rank": span.rank, "action": span.action, "start": span.start, "end": span.end}
