"""Cells on their way to a model: checks, splits, batches; and from files that nobody vouches for."""

from scalloy.data.disk import open_store
from scalloy.data.reading import read
from scalloy.data.store import write_store

__all__ = ["open_store", "read", "write_store"]
