"""Hostile input for the tests of the whole public API."""

from hostile import cases, columns

__all__ = ["cases", "columns"]
