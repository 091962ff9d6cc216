"""Cells on their way to a model: checks, splits, batches; and from files that nobody vouches for."""

from scalloy.data.reading import read

__all__ = ["read"]
