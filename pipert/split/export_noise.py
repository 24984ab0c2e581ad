"""What torch.export writes to stderr that its caller can't do anything about."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator

_LOGGERS = (
    "torch._export.non_strict_utils",
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
)


@contextlib.contextmanager
def no_export_noise() -> Iterator[None]:
    """Keeps back warnings of sizes that became constants, and what a trace that fails was doing.

    What else is written to stderr meanwhile is written at the end.
    """
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    written = io.StringIO()
    noise = ""
    try:
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with contextlib.redirect_stderr(written):
            yield
    except Exception as error:
        if hasattr(error, "partial_fx_graph"):
            noise = f"{error.partial_fx_graph}\n"
        raise
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        sys.stderr.write(written.getvalue().replace(noise, "") if noise else written.getvalue())
