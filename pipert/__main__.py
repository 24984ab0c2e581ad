"""`python -m pipert`, and the `pipert` command."""

import signal
import sys

from pipert.cli import main


def run() -> int:
    """Runs the command line as a process of its own.

    A reader that goes away and Ctrl-C end it at once and without a word, as they end any command:
    in C++ too, which would not see Python's handlers before it is done.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return main()


if __name__ == "__main__":
    sys.exit(run())
