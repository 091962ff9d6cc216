"""Cells on their way to a model: reading of untrusted files, checks, splits, stores on disk and batches."""

from scalloy.data.disk import open_store
from scalloy.data.store import write_store
from scalloy.files.reading import read

__all__ = ["open_store", "read", "write_store"]
