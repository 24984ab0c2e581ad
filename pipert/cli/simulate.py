"""`pipert schedule simulate`: how long a schedule takes under given costs."""

import argparse
from typing import Any

from pipert import Gap, MessageSpan, Span, Timeline
from pipert.cli.costs import add_costs, costs_of
from pipert.cli.costs import simulate as run_on_paper
from pipert.cli.output import print_json, table
from pipert.cli.source import add_source, describe, describe_json, load

NAME = "simulate"
SUMMARY = "print the makespan, bubbles and memory of a schedule under given costs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the schedule and the costs."""
    add_source(parser)
    parser.add_argument("--gaps", action="store_true", help="when each rank is idle, and why")
    add_costs(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the makespan, a row for each rank, and the gaps if they are asked for."""
    schedule = load(args)
    timeline = run_on_paper(schedule, costs_of(args, schedule.num_stages))
    if args.json:
        print_json({**describe_json(schedule), **_timeline_json(timeline)})
        return 0
    print(describe(schedule))
    print(f"makespan {timeline.makespan:g}")
    print(table(_rows(timeline)))
    if args.gaps:
        print(table(_gap_rows(timeline), left=(3,)))
    return 0


def _rows(timeline: Timeline) -> list[list[str]]:
    columns = {
        "rank": [str(rank) for rank in range(len(timeline.ranks))],
        "busy": [f"{busy:g}" for busy in timeline.busy],
        "span": [f"{span:g}" for span in timeline.spans],
        "bubble": [f"{bubble:.4f}" for bubble in timeline.bubble],
        "span bubble": [f"{bubble:.4f}" for bubble in timeline.span_bubble],
        "peak memory": [str(peak) for peak in timeline.peak_memory],
    }
    if timeline.peak_bytes is not None:
        columns["peak bytes"] = [f"{peak:.0f}" for peak in timeline.peak_bytes]
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]


def _gap_rows(timeline: Timeline) -> list[list[str]]:
    rows = [
        [str(gap.rank), f"{gap.start:g}", f"{gap.end:g}", gap.reason]
        for gaps in timeline.gaps
        for gap in gaps
    ]
    return [["rank", "idle from", "to", "reason"], *rows]


def _timeline_json(timeline: Timeline) -> dict[str, Any]:
    return {
        "makespan": timeline.makespan,
        "bubble": timeline.bubble,
        "span_bubble": timeline.span_bubble,
        "spans": timeline.spans,
        "busy": timeline.busy,
        "peak_memory": timeline.peak_memory,
        "peak_bytes": timeline.peak_bytes,
        "critical_path": [_span_json(span) for span in timeline.critical_path],
        "ranks": [[_span_json(span) for span in spans] for spans in timeline.ranks],
        "messages": [_message_json(message) for message in timeline.messages],
        "gaps": [[_gap_json(gap) for gap in gaps] for gaps in timeline.gaps],
    }


def _span_json(span: Span) -> dict[str, Any]:
    return {"rank": span.rank, "action": span.action, "start": span.start, "end": span.end}


def _message_json(message: MessageSpan) -> dict[str, Any]:
    names = ("sender", "source", "reader", "destination", "sent", "begun", "arrived")
    return {name: getattr(message, name) for name in names}


def _gap_json(gap: Gap) -> dict[str, Any]:
    names = ("start", "end", "kind", "reason", "waits_for", "other")
    return {name: getattr(gap, name) for name in names}
