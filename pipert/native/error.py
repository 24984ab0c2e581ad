"""NativeError: why a callable has no graph."""


class NativeError(Exception):
    """A callable can't run natively; the text says why."""
