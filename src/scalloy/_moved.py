"""Modules under their names of before: imported with a warning, for one version."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

#: Old and new names, without ``scalloy.`` before them.
MOVED = {
    "baselines.learned": "perturbation.boosted_pooling",
    "baselines.pooling": "perturbation.pooling",
    "blocks.coupling": "blocks.coupled_prior",
    "blocks.expected": "blocks.expected_log1p",
    "blocks.fused": "kernels.count_log_prob",
    "blocks.joints": "blocks.joint_posteriors",
    "blocks.kernels": "kernels.cpu",
    "blocks.on_gpu": "kernels.gpu",
    "blocks.partition": "blocks.consensus_clustering",
    "blocks.priors": "blocks.mixture_prior",
    "blocks.readers": "blocks.label_classifiers",
    "blocks.sparse": "kernels.csr",
    "blocks.spikes": "blocks.spike_slab",
    "blocks.styles": "blocks.style_prior",
    "blocks.team": "kernels.threads",
    "data.align": "data.genes",
    "data.loader": "data.splitter",
    "data.pieces": "data.chunks",
    "data.reading": "files.reading",
    "data.writing": "files.atomic_write",
    "demo": "cli.demo",
    "train.cluster": "tune.cluster",
    "train.memory": "train.malloc",
    "train.recorded": "train.cuda_graphs",
    "train.search": "tune.search",
    "train.together": "train.distributed",
    "vae.placing": "vae.component_init",
    "vae.query": "vae.surgery",
}


class MovedModules(MetaPathFinder):
    """Finds a module that has moved where it is now."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "scalloy" or name not in MOVED:
            return None
        return spec_from_loader(fullname, _Alias(f"scalloy.{MOVED[name]}"))


class _Alias(Loader):
    """Loads one module in place of another."""

    def __init__(self, new: str) -> None:
        self.new = new

    def exec_module(self, module: ModuleType) -> None:
        warnings.warn(
            f"`{module.__name__}` has moved and will not be found in the next version: import `{self.new}`.",
            FutureWarning,
            stacklevel=2,
        )
        sys.modules[module.__name__] = import_module(self.new)


def install() -> None:
    """Find modules under their old names from now on."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
