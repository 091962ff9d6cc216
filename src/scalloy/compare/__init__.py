"""Are two groups of cells drawn from the same distribution in a latent space? Which cells differ, and how?"""

from scalloy.compare.groups import groups
from scalloy.compare.witness import genes, witness

__all__ = ["genes", "groups", "witness"]
