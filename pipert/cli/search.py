"""`pipert schedule search`: the best schedule that can be found for given costs and memory."""

import argparse
from typing import Any

from pipert import Costs, Placement, Schedule, SearchResult, periodic_schedule
from pipert.cli import formats, values
from pipert.cli.costs import add_costs, costs_of
from pipert.cli.failures import UsageError, in_words_of_options
from pipert.cli.memory import add_memory_limit, memory_limit
from pipert.cli.output import print_json, table
from pipert.cli.source import add_sizes, describe, describe_json

NAME = "search"
SUMMARY = "find a schedule for given costs and memory, with a bound for how good any can be"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares sizes, costs, limits and the file to be written."""
    add_sizes(parser, required=True)
    add_memory_limit(parser)
    parser.add_argument(
        "--objective",
        choices=("makespan", "span"),
        default="makespan",
        help="what to make short: all of it (the default), or the longest span of a rank",
    )
    parser.add_argument(
        "--placement",
        choices=("loop", "v"),
        action="append",
        help="where stages are; may be repeated; default: both, or the loop for one stage a rank",
    )
    parser.add_argument(
        "--time-limit", type=values.number, metavar="SECONDS", help="of the search; default 10"
    )
    parser.add_argument(
        "--iterations",
        type=values.integer(0),
        metavar="N",
        help="orders to try for each placement, for an answer that is the same every time",
    )
    parser.add_argument(
        "--seed", type=values.integer(0), default=0, metavar="N", help="of random numbers"
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="start from the pattern of an exact solver too; needs the extra pipert[search]",
    )
    parser.add_argument("--out", metavar="OUT", help="write the schedule to a .csv or .json file")
    parser.add_argument("--force", action="store_true", help="overwrite OUT if it is there")
    # A search puts F, I and W in order, and nothing else.
    add_costs(parser, without=("recompute", "unshard", "reshard", "offload", "reload"))


def run(args: argparse.Namespace) -> int:
    """Prints what was found, and writes it if asked to."""
    if args.out == formats.STANDARD_STREAM:
        raise UsageError("--out: expected a file, got -")
    result = _search(args)
    if args.out:
        formats.write(result.schedule, args.out, overwrite=args.force)
    if args.json:
        print_json({**describe_json(result.schedule), **_result_json(result, args)})
    else:
        print(describe(result.schedule))
        print(
            f"{args.objective} {result.value:g} by {result.source}, "
            f"bound {result.bound:g}, gap {100 * result.gap:.2f} %"
        )
        rows = [[name, f"{value:g}"] for name, value in result.seeds]
        if result.source not in dict(result.seeds):
            rows.insert(0, [result.source, f"{result.value:g}"])
        print(table([["schedule", args.objective], *rows], left=(0,)))
    return 0


def _search(args: argparse.Namespace) -> SearchResult:
    stages = args.stages
    if stages is None:
        stages = args.ranks * (2 if args.placement == ["v"] else 1)
    costs = costs_of(args, stages)
    try:
        return Schedule.search(
            costs,
            args.ranks,
            args.microbatches,
            memory_limit(args),
            objective=args.objective,
            placements=args.placement,
            num_stages=stages,
            seeds=_patterns(args, costs, stages) if args.exact else [],
            time_limit=args.time_limit,
            iterations=args.iterations,
            seed=args.seed,
        )
    except ValueError as error:
        raise UsageError(in_words_of_options(error)) from None


def _patterns(args: argparse.Namespace, costs: Costs, stages: int) -> list[Schedule]:
    """The best pattern on each placement; none where the solver finds none in its time."""
    make = {"loop": Placement.loop, "v": Placement.v_shaped}
    patterns = []
    for word in args.placement or (["loop"] if stages == args.ranks else ["loop", "v"]):
        try:
            pattern = periodic_schedule(
                costs,
                placement=make[word](args.ranks, stages),
                num_microbatches=args.microbatches,
                memory_limit=memory_limit(args),
            )
        except TimeoutError:
            continue
        except ImportError as error:
            raise UsageError(f"--exact: {error}") from None
        patterns.append(pattern)
    return patterns


def _result_json(result: SearchResult, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "objective": args.objective,
        "value": result.value,
        "source": result.source,
        "options": result.options,
        "bound": result.bound,
        "gap": result.gap,
        "makespan": result.timeline.makespan,
        "spans": result.timeline.spans,
        "peak_memory": result.timeline.peak_memory,
        "placement": result.schedule.placement.ranks,
        "seeds": [{"name": name, "value": value} for name, value in result.seeds],
        "iterations": result.iterations,
        "seconds": result.seconds,
        "out": args.out,
    }
