"""The memory of a rank: the option for it, and what the core takes of it."""

import argparse

from pipert.cli import values


def add_memory_limit(parser: argparse.ArgumentParser) -> None:
    """Declares --memory: one number, or one for each rank."""
    parser.add_argument(
        "--memory",
        type=values.numbers,
        metavar="N[,N...]",
        help="activations (of a stage for a microbatch) that a rank may hold, or one for each rank",
    )


def memory_limit(args: argparse.Namespace) -> float | list[float] | None:
    """What --memory says, as a memory_limit."""
    limit: list[float] | None = args.memory
    return limit[0] if limit is not None and len(limit) == 1 else limit
