"""Cuts a model into stages."""

from pipert.split.structure import split

__all__ = ["split"]
