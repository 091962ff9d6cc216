"""One page about a trained model: what it was trained on, how well, and what to look at."""

from scalloy.report.write import write

__all__ = ["write"]
