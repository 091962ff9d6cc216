"""Real data shipped with the package, larger data sets to download, and simulations with a known truth."""

from scalloy.datasets.cohorts import cohort
from scalloy.datasets.multiome import multiome
from scalloy.datasets.real import DOWNLOADS, citeseq, digits, fetch, kang, labelled, pbmc3k
from scalloy.datasets.screens import screen, true_changes, true_means
from scalloy.datasets.simulated import blobs, poisson_genes, programs, simulate, trial
from scalloy.datasets.songs import songs

__all__ = [
    "DOWNLOADS",
    "blobs",
    "citeseq",
    "cohort",
    "digits",
    "fetch",
    "kang",
    "labelled",
    "multiome",
    "pbmc3k",
    "poisson_genes",
    "programs",
    "screen",
    "simulate",
    "songs",
    "trial",
    "true_changes",
    "true_means",
]
