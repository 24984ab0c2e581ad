"""`pipert schedule verify`: whether a schedule is complete, ordered and free of deadlock."""

import argparse

from pipert.cli import values
from pipert.cli.output import print_json
from pipert.cli.source import add_source, describe, describe_json, load

NAME = "verify"
SUMMARY = "check a schedule; exit with 1 and a counterexample if it is no good"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the schedule and what it has to run under."""
    add_source(parser)
    sends = parser.add_mutually_exclusive_group()
    sends.add_argument(
        "--capacity",
        type=values.integer(0),
        metavar="N",
        help="messages that each directed pair of ranks may have in flight; default: no bound",
    )
    sends.add_argument("--rendezvous", action="store_true", help="a send waits for its receive")
    parser.add_argument(
        "--forward-only", action="store_true", help="for inference: forwards alone are complete"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the verdict. Returns 0 if it is good, else 1."""
    schedule = load(args)
    verdict = schedule.verify(
        capacity=args.capacity, rendezvous=args.rendezvous, forward_only=args.forward_only
    )
    if args.json:
        answer = {"ok": verdict.ok, "defect": verdict.defect, "message": verdict.message}
        print_json({**describe_json(schedule), **answer})
    elif verdict.ok:
        print(f"ok: {describe(schedule)}")
    else:
        print(f"not ok: {verdict.message}")
    return 0 if verdict.ok else 1
