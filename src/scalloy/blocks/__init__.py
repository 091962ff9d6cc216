"""Shared parts of the mathematics, torch only."""
