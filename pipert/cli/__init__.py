"""The command line: `pipert schedule list|show|verify|simulate|convert|compare|search`.

A command is a module of this package, named in _COMMANDS, with what Command asks for.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol

import pipert
from pipert.cli import compare, convert, listing, search, show, simulate, verify
from pipert.cli.failures import BadScheduleError, UsageError


class Command(Protocol):
    """What each command's module has."""

    NAME: str
    SUMMARY: str  # one line for --help

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares its arguments; --json is there already."""

    def run(self, args: argparse.Namespace) -> int:
        """Prints its answer. Returns the exit code."""


_COMMANDS: tuple[Command, ...] = (listing, show, verify, simulate, convert, compare, search)

# argparse takes "-1" for a value, but "-1,2" and "-inf" for options that it doesn't know.
_NEGATIVE = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "), self.prog)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(prog="pipert", description=pipert.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"pipert {pipert.__version__}")
    groups = parser.add_subparsers(dest="group", metavar="GROUP", required=True)
    text = "look at schedules, check them, compare them"
    group = groups.add_parser("schedule", help=text, description=text, allow_abbrev=False)
    commands = group.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        each = commands.add_parser(
            command.NAME, help=command.SUMMARY, description=command.SUMMARY, allow_abbrev=False
        )
        each.add_argument("--json", action="store_true", help="print one JSON object")
        command.add_arguments(each)
        each.set_defaults(run=command.run)
    return parser


def _join_negative(argv: Sequence[str]) -> list[str]:
    """Ties a value that begins with a minus to its option: --forward=-1,2."""
    joined: list[str] = []
    for text in argv:
        before = joined[-1] if joined else ""
        if _NEGATIVE.match(text) and before.startswith("--") and "=" not in before:
            joined[-1] = f"{before}={text}"
        else:
            joined.append(text)
    return joined


def _fail(program: str, message: str, code: int) -> int:
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: its words, without the program's name; None: those of this process.

    Returns:
        The exit code: 0 all is well, 1 the schedule is no good, 2 the words or a file are wrong.
    """
    program = "pipert"
    try:
        args = make_parser().parse_args(_join_negative(sys.argv[1:] if argv is None else argv))
        program = f"pipert {args.group} {args.command}"
        code: int = args.run(args)
        sys.stdout.flush()  # a disk that is full is told here, not after the end
        return code
    except SystemExit:  # --help and --version
        return 0
    except KeyboardInterrupt:
        return 130
    except UsageError as error:
        return _fail(error.program or program, str(error), 2)
    except BadScheduleError as error:
        return _fail(program, str(error), 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(program, f"{where}{error.strerror or error}", 2)
    except MemoryError:
        return _fail(program, "the schedule is too large for this machine's memory", 2)
