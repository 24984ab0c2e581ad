"""How answers are printed."""

import json
from collections.abc import Sequence
from typing import Any

from pipert import Action


def print_json(answer: dict[str, Any]) -> None:
    """Prints one line of JSON; an action is its text."""
    print(json.dumps(answer, default=_text_of, allow_nan=False))


def _text_of(value: Any) -> str:
    if isinstance(value, Action):
        return str(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def table(rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()) -> str:
    """Lines up columns to the right, and those in `left` to the left. The first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
