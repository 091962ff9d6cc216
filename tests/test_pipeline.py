"""README's pipeline from the cells to the report, with more cells than scanpy's neighbours take exactly."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sklearn.neighbors import NearestNeighbors

import scalloy as sa

mpl.use("Agg")
N = 10_000  # above 8,192 neighbours come from pynndescent, and beyond 4,096 cells those of UMAP do, too
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cells():
    """Rows of the embedded cells, drawn with replacement, with noise: 10,000 cells x 150 genes."""
    kang, rng = sa.datasets.kang(), np.random.default_rng(0)
    genes = np.sort(np.argsort(-np.asarray(kang.X.mean(axis=0)).ravel())[:150])
    adata = kang[rng.integers(kang.n_obs, size=N), genes].copy()
    adata.X = sp.csr_matrix(rng.poisson(adata.X.toarray() + 0.05).astype(np.float32))
    adata.obs_names = [f"cell_{i}" for i in range(N)]
    return adata


@pytest.fixture(scope="module")
def trained(cells):
    sa.CGMDVAE.setup_anndata(cells, condition_key="condition", labels_key="cell_type")
    model = sa.CGMDVAE(cells, n_hidden=32, n_latent=6)
    model.train(max_epochs=3, enable_progress_bar=False, accelerator="cpu")
    model.annotate()
    return model


def test_from_neighbours_to_the_report(cells, trained, tmp_path):
    sc.pp.neighbors(cells, use_rep="X_cgmdvae")
    some, z = np.arange(0, N, 50), cells.obsm["X_cgmdvae"]
    exact = NearestNeighbors(n_neighbors=15).fit(z).kneighbors(z[some], return_distance=False)
    found = [set(cells.obsp["distances"][i].indices) | {i} for i in some]
    assert np.mean([len(set(a) & b) / 15 for a, b in zip(exact, found, strict=True)]) > 0.9
    sc.tl.umap(cells, maxiter=20)
    assert cells.obsm["X_umap"].shape == (N, 2)
    assert np.isfinite(cells.obsm["X_umap"]).all()
    sc.tl.leiden(cells, flavor="igraph", n_iterations=2, directed=False)
    assert 2 < cells.obs["leiden"].nunique() < 200
    logged = cells.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    for key in ("cgmdvae_cluster", "cgmdvae_label", "leiden"):
        sizes = logged.obs[key].value_counts()
        sc.tl.rank_genes_groups(logged, key, groups=list(sizes.index[sizes > 1]))
    cells.uns["rank_genes_groups"] = logged.uns["rank_genes_groups"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert list(again.obs["cgmdvae_cluster"]) == list(cells.obs["cgmdvae_cluster"])
    np.testing.assert_array_equal(again.obsm["X_cgmdvae"], z)
    trained.save(tmp_path / "model")
    loaded = sa.load(tmp_path / "model", again)
    np.testing.assert_allclose(loaded.get_latent_representation(), z, atol=1e-5)
    loaded.report(tmp_path / "report.html")
    assert f"{N:,} cells" in re.sub(r"\s+", " ", (tmp_path / "report.html").read_text())


def test_prediction_and_pictures(cells, trained):
    chosen = (cells.obs["cell_type"] == "B cells") & (cells.obs["condition"] == "control")
    treated = trained.transfer(cells[chosen].copy(), to="stimulated")
    assert treated.shape == (chosen.sum(), 150)
    ax = sa.pl.latent(trained, "cell_type")  # its own UMAP
    assert sum(len(points.get_offsets()) for points in ax.collections) >= N
    mpl.pyplot.close("all")


def test_what_is_pinned_is_allowed():
    """What is installed with the pins is what is installed without them, but for newer versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    needed = [Requirement(line) for group in groups for line in group]
    pins = [
        Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"
    ]
    for python in ("3.11", "3.12"):
        around = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
        chosen = {canonicalize_name(p.name): p for p in pins if p.marker is None or p.marker.evaluate(around)}
        for wanted in needed:
            if pin := chosen.get(canonicalize_name(wanted.name)):
                (version,) = (s.version for s in pin.specifier)
                assert wanted.specifier.contains(version), f"{pin} is not allowed by {wanted}"
        assert "pynndescent" in chosen
    assert any(w.name == "pynndescent" and not w.specifier.contains("0.7.0") for w in needed)
