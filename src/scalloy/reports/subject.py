"""Subject of a report: a model, its cells, and the quantities that are computed once for all sections."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scalloy import _keys

MOST = 10_000  # maximum number of cells that are drawn and counted
NEIGHBOURS = 15


@dataclass
class Subject:
    """Trained model and the cells on which it is reported.

    Parameters
    ----------
    model
        Trained model.
    adata
        Cells of the report, with their annotations.
    given
        Cells to pass to the getters of the model; ``None`` if they are the model's own.
    seed
        Random seed of the choice of cells and of samples.
    asked
        Columns of ``.obs``, or genes, to colour by; ``None`` uses the registered columns.
    """

    model: Any
    adata: AnnData
    given: AnnData | None
    seed: int
    asked: list[str] | None

    @cached_property
    def setup(self) -> dict[str, Any]:
        """Arguments with which the model was set up."""
        return self.model.registry["setup_args"]

    def key(self, name: str) -> str | None:
        """Return the column of ``.obs`` registered under ``name``, or ``None`` if the cells lack it."""
        found = self.setup.get(name)
        return found if isinstance(found, str) and found in self.adata.obs else None

    @cached_property
    def keys(self) -> list[str]:
        """Columns of ``.obs``, or genes, to colour by."""
        if self.asked is not None:
            return self.asked
        named = [self.key(name) for name in ("labels_key", "condition_key", "batch_key")]
        return list(dict.fromkeys(k for k in named if k))

    @cached_property
    def rows(self) -> np.ndarray:
        """Rows of the cells that are used: all, or a random choice of ``MOST``."""
        n = self.adata.n_obs
        if n <= MOST:
            return np.arange(n)
        return np.sort(np.random.default_rng(self.seed).choice(n, MOST, replace=False))

    @cached_property
    def obs(self) -> pd.DataFrame:
        """Annotations of the cells that are used."""
        return self.adata.obs.iloc[self.rows]

    @cached_property
    def z(self) -> np.ndarray:
        """Latent representation of the cells that are used."""
        return np.asarray(self.model.get_latent_representation(self.given, indices=self.rows))

    @cached_property
    def has_mixture(self) -> bool:
        """Flag that the model itself has clusters."""
        return hasattr(self.model, "get_clusters")

    @cached_property
    def clusters(self) -> pd.Series:
        """Cluster of each cell: the model's own, or Leiden's in the latent space."""
        if self.has_mixture:
            return self.model.get_clusters(self.given, indices=self.rows)
        import scanpy as sc

        cells = AnnData(obs=pd.DataFrame(index=self.obs.index), obsm={"z": self.z})
        sc.pp.neighbors(cells, NEIGHBOURS, use_rep="z", random_state=self.seed)
        sc.tl.leiden(cells, flavor="igraph", n_iterations=2, directed=False, random_state=self.seed)
        return cells.obs["leiden"]

    @cached_property
    def cluster_key(self) -> str:
        """Name of the column with the clusters."""
        return _keys.cluster(self.model.name) if self.has_mixture else "leiden"

    @cached_property
    def method(self) -> str:
        """Method that brings the latent space to two dimensions."""
        if self.z.shape[1] <= 2:
            return "latent"
        return "umap" if len(self.rows) > NEIGHBOURS else "pca"

    @cached_property
    def basis(self) -> str:
        """Key of ``.obsm`` with the coordinates that are drawn."""
        return {"latent": "X_latent", "umap": "X_UMAP", "pca": "X_PC"}[self.method]

    @cached_property
    def drawn(self) -> AnnData:
        """Cells in two dimensions, with their clusters and the colours of the user's object."""
        from scalloy.pl import embedding

        obs = self.obs.copy()
        order = [str(c) for c in self.clusters.cat.categories]
        obs[self.cluster_key] = pd.Categorical(self.clusters.astype(str), categories=order)
        obs[self.cluster_key] = obs[self.cluster_key].cat.remove_unused_categories()
        x = self.adata.X[self.rows] if self.adata.X is not None else None
        flat = np.hstack([self.z, np.zeros_like(self.z)])[:, :2]  # a single latent gives a line
        if self.method != "latent":
            flat = embedding(self.z, self.method, seed=self.seed)
        out = AnnData(x, obs=obs, var=pd.DataFrame(index=self.adata.var_names), obsm={self.basis: flat})
        out.uns |= {k: v for k, v in self.adata.uns.items() if k.endswith("_colors")}
        return out

    @cached_property
    def known(self) -> pd.Series:
        """Label of each cell, missing where it is unknown."""
        key = self.key("labels_key")
        if key is None:
            return pd.Series(np.full(len(self.rows), None, dtype=object), index=self.obs.index)
        labels = self.obs[key].astype(object).map(str, na_action="ignore")
        unlabeled = self.setup.get("unlabeled_category")
        return labels.mask(labels == str(unlabeled)) if unlabeled is not None else labels

    @cached_property
    def held_out(self) -> np.ndarray | None:
        """Mask of the cells that training left out; ``None`` if that is not known."""
        rows = None if self.given is not None else self.model.held_out()
        return None if rows is None else np.isin(self.rows, rows)

    @cached_property
    def components(self) -> np.ndarray:
        """Principal components of log-normalised counts (of the data as they are if they are no counts).

        There is one more than latent dimensions, if the data allow it.
        """
        from sklearn.decomposition import TruncatedSVD

        from scalloy.data.checks import check_layer

        x = sp.csr_matrix(check_layer(self.adata, self.setup.get("layer"))[self.rows], dtype=np.float64)
        if not self.setup.get("allow_non_counts"):
            total = np.asarray(x.sum(1)).ravel()
            x = (sp.diags_array(1e4 / np.maximum(total, 1e-12)) @ x).tocsr().log1p()
        n = min(self.z.shape[1] + 1, min(x.shape) - 1)
        return TruncatedSVD(n, random_state=self.seed).fit_transform(x)
