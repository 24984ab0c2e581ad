"""Names that one which isn't there may have been meant for, for error messages."""

import difflib
from collections.abc import Iterable


def near_names(name: str, names: Iterable[str]) -> str:
    """The end of a message about a name that isn't among those; empty if none is like it."""
    near = difflib.get_close_matches(name, names, n=3)
    return f": did you mean {' or '.join(map(repr, near))}?" if near else ""
