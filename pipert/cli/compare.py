"""`pipert schedule compare`: all schedules for the same sizes and costs, best first."""

import argparse
from dataclasses import asdict, dataclass

import pipert
from pipert import Schedule
from pipert.cli import formats, values
from pipert.cli.costs import add_costs, check_lengths, costs_of, simulate
from pipert.cli.failures import BadScheduleError, UsageError
from pipert.cli.output import print_json, table
from pipert.cli.source import add_forward_only, add_sizes, build

NAME = "compare"
SUMMARY = "a table of schedules for given sizes and costs, best makespan first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the schedules, their sizes, the costs and the limit."""
    parser.add_argument(
        "schedules",
        metavar="NAME_OR_FILE",
        nargs="*",
        help="default: all names of `list`",
    )
    add_sizes(parser, required=True)
    add_forward_only(parser)
    parser.add_argument(
        "--memory", type=values.number, metavar="N", help="mark schedules whose peak is above it"
    )
    parser.epilog = (
        "Without --stages, schedules have as many stages as they like: then a time is what one "
        "rank takes for its whole share of the model, split evenly between its stages, and an "
        "activation is one of that share. With --stages both are of one stage."
    )
    add_costs(parser)


@dataclass
class Result:
    """What one schedule does; the fields are those of the JSON."""

    name: str
    num_stages: int
    makespan: float
    bubble_max: float
    bubble_mean: float
    span_bubble_max: float
    peak_memory: float  # the most of any rank
    peak_bytes: float | None  # likewise
    over_memory: bool
    asynchronous: bool
    weight_versions: int  # of a stage's weights at once, the most of any rank

    def rank_among_others(self) -> tuple[bool, float, float, str]:
        """Sorts the best first, and asynchronous ones, which compute something else, last.

        A time that differs by rounding alone is the same.
        """
        return (self.asynchronous, float(f"{self.makespan:.9g}"), self.peak_memory, self.name)

    def note(self, memory: float | None) -> str:
        """What else there is to know."""
        notes = []
        if self.asynchronous:
            notes.append(f"asynchronous, {self.weight_versions} versions of the weights")
        if self.over_memory:
            notes.append(f"over {memory:g} of memory")
        return "; ".join(notes)


def run(args: argparse.Namespace) -> int:
    """Prints the table, and below it what doesn't fit. Returns 1 if nothing fits."""
    check_lengths(args, args.stages)
    results: list[Result] = []
    unfit: list[tuple[str, str]] = []
    for name in dict.fromkeys(args.schedules or pipert.schedules()):
        try:
            results.append(_result_of(name, _schedule_of(name, args), args))
        except (ValueError, BadScheduleError) as error:
            unfit.append((name, str(error)))
    results.sort(key=Result.rank_among_others)
    if args.json:
        print_json(
            {
                "schedules": [asdict(result) for result in results],
                "unfit": [{"name": name, "reason": reason} for name, reason in unfit],
            }
        )
    else:
        _print(results, unfit, args.memory)
    return 0 if results else 1


def _schedule_of(name: str, args: argparse.Namespace) -> Schedule:
    """Raises ValueError if it doesn't fit the sizes, UsageError if there is no such schedule."""
    if not formats.is_file(name):
        try:
            return build(name, args, {})
        except ValueError as error:
            if name not in pipert.schedules():
                raise UsageError(str(error)) from None
            raise
    schedule = formats.read(name)
    for size in ("ranks", "microbatches", "stages"):
        expected, got = getattr(args, size), getattr(schedule, f"num_{size}")
        if expected not in (None, got):
            raise ValueError(f"--{size} must be {got} for this file, got {expected}")
    return schedule.forward_only() if args.forward_only else schedule


def _result_of(name: str, schedule: Schedule, args: argparse.Namespace) -> Result:
    rank_share = schedule.num_ranks * schedule.placement.num_copies / schedule.num_stages
    share = 1.0 if args.stages else rank_share
    timeline = simulate(schedule, costs_of(args, schedule.num_stages, share=share))
    peak = max(timeline.peak_memory) * share
    return Result(
        name=name,
        num_stages=schedule.num_stages,
        makespan=timeline.makespan,
        bubble_max=max(timeline.bubble),
        bubble_mean=sum(timeline.bubble) / len(timeline.bubble),
        span_bubble_max=max(timeline.span_bubble),
        peak_memory=peak,
        peak_bytes=None if timeline.peak_bytes is None else max(timeline.peak_bytes),
        over_memory=args.memory is not None and peak > args.memory,
        asynchronous=schedule.is_asynchronous,
        weight_versions=max(schedule.peak_weight_versions()) if schedule.is_asynchronous else 1,
    )


def _print(results: list[Result], unfit: list[tuple[str, str]], memory: float | None) -> None:
    head = ["schedule", "stages", "makespan", "bubble max", "mean", "peak memory", "note"]
    rows = [
        [
            result.name,
            str(result.num_stages),
            f"{result.makespan:g}",
            f"{result.bubble_max:.4f}",
            f"{result.bubble_mean:.4f}",
            f"{result.peak_memory:g}",
            result.note(memory),
        ]
        for result in results
    ]
    if rows:
        print(table([head, *rows], left=(0, len(head) - 1)))
    if rows and unfit:
        print()
    if unfit:
        print("not for these sizes:")
        print("\n".join(f"  {name}: {reason}" for name, reason in unfit))
