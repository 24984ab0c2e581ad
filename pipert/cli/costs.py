"""What actions and messages take: the options of it, and the simulation under them."""

import argparse
from collections.abc import Collection

from pipert import Costs, Schedule, Timeline
from pipert.cli import values
from pipert.cli.failures import BadScheduleError, UsageError

_TIMES = {
    "forward": "time of F; default 1",
    "input": "time of I, the input half of backward; B takes I and W; default 1",
    "weight": "time of W, the weight half of backward; default 1",
    "recompute": "time of R, the forward again; default as F",
    "update": "time of the optimizer's update of a stage; at the end if the schedule has none",
    "reduce": "time of the reduction of a stage's gradients; likewise, before the updates",
    "unshard": "time of UNSHARD",
    "reshard": "time of RESHARD",
    "offload": "time that OFFLOAD holds up its rank",
    "reload": "time that RELOAD holds up its rank",
}
_BYTES = {
    "bytes": "of what a stage hands to the next alone",
    "gradient_bytes": "of what comes back for it; default as --bytes",
}
_MEMORY = {
    "activation_bytes": "of one activation of a stage on its rank: peaks in bytes",
    "weight_share": "of it from I to W, 0 to 1; default 1",
}
_UNSCALED = (*_BYTES, "weight_share")


def add_costs(parser: argparse.ArgumentParser, *, without: Collection[str] = ()) -> None:
    """Declares the costs, but those `without`; what isn't given has the default of pipert.Costs."""
    group = parser.add_argument_group(
        "costs", "in any one unit of time; one number, or T for each stage with commas between"
    )
    times = {name: text for name, text in _TIMES.items() if name not in without}
    _add_of_stages(group, times, "T[,T...]")
    group = parser.add_argument_group("messages between ranks")
    for name, metavar, text in (
        ("latency", "T", "time of one message; default 0"),
        ("bandwidth", "N", "bytes for each unit of time; default 0: no limit"),
    ):
        group.add_argument(f"--{name}", type=values.number, default=0.0, metavar=metavar, help=text)
        group.add_argument(
            f"--{name}-of",
            type=values.edge_number,
            action="append",
            default=[],
            metavar=f"A-B={metavar}",
            help=f"{name} from rank A to rank B; may be repeated",
        )
    _add_of_stages(group, _BYTES, "N[,N...]")
    group.add_argument(
        "--skip",
        type=values.skip,
        action="append",
        default=[],
        metavar="A-B[,C...]=N",
        help="bytes from stage A beyond its neighbours, to the nearest first: an activation to "
        "later stages, a gradient to earlier ones; may be repeated",
    )
    group.add_argument(
        "--link",
        type=values.edges,
        action="append",
        default=[],
        metavar="A-B[,C-D...]",
        help="edges that share one link; may be repeated; other edges have one each",
    )
    group.add_argument(
        "--blocking", action="store_true", help="a transfer holds up both of its ranks"
    )
    _add_of_stages(parser.add_argument_group("memory"), _MEMORY, "N[,N...]")


def _add_of_stages(group: argparse._ArgumentGroup, texts: dict[str, str], metavar: str) -> None:
    for name, text in texts.items():
        group.add_argument(_option(name), type=values.numbers, metavar=metavar, help=text)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def costs_of(
    args: argparse.Namespace, num_stages: int, *, share: float = 1.0, num_copies: int = 1
) -> Costs:
    """Makes the costs that the arguments of add_costs mean.

    Args:
        args: with them.
        num_stages: of one copy of the model.
        share: what a stage takes of each time, and of an activation's bytes.
        num_copies: of the model; a stage costs the same in each.
    """
    check_lengths(args, num_stages)
    given = {}
    for name, numbers in _given(args).items():
        factor = 1.0 if name in _UNSCALED else share
        given[name] = [factor * number for number in numbers]
        if len(numbers) > 1:
            given[name] *= num_copies
    for name in ("forward", "input", "weight"):
        given.setdefault(name, [share])
    return Costs(
        **given,
        latency={None: args.latency, **_of_edges("--latency-of", args.latency_of)},
        bandwidth={None: args.bandwidth, **_of_edges("--bandwidth-of", args.bandwidth_of)},
        links=args.link,
        skips=args.skip,
        blocking=args.blocking,
    )


def check_lengths(args: argparse.Namespace, num_stages: int | None) -> None:
    """Checks that each cost is one number, or one for each stage if their number is known."""
    for name, numbers in _given(args).items():
        if len(numbers) not in (1, num_stages):
            several = "--stages with it" if num_stages is None else f"{num_stages} (--stages)"
            raise UsageError(f"{_option(name)}: expected 1 number or {several}, got {len(numbers)}")


def _given(args: argparse.Namespace) -> dict[str, list[float]]:
    # A command may be without some of them.
    numbers = {name: getattr(args, name, None) for name in (*_TIMES, *_BYTES, *_MEMORY)}
    return {name: given for name, given in numbers.items() if given is not None}


def _of_edges(
    option: str, given: list[tuple[tuple[int, int], float]]
) -> dict[tuple[int, int] | None, float]:
    numbers: dict[tuple[int, int] | None, float] = {}
    for edge, number in given:
        if edge in numbers:
            raise UsageError(f"{option}: expected each edge once, got {edge[0]}-{edge[1]} twice")
        numbers[edge] = number
    return numbers


def simulate(schedule: Schedule, costs: Costs) -> Timeline:
    """Simulates, and tells a schedule that can't run from costs that can't be added up."""
    try:
        return schedule.simulate(costs)
    except ValueError as error:
        reason = str(error)
    try:
        schedule.simulate(Costs(blocking=costs.blocking))
    except ValueError as error:
        raise BadScheduleError(str(error)) from None
    raise UsageError(f"costs: {reason}")
