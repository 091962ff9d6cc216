"""Benchmarks that compare our models with their rivals in one table: ``scalloy benchmark NAME``."""

from scalloy.benchmark.cell_eval import to_cell_eval
from scalloy.benchmark.clustering import clustering
from scalloy.benchmark.cost import cost
from scalloy.benchmark.everywhere import everywhere
from scalloy.benchmark.fit import fit
from scalloy.benchmark.generation import generation
from scalloy.benchmark.integration import integration
from scalloy.benchmark.label_tree import label_tree
from scalloy.benchmark.latent import latent
from scalloy.benchmark.likelihoods import likelihoods
from scalloy.benchmark.multimodal import multimodal
from scalloy.benchmark.scale import scale
from scalloy.benchmark.speed import speed
from scalloy.benchmark.structured import conditions
from scalloy.benchmark.transfer import transfer
from scalloy.benchmark.unknown import unknown

__all__ = [
    "clustering",
    "conditions",
    "cost",
    "everywhere",
    "fit",
    "generation",
    "integration",
    "label_tree",
    "latent",
    "likelihoods",
    "multimodal",
    "scale",
    "speed",
    "to_cell_eval",
    "transfer",
    "unknown",
]
