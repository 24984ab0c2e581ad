"""The schedule that a command is about: a file, or a name with sizes."""

import argparse

from pipert import Placement, Schedule
from pipert.cli import formats, values
from pipert.cli.failures import UsageError, in_words_of_options

# What else Schedule.build takes.
_NO_OPTIONS = ("name", "num_ranks", "num_microbatches", "num_stages", "forward_only")


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
        "schedule",
        metavar="NAME_OR_FILE",
        help="a name of `list`, a .csv or .json file, or - for a CSV on stdin",
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
    parser.add_argument(
        "--from",
        dest="format",
        choices=formats.FORMATS,
        help="what the file holds, whatever its name ends in",
    )
    parser.add_argument(
        "--placement",
        type=values.indices,
        metavar="R[,R...]",
        help="the rank of each stage, for --from zero-bubble; default: a V",
    )
    add_forward_only(parser)


def add_forward_only(parser: argparse.ArgumentParser) -> None:
    """Declares --forward-only."""
    parser.add_argument(
        "--forward-only", action="store_true", help="the forwards alone, for inference"
    )


def load(args: argparse.Namespace, *, file_as_it_is: bool = False) -> Schedule:
    """Makes the schedule that the arguments of add_source mean.

    With `file_as_it_is` nothing is left out of one in a file, whatever --forward-only says.
    """
    _check_format(args)
    if args.format is None and not formats.is_file(args.schedule):
        return _build(args)
    schedule = _read(args)
    return schedule.forward_only() if args.forward_only and not file_as_it_is else schedule


def _check_format(args: argparse.Namespace) -> None:
    if args.placement is not None and args.format != "zero-bubble":
        raise UsageError("--placement: expected with --from zero-bubble alone")


def _read(args: argparse.Namespace) -> Schedule:
    given = {
        "--ranks": args.ranks,
        "--microbatches": args.microbatches,
        "--stages": args.stages,
        "--option": args.option,
    }
    for option, value in given.items():
        if value:
            raise UsageError(f"{option}: expected the name of a schedule with it, got a file")
    return formats.read(args.schedule, args.format, _placement(args.placement))


def _placement(ranks: list[int] | None) -> Placement | None:
    if ranks is None:
        return None
    try:
        # No more ranks than stages, so that one that is too large is told as such.
        return Placement(min(max(ranks) + 1, len(ranks)), ranks)
    except ValueError as error:
        raise UsageError(f"--placement: {error}") from None


def _build(args: argparse.Namespace) -> Schedule:
    sizes = {"--ranks": args.ranks, "--microbatches": args.microbatches}
    for option, value in sizes.items():
        if value is None:
            raise UsageError(f"{option}: expected with the name of a schedule, got none")
    try:
        return build(args.schedule, args, _options(args.option), num_stages=args.stages)
    except ValueError as error:
        raise UsageError(str(error)) from None


def build(
    name: str, args: argparse.Namespace, options: dict[str, int], *, num_stages: int | None
) -> Schedule:
    """Builds a schedule of the ranks and microbatches in `args`, forward-only if they say so.

    Args:
        name: of the schedule.
        args: with those of add_sizes and add_forward_only.
        options: of the schedule's own.
        num_stages: of all copies of the model; None: what the schedule likes best.

    Raises:
        ValueError: in the words of the command line.
    """
    try:
        return Schedule.build(
            name,
            num_ranks=args.ranks,
            num_microbatches=args.microbatches,
            num_stages=num_stages,
            forward_only=args.forward_only,
            **options,
        )
    except ValueError as error:
        raise ValueError(in_words_of_options(error)) from None


def _options(given: list[tuple[str, int]]) -> dict[str, int]:
    options: dict[str, int] = {}
    for name, value in given:
        if name in _NO_OPTIONS:
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
