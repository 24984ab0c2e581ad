"""What the values of options may be: each function reads one, for argparse."""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable

_MAX_INT = 2**31 - 1  # sizes are 32 bits wide in C++
_TOO_LARGE = 2**63  # for an option of a schedule


def integer(least: int, most: int = _MAX_INT) -> Callable[[str], int]:
    """Reads an integer from `least` to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise ArgumentTypeError(f"expected an integer from {least} to {most}, got {text!r}")
        return value

    return read


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(text)
    return value


def number(text: str) -> float:
    """Reads a number of at least 0."""
    try:
        return _number(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a number of at least 0, got {text!r}") from None


def numbers(text: str) -> list[float]:
    """Reads one number of at least 0, or several with commas between them."""
    try:
        return [_number(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentTypeError(
            f"expected a number of at least 0, or one for each stage as 1.0,2.0, got {text!r}"
        ) from None


def indices(text: str) -> list[int]:
    """Reads integers of at least 0 with commas between them."""
    read = integer(0)
    try:
        return [read(part) for part in text.split(",")]
    except ArgumentTypeError:
        raise ArgumentTypeError(f"expected integers of at least 0 as 0,3, got {text!r}") from None


def _edge(text: str) -> tuple[int, int]:
    source, dash, destination = text.partition("-")
    if not (dash and source.isdecimal() and destination.isdecimal()):
        raise ValueError(text)
    return integer(0)(source), integer(0)(destination)


def edge_number(text: str) -> tuple[tuple[int, int], float]:
    """Reads A-B=NUMBER: a number of at least 0 for the edge from rank A to rank B."""
    edge, _, value = text.partition("=")
    try:
        return _edge(edge), _number(value)
    except ValueError:
        raise ArgumentTypeError(
            f"expected A-B=NUMBER, a number of at least 0 from rank A to rank B, got {text!r}"
        ) from None


def edges(text: str) -> list[tuple[int, int]]:
    """Reads one edge A-B, or several with commas between them."""
    try:
        return [_edge(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentTypeError(
            f"expected edges from rank A to rank B as A-B,C-D, got {text!r}"
        ) from None


def skip(text: str) -> tuple[int, list[int], float]:
    """Reads A-B,C=NUMBER: a number of at least 0 for what stage A hands to others."""
    ends, _, value = text.partition("=")
    maker, _, readers = ends.partition("-")
    try:
        return integer(0)(maker), indices(readers), _number(value)
    except (ValueError, ArgumentTypeError):
        raise ArgumentTypeError(
            "expected A-B=NUMBER or A-B,C=NUMBER, a number of at least 0 from stage A to others, "
            f"got {text!r}"
        ) from None


def option(text: str) -> tuple[str, int]:
    """Reads NAME=INTEGER."""
    name, _, value = text.partition("=")
    try:
        parsed = int(value)
    except ValueError:
        parsed = _TOO_LARGE
    if not name or abs(parsed) >= _TOO_LARGE:
        raise ArgumentTypeError(f"expected NAME=INTEGER, got {text!r}")
    return name, parsed


def file_ending_in(suffix: str) -> Callable[[str], str]:
    """Reads the name of a file to be written."""

    def read(text: str) -> str:
        if not text.endswith(suffix):
            raise ArgumentTypeError(f"expected a file that ends in {suffix}, got {text!r}")
        return text

    return read
