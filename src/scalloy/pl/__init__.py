"""Plots, one per function: each draws into axes and returns them, and nothing is shown or saved."""

from scalloy.pl.abundance import abundance
from scalloy.pl.cluster_tree import cluster_tree
from scalloy.pl.clusters import clusters
from scalloy.pl.compare import null
from scalloy.pl.confusion import confusion
from scalloy.pl.coupling import coupling
from scalloy.pl.donors import donors
from scalloy.pl.history import history, terms
from scalloy.pl.latent import embedding, latent
from scalloy.pl.likelihoods import counts, likelihoods
from scalloy.pl.neighbourhoods import neighbourhoods
from scalloy.pl.responses import dose_response, interactions
from scalloy.pl.transfer import held_out, joint, transfer
from scalloy.pl.traversal import traversal
from scalloy.pl.volcano import volcano

__all__ = [
    "abundance",
    "cluster_tree",
    "clusters",
    "confusion",
    "counts",
    "coupling",
    "donors",
    "dose_response",
    "embedding",
    "held_out",
    "history",
    "interactions",
    "joint",
    "latent",
    "likelihoods",
    "neighbourhoods",
    "null",
    "terms",
    "transfer",
    "traversal",
    "volcano",
]
