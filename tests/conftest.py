"""Shared by all tests: small simulated cells, quiet logs, one thread count."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

import scalloy as sa

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what is in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
logging.getLogger("scvi").setLevel(logging.ERROR)
ACCELERATOR = os.environ.get("SCALLOY_ACCELERATOR", "cpu")  # "gpu" tries most of it on one
QUICK = {"max_epochs": 2, "enable_progress_bar": False, "accelerator": ACCELERATOR}


#: Files that take longest; they come first, so that no worker is left with one of them at the end.
LONGEST = (
    "models/test_cgmdvae.py",
    "test_docs.py",
    "models/test_files.py",
    "contract/test_metamorphic.py",
    "test_pipeline.py",
    "contract/test_architecture.py",
    "contract/test_models.py",
    "contract/test_public.py",
    "contract/test_query.py",
    "contract/test_metamorphic_beside.py",
    "models/test_gmvae.py",
    "cli/test_models.py",
    "data/test_disk.py",
    "benchmark/test_transfer.py",
    "tune/test_search.py",
    "train/test_checkpoints.py",
    "reports/test_write.py",
    "contract/test_repeatable.py",
)


def pytest_collection_modifyitems(items):
    place = {Path(__file__).parent / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _figures():
    """Close what a test draws."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def cells():
    """200 cells x 40 genes with batches, conditions and further columns."""
    adata = sa.datasets.simulate(200, 40, seed=1, n_proteins=3)
    adata.obs["depth"] = adata.X.sum(axis=1).A1 if hasattr(adata.X.sum(axis=1), "A1") else 1.0
    adata.obs["score"] = torch.linspace(-1, 1, 200).numpy()
    adata.obs["lane"] = (["a", "b", "c", "d"] * 50)[:200]
    return adata


@pytest.fixture
def registries():
    """What a test registers is forgotten after it."""
    from scalloy.blocks.gene_likelihoods import LIKELIHOODS
    from scalloy.blocks.mixture_weights import WEIGHTS
    from scalloy.blocks.network_kinds import NETWORKS

    every = (LIKELIHOODS, WEIGHTS, NETWORKS, sa.baselines.SHIFTS, sa.metrics.METRICS, sa.models.MODELS)
    before = [dict(registry) for registry in every]
    yield
    for registry, known in zip(every, before, strict=True):
        registry.clear()
        registry.update(known)


@pytest.fixture(scope="session")
def quick():
    return QUICK


@pytest.fixture(scope="session")
def benchmark_data() -> Path:
    """Folder with the larger data sets."""
    folder = Path(os.environ.get("SCALLOY_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "kang_pbmc.h5ad").is_file():
        pytest.skip("the benchmark data are not at hand: set $SCALLOY_DATA")
    return folder


@pytest.fixture(scope="session")
def saved() -> Path:
    """A small CGMDVAE on the disk, with its cells; nobody writes there."""
    return Path(__file__).parent / "stored" / "format-2-python-3.11" / "cgmdvae"


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))
