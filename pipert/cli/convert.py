"""`pipert schedule convert`: a schedule from one file format into another."""

import argparse

from pipert.cli import formats
from pipert.cli.failures import UsageError
from pipert.cli.output import print_json
from pipert.cli.source import add_source, describe_json, load

NAME = "convert"
SUMMARY = "write a schedule to a file, in the format that the file's ending asks for"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what is read and what is written."""
    add_source(parser)
    parser.add_argument("out", metavar="OUT", help="a .csv or .json file, or - for a CSV on stdout")
    parser.add_argument("--force", action="store_true", help="overwrite OUT if it is there")


def run(args: argparse.Namespace) -> int:
    """Writes the file."""
    if args.json and args.out == formats.STANDARD_STREAM:
        raise UsageError("--json: expected a file for OUT with it, got -")
    schedule = load(args)
    formats.write(schedule, args.out, overwrite=args.force)
    if args.json:
        print_json({**describe_json(schedule), "out": args.out})
    return 0
