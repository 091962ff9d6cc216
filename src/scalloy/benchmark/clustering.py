"""Clustering without labels on data with known types; the labels give at most the number of clusters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from anndata import AnnData
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score
from sklearn.mixture import GaussianMixture

from scalloy import metrics
from scalloy.benchmark.evidence import keeps_seed
from scalloy.benchmark.fit import QUIET, load, normed_copy
from scalloy.models import CGMDVAE, GMVAE, ScalloyModel

SETS = ("pbmc4k_dcc", "mouse_bladder_2746", "zeisel_cortex", "pbmc3k", "paul15")


@keeps_seed()
def clustering(
    data: Sequence[str] = SETS,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    scvi_epochs: int | None = 0,
    n_genes: int = 2000,
    max_epochs: int | None = None,
    original: bool = False,
    **model: Any,
) -> pd.DataFrame:
    """Score the clusters of our models and their rivals against known cell types.

    Scores are ARI, NMI, macro-F1 and accuracy after one-to-one matching, and the number of types with more
    than 2 % of the cells that no cluster represents (``large_types_lost``).

    Parameters
    ----------
    data
        Names of data sets, see :func:`scalloy.benchmark.fit.load`.
    seeds
        Random seeds; every method runs once with each.
    scvi_epochs
        Number of epochs of SCVI as a rival; 0 leaves it out, ``None`` uses its default.
    n_genes
        Number of most variable genes that are kept.
    max_epochs
        Maximum number of epochs of our models; ``None`` uses their default.
    original
        Whether to include the thesis' formulation, ``CGMDVAE.original`` (its networks are large).
    **model
        Arguments of CGMDVAE.

    Examples
    --------
    >>> table = sa.benchmark.clustering(["pbmc3k"], seeds=[0])  # doctest: +SKIP
    >>> table.groupby("method")["ari"].median()  # doctest: +SKIP
    """
    rows: list[dict[str, Any]] = []
    for name in data:
        adata = load(name, n_genes)
        y = adata.obs["cell_type"].astype(str).to_numpy()
        k, pcs = len(np.unique(y)), principal_components(adata).astype(np.float64)
        for seed in seeds:
            found = {
                "k-means on PCs": KMeans(k, n_init=10, random_state=seed).fit_predict(pcs),
                "GMM on PCs": GaussianMixture(
                    k, covariance_type="diag", n_init=3, random_state=seed
                ).fit_predict(pcs),
                "Leiden on PCs, default": leiden(pcs, seed),
                "Leiden on PCs, k given": leiden(pcs, seed, k),
                "CGMDVAE, k given": ours(adata, seed, max_epochs, n_clusters=k, **model),
                **_tree(adata, seed, max_epochs, k, **model),
                "GMVAE, k given": ours(adata, seed, max_epochs, GMVAE, n_clusters=k),
            }
            if original:
                found["CGMDVAE.original"] = ours(adata, seed, max_epochs, make=CGMDVAE.original, n_clusters=k)
            if scvi_epochs != 0:
                z = scvi_latent(adata, seed, scvi_epochs)
                found["SCVI + k-means"] = KMeans(k, n_init=10, random_state=seed).fit_predict(z)
                found["SCVI + Leiden, default"] = leiden(z, seed)
            for method, clusters in found.items():
                rows.append({"data": name, "method": method, "seed": seed, **scores(y, clusters)})
    return pd.DataFrame(rows)


def ours(
    adata: AnnData,
    seed: int,
    max_epochs: int | None,
    cls: type[ScalloyModel] = CGMDVAE,
    make: Callable[..., ScalloyModel] | None = None,
    **model: Any,
) -> np.ndarray:
    """Train one of our models and return its clusters; ``make`` replaces the class as constructor."""
    return _trained(adata, seed, max_epochs, make or cls, cls, **model).get_clusters().astype(str).to_numpy()


def _trained(
    adata: AnnData,
    seed: int,
    max_epochs: int | None,
    make: Callable[..., ScalloyModel],
    cls: type[ScalloyModel] = CGMDVAE,
    **model: Any,
) -> Any:
    scvi.settings.seed = seed
    cls.setup_anndata(adata)
    made = make(adata, **model)
    made.train(max_epochs=max_epochs, **QUIET)
    return made


def _tree(adata: AnnData, seed: int, max_epochs: int | None, k: int, **model: Any) -> dict[str, np.ndarray]:
    """Return the clusters of one model that is made without their number, at its own number and at ``k``."""
    made = _trained(adata, seed, max_epochs, CGMDVAE, n_clusters=None, **model)
    most = int(made.get_cluster_tree().index.max())
    cuts = {"CGMDVAE, k found": None, "CGMDVAE, its tree cut at k": min(k, most)}
    return {name: made.get_clusters(n=n).astype(str).to_numpy() for name, n in cuts.items()}


def principal_components(adata: AnnData, n: int = 30) -> np.ndarray:
    """Return the principal components of log-normalised counts."""
    normed = normed_copy(adata)
    sc.pp.pca(normed, n_comps=n)
    return np.array(normed.obsm["X_pca"])


def centred(x: np.ndarray, group: Sequence[Any] | np.ndarray | None) -> np.ndarray:
    """Return points of which those of each group have the mean 0; the same points if there are no groups.

    Parameters
    ----------
    x
        Points x dimensions.
    group
        Group of each point.
    """
    out = x.copy()
    for one in () if group is None else np.unique(group):
        rows = np.asarray(group) == one
        out[rows] -= out[rows].mean(0)
    return out


def leiden(x: np.ndarray, seed: int, k: int | None = None) -> np.ndarray:
    """Return Leiden clusters of the 15-neighbour graph; ``k`` searches the resolution that gives ``k``."""
    graph = ad.AnnData(x)
    sc.pp.neighbors(graph, use_rep="X", random_state=seed)

    def at(resolution: float) -> np.ndarray:
        sc.tl.leiden(graph, resolution, random_state=seed, flavor="igraph", n_iterations=2)
        return graph.obs["leiden"].astype(str).to_numpy()

    return at(1.0) if k is None else _nearest(at, k)


def _nearest(at: Callable[[float], np.ndarray], k: int) -> np.ndarray:
    """Search the resolution by bisection and return the clusters whose number is closest to ``k``."""
    low, high, best = 0.01, 5.0, at(1.0)
    for _ in range(16):
        middle = float(np.sqrt(low * high))
        found = at(middle)
        n = len(np.unique(found))
        best = min(best, found, key=lambda c: abs(len(np.unique(c)) - k))
        low, high = (middle, high) if n < k else (low, middle)
        if n == k:
            break
    return best


def scvi_latent(adata: AnnData, seed: int, max_epochs: int | None) -> np.ndarray:
    """Return the latent representation of SCVI with its default settings."""
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata)
    made = scvi.model.SCVI(adata)
    made.train(max_epochs=max_epochs, **QUIET)
    return made.get_latent_representation()


def scores(truth: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """Return the scores of clusters against the true types."""
    table = pd.crosstab(truth, clusters)
    matched = metrics.matched(truth, clusters).astype(str)
    large = table.sum(axis=1) > 0.02 * len(truth)
    majority = set(table.idxmax(axis=0))  # found: most frequent type of some cluster
    return {
        "clusters": len(table.columns),
        "ari": float(adjusted_rand_score(truth, clusters)),
        "nmi": float(normalized_mutual_info_score(truth, clusters)),
        "macro_f1": float(f1_score(truth, matched, average="macro", labels=table.index, zero_division=0)),
        "accuracy": float((matched == truth).mean()),
        "large_types_lost": int(sum(t not in majority for t in table.index[large])),
    }


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Summarise over seeds: medians, worst and standard deviation of ARI, and mean rank by median ARI."""
    by = frame.groupby(["data", "method"], sort=False)
    out = by[["ari", "nmi", "macro_f1", "clusters", "large_types_lost"]].median()
    out.insert(1, "ari_worst", by["ari"].min())
    out.insert(2, "ari_sd", by["ari"].std())
    ranks = out["ari"].groupby("data").rank(ascending=False)
    out["mean_rank"] = ranks.groupby("method").transform("mean")
    return out.round(3)
