"""The files that schedules are kept in, by the ending of their name."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipert import Schedule, schedules
from pipert.cli.failures import UsageError

STANDARD_STREAM = "-"  # for CSV

_Format = TypeVar("_Format")
_READERS: dict[str, Callable[[str], Schedule]] = {".csv": Schedule.from_csv}
_WRITERS: dict[str, Callable[[Schedule], str]] = {".csv": Schedule.to_csv}


def is_file(text: str) -> bool:
    """Whether `text` means a file; the name of a schedule never does."""
    if text == STANDARD_STREAM:
        return True
    path = Path(text)
    looks_so = "/" in text or path.suffix in _READERS or path.is_file()
    return looks_so and text not in schedules()


def read(file: str) -> Schedule:
    """Reads a schedule; it may be one that verify refuses."""
    try:
        if file == STANDARD_STREAM:
            text = sys.stdin.buffer.read().decode(errors="replace")
            return Schedule.parse_csv(text, name=file)
        return _of_suffix(_READERS, file)(file)
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from None


def write(schedule: Schedule, file: str, *, overwrite: bool) -> None:
    """Writes a schedule in the format that the file's name asks for."""
    if file == STANDARD_STREAM:
        sys.stdout.write(schedule.to_csv())
        return
    writer = _of_suffix(_WRITERS, file)
    try:
        with Path(file).open("w" if overwrite else "x", encoding="utf-8") as opened:
            opened.write(writer(schedule))
    except FileExistsError:
        raise UsageError(f"{file}: the file is there already, --force overwrites it") from None


def _of_suffix(formats: dict[str, _Format], file: str) -> _Format:
    suffix = Path(file).suffix
    if suffix not in formats:
        raise UsageError(f"expected a file that ends in {' or '.join(formats)}, got {file!r}")
    return formats[suffix]
