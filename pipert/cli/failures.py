"""How a command fails: each kind has its exit code (pipert.cli.main)."""


class UsageError(Exception):
    """What was typed, or a file that it names, is wrong.

    `program` is the command that it was typed to, if the parser knows it better than the caller.
    """

    def __init__(self, message: str, program: str | None = None) -> None:
        super().__init__(message)
        self.program = program


class BadScheduleError(Exception):
    """The schedule can be read, but not run."""
