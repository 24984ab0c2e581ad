"""`pipert schedule show`: a schedule drawn, as lists of actions, or lowered."""

import argparse
from typing import Any

import pipert
from pipert import Program, Schedule, Timeline
from pipert.cli import values
from pipert.cli.costs import add_costs, costs_of, simulate
from pipert.cli.failures import BadScheduleError, UsageError
from pipert.cli.output import print_json
from pipert.cli.source import add_source, describe, describe_json, load

NAME = "show"
SUMMARY = "draw a schedule, or print its actions or its programs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the schedule, the views and the costs that the drawing is to scale of."""
    add_source(parser)
    views = parser.add_argument_group("instead of the drawing")
    views.add_argument("--actions", action="store_true", help="what each rank does, in order")
    views.add_argument("--program", action="store_true", help="each rank's instructions")
    drawing = parser.add_argument_group("drawing")
    drawing.add_argument(
        "--svg", type=values.file_ending_in(".svg"), metavar="FILE", help="write a picture too"
    )
    drawing.add_argument(
        "--png",
        type=values.file_ending_in(".png"),
        metavar="FILE",
        help="likewise; needs the extra pipert[png]",
    )
    drawing.add_argument(
        "--transfers", action="store_true", help="an arrow for each message, in the pictures"
    )
    drawing.add_argument(
        "--width",
        type=values.integer(40, 10_000),
        default=100,
        metavar="N",
        help="of the text, in characters; default 100",
    )
    add_costs(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the views that are asked for, or else the drawing."""
    if args.transfers and not (args.svg or args.png):
        raise UsageError("--transfers: expected --svg or --png with it, got neither")
    schedule = load(args)
    costs = costs_of(args, schedule.num_stages)
    programs = _lower(schedule) if args.program else []
    for path in filter(None, (args.svg, args.png)):
        _draw(simulate(schedule, costs), path, schedule.name, transfers=args.transfers)
    if args.json:
        print_json(_answer(schedule, programs))
        return 0
    parts = [str(schedule)] if args.actions else []
    parts += [str(program) for program in programs]
    if not parts:
        parts = [simulate(schedule, costs).render(width=args.width)]
    print(describe(schedule))
    print("\n".join(part.rstrip() for part in parts))
    return 0


def _draw(timeline: Timeline, path: str, title: str, *, transfers: bool) -> None:
    try:
        timeline.render(path, title=title, transfers=transfers)
    except (ImportError, ValueError) as error:
        raise UsageError(str(error)) from None


def _answer(schedule: Schedule, programs: list[Program]) -> dict[str, Any]:
    answer = {
        **describe_json(schedule),
        "placement": schedule.placement.ranks,
        "actions": schedule.actions,
    }
    if programs:
        answer["programs"] = [_program_json(program) for program in programs]
    return answer


def _lower(schedule: Schedule) -> list[Program]:
    try:
        return pipert.lower(schedule)
    except ValueError as error:
        raise BadScheduleError(str(error)) from None


def _program_json(program: Program) -> dict[str, Any]:
    return {
        "rank": program.rank,
        "num_marks": program.num_marks,
        "peak_activations": program.peak_activations,
        "slots": program.slots,
        "lanes": program.lanes,
        "instructions": program.instructions,
    }
