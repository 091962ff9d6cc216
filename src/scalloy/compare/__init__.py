"""Tests of whether groups of cells differ in a latent space, and in which cells and genes they do."""

from scalloy.compare.donors import DonorMap, donors
from scalloy.compare.groups import groups
from scalloy.compare.witness import genes, witness

__all__ = ["DonorMap", "donors", "genes", "groups", "witness"]
