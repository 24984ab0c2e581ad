"""The files that schedules are kept in: a format is a word, or the ending of a file's name."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipert import Placement, Schedule, schedules
from pipert.cli.failures import UsageError

STANDARD_STREAM = "-"  # for CSV, if no format is given
FORMATS = ("csv", "json", "zero-bubble")  # that can be read

_Format = TypeVar("_Format")
_READERS: dict[str, Callable[[str], Schedule]] = {
    ".csv": Schedule.from_csv,
    ".json": Schedule.from_json,
}
_WRITERS: dict[str, Callable[[Schedule], str]] = {
    ".csv": Schedule.to_csv,
    ".json": Schedule.to_json,
}


def is_file(text: str) -> bool:
    """Whether `text` means a file; the name of a schedule never does."""
    if text == STANDARD_STREAM:
        return True
    path = Path(text)
    looks_so = "/" in text or path.suffix in _READERS or path.is_file()
    return looks_so and text not in schedules()


def read(file: str, format_: str | None = None, placement: Placement | None = None) -> Schedule:
    """Reads a schedule; it may be one that verify refuses.

    Args:
        file: a path, or - for stdin.
        format_: out of FORMATS; None: what the ending says, CSV for stdin.
        placement: for the zero-bubble notation.
    """
    try:
        if file != STANDARD_STREAM and format_ is None:
            return _of_suffix(_READERS, file)(file)
        if file == STANDARD_STREAM:
            return _parse(sys.stdin.buffer.read(), format_, file, placement)
        return _parse(Path(file).read_bytes(), format_, Path(file).stem, placement)
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from None


def _parse(data: bytes, format_: str | None, name: str, placement: Placement | None) -> Schedule:
    if format_ == "json":
        return Schedule.parse_json(data)
    if format_ == "zero-bubble":
        return Schedule.parse_zero_bubble(data, placement=placement, name=name)
    return Schedule.parse_csv(data, name=name)


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
