"""`pipert schedule compare`: all schedules for the same sizes and costs, best first."""

import argparse
from dataclasses import asdict, dataclass

import pipert
from pipert import Costs, Schedule
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
        "--memory",
        type=values.number,
        metavar="N",
        help="activations that a rank may hold; mark schedules that hold more",
    )
    parser.epilog = (
        "Without --stages, schedules have as many stages as they like: then a time is what one "
        "rank takes for its whole share of the model, split evenly between its stages, and an "
        "activation is one of that share. With --stages both are of one stage. Stages are those of "
        "one copy of the model. zb_auto is made for the costs and --memory where that is better."
    )
    add_costs(parser)


@dataclass
class Result:
    """What one schedule does; the fields are those of the JSON."""

    name: str
    num_stages: int  # of one copy
    num_copies: int  # of the model
    options: dict[str, int]  # that it was built with; none: its defaults
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
        if self.num_copies > 1:
            number = "two" if self.num_copies == 2 else str(self.num_copies)
            notes.append(f"{number} copies of the weights")
        if self.asynchronous:
            notes.append(f"asynchronous, {self.weight_versions} versions of the weights")
        if self.over_memory:
            notes.append(f"over {memory:g} of memory")
        return "; ".join(notes)


def run(args: argparse.Namespace) -> int:
    """Prints the table, and below it what doesn't fit. Returns 1 if none fits sizes and memory."""
    check_lengths(args, args.stages)
    results: list[Result] = []
    unfit: list[tuple[str, str]] = []
    for name in dict.fromkeys(args.schedules or pipert.schedules()):
        try:
            results.append(_best_of(name, args))
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
    return 1 if all(result.over_memory for result in results) else 0


def _best_of(name: str, args: argparse.Namespace) -> Result:
    """As it is built by default, or made for the costs and memory where that is better."""
    schedule = _schedule_of(name, args, {})
    results = [_result_of(name, schedule, args, {})]
    if not formats.is_file(name):
        share = _share_of(schedule, args)
        options = pipert.schedule_options(
            name, _costs_of(schedule, args), memory_limit=args.memory, activation_size=share
        )
        if options:
            results.append(_result_of(name, _schedule_of(name, args, options), args, options))
    return min(results, key=lambda result: (result.over_memory, result.rank_among_others()))


def _schedule_of(name: str, args: argparse.Namespace, options: dict[str, int]) -> Schedule:
    """Raises ValueError if it doesn't fit the sizes, UsageError if there is no such schedule."""
    if not formats.is_file(name):
        try:
            return _build(name, args, options)
        except ValueError as error:
            if name not in pipert.schedules():
                raise UsageError(str(error)) from None
            raise
    schedule = formats.read(name)
    sizes = {
        "ranks": schedule.num_ranks,
        "microbatches": schedule.num_microbatches,
        "stages": _stages_of_copy(schedule),
    }
    for size, got in sizes.items():
        expected = getattr(args, size)
        if expected not in (None, got):
            raise ValueError(f"--{size} must be {got} for this file, got {expected}")
    return schedule.forward_only() if args.forward_only else schedule


def _build(name: str, args: argparse.Namespace, options: dict[str, int]) -> Schedule:
    """With as many stages in each copy of the model as the arguments say."""
    try:
        default = build(name, args, options, num_stages=None)
    except ValueError as reason:
        try:
            return build(name, args, options, num_stages=args.stages)
        except ValueError:
            raise reason from None
    num_copies = default.placement.num_copies
    if args.stages in (None, _stages_of_copy(default)):
        return default
    try:
        return build(name, args, options, num_stages=args.stages * num_copies)
    except ValueError:
        if num_copies == 1:
            raise
        raise ValueError(
            f"--stages must be {_stages_of_copy(default)}, of each of {num_copies} copies of the "
            f"model, got {args.stages}"
        ) from None


def _stages_of_copy(schedule: Schedule) -> int:
    return schedule.num_stages // schedule.placement.num_copies


def _share_of(schedule: Schedule, args: argparse.Namespace) -> float:
    """What a stage takes of the times and activations that were given."""
    return 1.0 if args.stages else schedule.num_ranks / _stages_of_copy(schedule)


def _costs_of(schedule: Schedule, args: argparse.Namespace) -> Costs:
    return costs_of(
        args,
        _stages_of_copy(schedule),
        share=_share_of(schedule, args),
        num_copies=schedule.placement.num_copies,
    )


def _result_of(
    name: str, schedule: Schedule, args: argparse.Namespace, options: dict[str, int]
) -> Result:
    share, costs = _share_of(schedule, args), _costs_of(schedule, args)
    timeline = simulate(schedule, costs)
    verdict = schedule.verify(
        forward_only=args.forward_only,
        memory_limit=args.memory,
        activation_size=share,
        weight_share=max(costs.weight_share),
    )
    return Result(
        name=name,
        num_stages=_stages_of_copy(schedule),
        num_copies=schedule.placement.num_copies,
        options=options,
        makespan=timeline.makespan,
        bubble_max=max(timeline.bubble),
        bubble_mean=sum(timeline.bubble) / len(timeline.bubble),
        span_bubble_max=max(timeline.span_bubble),
        peak_memory=max(timeline.peak_memory) * share,
        peak_bytes=None if timeline.peak_bytes is None else max(timeline.peak_bytes),
        over_memory=verdict.defect == "memory",
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
