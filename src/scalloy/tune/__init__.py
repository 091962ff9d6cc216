"""Searches for settings on Ray Tune, and training on a Ray cluster."""
