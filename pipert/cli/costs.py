"""What actions and messages take: the options of it, and the simulation under them."""

import argparse

from pipert import Costs, Schedule, Timeline
from pipert.cli import values
from pipert.cli.failures import BadScheduleError, UsageError

_TIMES = ("forward", "input", "weight")


def add_costs(parser: argparse.ArgumentParser) -> None:
    """Declares the costs, with the defaults of pipert.Costs."""
    group = parser.add_argument_group(
        "costs", "in any one unit of time; one number, or T for each stage with commas between"
    )
    defaults = Costs()
    for name, text in (
        ("forward", "time of F"),
        ("input", "time of I, the input half of backward; B takes I and W"),
        ("weight", "time of W, the weight half of backward"),
        ("bytes", "of one activation out of a stage"),
    ):
        default = getattr(defaults, name)
        group.add_argument(
            f"--{name}",
            type=values.numbers,
            default=default,
            metavar="T[,T...]" if name in _TIMES else "N[,N...]",
            help=f"{text}; default {default[0]:g}",
        )
    for name, metavar, text in (
        ("latency", "T", "time of one message between ranks; default 0"),
        ("bandwidth", "N", "bytes for each unit of time; default 0: no limit"),
    ):
        default = getattr(defaults, name)
        group.add_argument(
            f"--{name}", type=values.number, default=default, metavar=metavar, help=text
        )


def costs_of(args: argparse.Namespace, num_stages: int, *, share: float = 1.0) -> Costs:
    """Makes the costs that the arguments of add_costs mean.

    Args:
        args: with them.
        num_stages: of the schedule that they are for.
        share: what a stage takes of each time.
    """
    check_lengths(args, num_stages)
    return Costs(
        forward=[time * share for time in args.forward],
        input=[time * share for time in args.input],
        weight=[time * share for time in args.weight],
        latency=args.latency,
        bandwidth=args.bandwidth,
        bytes=args.bytes,
    )


def check_lengths(args: argparse.Namespace, num_stages: int | None) -> None:
    """Checks that each cost is one number, or one for each stage if their number is known."""
    for name in (*_TIMES, "bytes"):
        given = len(getattr(args, name))
        if given not in (1, num_stages):
            several = "--stages with it" if num_stages is None else f"{num_stages} (--stages)"
            raise UsageError(f"--{name}: expected 1 number or {several}, got {given}")


def simulate(schedule: Schedule, costs: Costs) -> Timeline:
    """Simulates, and tells a schedule that can't run from costs that can't be added up."""
    try:
        return schedule.simulate(costs)
    except ValueError as error:
        reason = str(error)
    try:
        schedule.simulate()
    except ValueError as error:
        raise BadScheduleError(str(error)) from None
    raise UsageError(f"costs: {reason}")
