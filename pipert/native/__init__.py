"""Stages without Python: exports a callable to a program that C++ runs operator by operator.

Called by the C++ runtime, between passes alone: an export changes what all of torch does.
"""

from pipert.native.error import NativeError
from pipert.native.export import export
from pipert.native.state import difference, state_of

__all__ = ["NativeError", "difference", "export", "state_of"]
