"""The schedule that a command is about: a file, or a name with sizes."""

import argparse
import re

from pipert import Schedule
from pipert.cli import formats, values
from pipert.cli.failures import UsageError


def add_sizes(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Declares --ranks, --microbatches and --stages."""
    size = values.integer(1)
    parser.add_argument("--ranks", type=size, metavar="N", required=required)
    parser.add_argument("--microbatches", type=size, metavar="N", required=required)
    parser.add_argument(
        "--stages",
        type=size,
        metavar="N",
        help="of the model; default: what the schedule likes best",
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    """Declares the schedule and what goes with one that is given by name."""
    parser.add_argument(
        "schedule", metavar="NAME_OR_CSV", help="a name of `list`, a .csv file, or - for stdin"
    )
    add_sizes(parser, required=False)
    parser.add_argument(
        "--option",
        type=values.option,
        action="append",
        default=[],
        metavar="NAME=INTEGER",
        help="one of the schedule's own, such as group_size=4; may be repeated",
    )


def load(args: argparse.Namespace) -> Schedule:
    """Makes the schedule that the arguments of add_source mean."""
    sizes = {"--ranks": args.ranks, "--microbatches": args.microbatches}
    if formats.is_file(args.schedule):
        for option, value in {**sizes, "--stages": args.stages, "--option": args.option}.items():
            if value:
                raise UsageError(f"{option}: expected the name of a schedule with it, got a file")
        return formats.read(args.schedule)
    for option, value in sizes.items():
        if value is None:
            raise UsageError(f"{option}: expected with the name of a schedule, got none")
    try:
        return build(args.schedule, args, _options(args.option))
    except ValueError as error:
        raise UsageError(str(error)) from None


def build(name: str, args: argparse.Namespace, options: dict[str, int]) -> Schedule:
    """Builds a schedule of the sizes in `args`.

    Raises:
        ValueError: in the words of the command line.
    """
    try:
        return Schedule.build(
            name,
            num_ranks=args.ranks,
            num_microbatches=args.microbatches,
            num_stages=args.stages,
            **options,
        )
    except ValueError as error:
        words = re.sub(r"\bnum_(ranks|microbatches|stages)\b", r"--\1", str(error))
        raise ValueError(words) from None


def _options(given: list[tuple[str, int]]) -> dict[str, int]:
    options: dict[str, int] = {}
    for name, value in given:
        if name in ("name", "num_ranks", "num_microbatches", "num_stages"):
            raise UsageError(f"--option: expected an option of the schedule's own, got {name!r}")
        if name in options:
            raise UsageError(f"--option: expected each name once, got {name!r} twice")
        options[name] = value
    return options


def describe(schedule: Schedule) -> str:
    """Its name and sizes, for the first line of an answer."""
    return (
        f"{schedule.name}: {schedule.num_ranks} ranks, {schedule.num_stages} stages, "
        f"{schedule.num_microbatches} microbatches"
    )


def describe_json(schedule: Schedule) -> dict[str, object]:
    """The same for --json."""
    return {
        "name": schedule.name,
        "num_ranks": schedule.num_ranks,
        "num_stages": schedule.num_stages,
        "num_microbatches": schedule.num_microbatches,
    }
