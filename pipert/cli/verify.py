"""`pipert schedule verify`: whether a schedule is complete, ordered, free of deadlock, and fits."""

import argparse

from pipert import Schedule, Verdict
from pipert.cli import values
from pipert.cli.failures import UsageError, in_words_of_options
from pipert.cli.memory import add_memory_limit, memory_limit
from pipert.cli.output import print_json
from pipert.cli.source import add_source, describe, describe_json, load

NAME = "verify"
SUMMARY = "check a schedule; exit with 1 and a counterexample if it is no good"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the schedule, what it has to run under, and the pictures."""
    add_source(parser)
    sends = parser.add_mutually_exclusive_group()
    sends.add_argument(
        "--capacity",
        type=values.integer(0),
        metavar="N",
        help="messages that each directed pair of ranks may have in flight; default: no bound",
    )
    sends.add_argument("--rendezvous", action="store_true", help="a send waits for its receive")
    add_memory_limit(parser)
    parser.add_argument(
        "--weight-share",
        type=values.number,
        default=1.0,
        metavar="N",
        help="of an activation from I to W, as --memory counts, 0 to 1; default 1",
    )
    parser.add_argument(
        "--tied-stages",
        type=values.indices,
        action="append",
        default=[],
        metavar="I,I...",
        help="stages that share weights, and reduce their gradients together; may be repeated",
    )
    pictures = parser.add_argument_group("a picture of the counterexample, if there is one")
    pictures.add_argument("--svg", type=values.file_ending_in(".svg"), metavar="FILE")
    pictures.add_argument(
        "--png",
        type=values.file_ending_in(".png"),
        metavar="FILE",
        help="needs the extra pipert[png]",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the verdict. Returns 0 if it is good, else 1."""
    # A backward in a file that should hold forwards alone is what verifying is to find.
    schedule = load(args, file_as_it_is=True)
    verdict = _verify(schedule, args)
    if not verdict.ok:
        for path in filter(None, (args.svg, args.png)):
            _draw(verdict, path)
    if args.json:
        answer = {
            "ok": verdict.ok,
            "defect": verdict.defect,
            "message": verdict.message,
            "counterexample": verdict.counterexample,
        }
        print_json({**describe_json(schedule), **answer})
    elif verdict.ok:
        print(f"ok: {describe(schedule)}")
    else:
        print(f"not ok: {verdict.render().rstrip()}")
    return 0 if verdict.ok else 1


def _verify(schedule: Schedule, args: argparse.Namespace) -> Verdict:
    try:
        return schedule.verify(
            capacity=args.capacity,
            rendezvous=args.rendezvous,
            forward_only=args.forward_only,
            memory_limit=memory_limit(args),
            weight_share=args.weight_share,
            tied_stages=args.tied_stages,
        )
    except ValueError as error:  # such as a list that doesn't fit the schedule
        raise UsageError(in_words_of_options(error)) from None


def _draw(verdict: Verdict, path: str) -> None:
    try:
        verdict.render(path)
    except (ImportError, ValueError) as error:
        raise UsageError(str(error)) from None
