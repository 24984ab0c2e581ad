"""`pipert schedule list`: the names of the schedules."""

import argparse

import pipert
from pipert.cli.output import print_json

NAME = "list"
SUMMARY = "list the schedules that can be built by name"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> int:
    """Prints a name on each line."""
    names = pipert.schedules()
    if args.json:
        print_json({"schedules": [{"name": name} for name in names]})
    else:
        print("\n".join(names))
    return 0
