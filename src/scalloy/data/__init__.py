"""Cells on their way to a model: checks, splits, batches."""
