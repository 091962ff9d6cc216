"""Comparisons of groups of donors: populations, genes and latent spaces that differ, and in which cells."""

from scalloy.compare.abundance import abundance
from scalloy.compare.donors import DonorMap, donors
from scalloy.compare.expression import expression
from scalloy.compare.groups import groups
from scalloy.compare.witness import genes, witness

__all__ = ["DonorMap", "abundance", "donors", "expression", "genes", "groups", "witness"]
