"""How a command fails: each kind has its exit code (pipert.cli.main)."""

import re


def in_words_of_options(error: ValueError) -> str:
    """The core's message, with the options where it has its own arguments."""
    words = re.sub(r"\bmemory_limit\b", "--memory", str(error))
    words = re.sub(r"\bnum_(ranks|microbatches|stages)\b", r"--\1", words)
    return re.sub(r"\b(weight|tied)_(share|stages)\b", r"--\1-\2", words)


class UsageError(Exception):
    """What was typed, or a file that it names, is wrong.

    `program` is the command that it was typed to, if the parser knows it better than the caller.
    """

    def __init__(self, message: str, program: str | None = None) -> None:
        super().__init__(message)
        self.program = program


class BadScheduleError(Exception):
    """The schedule can be read, but not run."""
