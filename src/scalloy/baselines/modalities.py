"""Simple baselines that predict one modality from another, called like :class:`scalloy.POISEVAE`.

Genes are read as log-normalised counts and the logarithm of their total, proteins as ``log1p`` of counts,
peaks (``normalise=True``) as genes.

========  ===========================================================================================
mean      mean of the training cells
ridge     ridge regression on 50 principal components
knn       mean of the 50 nearest cells in 50 principal components
cca       scikit-learn's canonical correlation analysis on 50 principal components
pcca      probabilistic form of it (Bach & Jordan 2005): the conditional mean in closed form
mlp       scikit-learn's neural network (256, 128) on 50 principal components, with early stopping
========  ===========================================================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.linalg import inv, sqrtm
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import RidgeCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scalloy._arguments import one_of
from scalloy._by_name import Table, in_one_order, names_of
from scalloy.baselines.predictors import normalised
from scalloy.data import checks
from scalloy.data.arrays import as_numbers
from scalloy.data.genes import aligned
from scalloy.data.modalities import check_modality, columns_of, with_columns
from scalloy.metrics._given import numbers

N_PCS, N_NEAREST, N_CANONICAL = 50, 50, 10
ENOUGH = 20  # cells from which on some are set aside for early stopping
NETWORK: dict[str, Any] = {"hidden_layer_sizes": (256, 128), "alpha": 1.0, "early_stopping": True}
CROSS_METHODS = ("mean", "ridge", "knn", "cca", "pcca", "mlp")


class CrossModal:
    """Simple prediction of genes from proteins and of proteins from genes.

    Parameters
    ----------
    adata
        Cells with raw counts of genes, and of proteins in ``.obsm``; every cell needs both.
    method
        One of the methods in the table of :mod:`scalloy.baselines.modalities`.
    protein_obsm_key
        Key of ``.obsm`` with the proteins, or another second modality.
    normalise
        Whether the counts of the second modality, too, are scaled to 10,000 per cell, as is usual for peaks.
    seed
        Random seed of the neural network.

    Examples
    --------
    >>> simple = sa.baselines.CrossModal(adata, "ridge")
    >>> simple.train()
    >>> proteins = simple.predict("prot", from_="rna")
    """

    def __init__(
        self,
        adata: AnnData,
        method: str = "ridge",
        *,
        protein_obsm_key: str = "protein_counts",
        normalise: bool = False,
        seed: int = 0,
    ) -> None:
        checks.check_object(adata)
        checks.check_counts(adata)
        check_modality(adata, "protein_obsm_key", protein_obsm_key)
        adata = with_columns(adata, protein_obsm_key, columns_of(adata, protein_obsm_key))
        self.adata, self.method = adata, one_of("method", method, CROSS_METHODS)
        self.key, self.normalise, self.seed = protein_obsm_key, normalise, seed
        self._fitted: dict[str, Any] = {}

    def train(self) -> None:
        """Fit the predictions in both directions.

        Examples
        --------
        >>> simple = sa.baselines.CrossModal(adata, "knn")
        >>> simple.train()
        """
        genes, proteins = self._genes(self.adata), self._proteins(self.adata)
        values = proteins[:, :-1] if self.normalise else proteins
        for name, x, y in (("prot", genes, values), ("rna", proteins, genes[:, :-1])):
            self._fitted[name] = make_pipeline(StandardScaler(), self._regression(x, y)).fit(x, y)

    def _regression(self, x: np.ndarray, y: np.ndarray) -> Any:
        """Make the estimator of the method for data of this size."""
        n_pcs = min(N_PCS, *x.shape)
        pcs = PCA(n_pcs, random_state=0)
        n = min(N_CANONICAL, n_pcs, len(x) - 1, y.shape[1])
        network = NETWORK | {"early_stopping": len(x) >= ENOUGH}
        return {
            "mean": DummyRegressor,
            "ridge": lambda: make_pipeline(pcs, RidgeCV(np.logspace(-2, 4, 13))),
            "knn": lambda: make_pipeline(pcs, KNeighborsRegressor(min(N_NEAREST, len(x)))),
            "cca": lambda: make_pipeline(pcs, CCA(n, max_iter=5000)),
            "pcca": lambda: make_pipeline(pcs, ProbabilisticCCA(n)),
            "mlp": lambda: make_pipeline(pcs, MLPRegressor(**network, random_state=self.seed)),
        }[self.method]()

    def predict(self, modality: str, from_: str, adata: AnnData | None = None) -> pd.DataFrame:
        """Predict ``log1p`` of counts; those of genes (and peaks) are scaled to 10,000 per cell.

        Parameters
        ----------
        modality
            Modality to predict, ``"rna"`` or ``"prot"``.
        from_
            Modality to predict it from, the other one of the two.
        adata
            Cells to predict; ``None`` uses the training cells.

        Examples
        --------
        >>> simple = sa.baselines.CrossModal(adata)
        >>> simple.train()
        >>> list(simple.predict("prot", from_="rna"))
        ['protein_0', 'protein_1', 'protein_2']
        """
        one_of("modality", modality, ("rna", "prot"))
        if from_ == modality:
            msg = f"`from_={from_!r}` is the modality to predict. Pass the other one."
            raise ValueError(msg)
        one_of("from_", from_, ("rna", "prot"))
        if not self._fitted:
            self.train()
        proteins = self.adata.obsm[self.key]
        cells = self.adata if adata is None else aligned(checks.check_type(adata), list(self.adata.var_names))
        if modality == "prot":
            x, names = self._genes(cells), getattr(proteins, "columns", range(proteins.shape[1]))
        else:
            check_modality(cells, "protein_obsm_key", self.key)
            cells = with_columns(cells, self.key, columns_of(self.adata, self.key))
            x, names = self._proteins(cells), self.adata.var_names
        return pd.DataFrame(self._fitted[modality].predict(x), index=cells.obs_names, columns=names)

    @staticmethod
    def _genes(cells: AnnData) -> np.ndarray:
        """Log-normalised counts of genes, and the logarithm of their total in the last column."""
        checks.check_counts(cells, genes=False)
        x = np.asarray(cells.X.todense() if sp.issparse(cells.X) else cells.X, dtype=float)
        return np.hstack([np.log1p(normalised(x)), np.log(x.sum(1, keepdims=True))])

    def _second(self, counts: np.ndarray) -> np.ndarray:
        """Return the logarithms of counts of the second modality, and of their total if they are scaled."""
        if not self.normalise:
            return np.log1p(counts)
        total = counts.sum(1, keepdims=True)
        return np.hstack([np.log1p(1e4 * counts / np.maximum(total, 1.0)), np.log1p(total)])

    def _proteins(self, cells: AnnData) -> np.ndarray:
        """``log1p`` of the counts of proteins, which must be measured in every cell."""
        proteins = np.asarray(cells.obsm[self.key], dtype=float)
        if lacking := int(np.isnan(proteins).any(1).sum()):
            msg = (
                f"{lacking} cell(s) lack proteins (NaN) in `adata.obsm[{self.key!r}]`. Leave these cells out."
            )
            raise ValueError(msg)
        return self._second(proteins)


class ProbabilisticCCA(RegressorMixin, BaseEstimator):
    """Probabilistic CCA: two views ``x_m = W_m y + mean_m + noise_m`` of one latent, by maximum likelihood.

    With the whitened cross-covariance ``U P V^T``, the posterior mean of ``y`` given the first view is
    ``P^(1/2) U^T Sigma_1^(-1/2) (x_1 - mean_1)``, and ``W_2 = Sigma_2^(1/2) V P^(1/2)`` (Bach & Jordan 2005).

    Parameters
    ----------
    n_components
        Number of latents, at most the number of columns of either view.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 2))
    >>> cca = sa.baselines.ProbabilisticCCA(1).fit(x, -x[:, :1])
    >>> cca.correlations_.round(2).tolist()
    [1.0]
    """

    def __init__(self, n_components: int = 10) -> None:
        self.n_components = n_components

    def fit(self, x: Table, y: Table) -> ProbabilisticCCA:
        """Fit the model to two views of the same cells; frames are matched by the names of the cells.

        Examples
        --------
        >>> x = np.random.default_rng(0).normal(size=(50, 2))
        >>> cca = sa.baselines.ProbabilisticCCA(1).fit(x, -x[:, :1])
        """
        self._columns = names_of("columns", {"x": x}, {"x": ("cells", "columns")})
        given = in_one_order({"x": x, "y": y}, {"x": ("cells", "_"), "y": ("cells", "_")})
        x, y = numbers(2, fit="rows", least=2, **given)
        most = min(x.shape[1], y.shape[1])
        if self.n_components not in range(1, most + 1):
            msg = (
                f"`n_components={self.n_components}` must be a whole number from 1 to {most}, the smaller "
                "number of columns of the two views."
            )
            raise ValueError(msg)
        self.means_ = x.mean(0), y.mean(0)
        n = x.shape[1]
        covariance = np.cov(x.T, y.T) + 1e-6 * np.eye(n + y.shape[1])
        roots = [np.real(sqrtm(part)) for part in (covariance[:n, :n], covariance[n:, n:])]
        inverse = [inv(root) for root in roots]
        u, p, vt = np.linalg.svd(inverse[0] @ covariance[:n, n:] @ inverse[1])
        k = self.n_components
        self.correlations_ = p[:k].clip(0, 1)
        root = np.sqrt(self.correlations_)
        self.codes_ = inverse[0] @ u[:, :k] * root, inverse[1] @ vt[:k].T * root
        self.loadings_ = roots[0] @ u[:, :k] * root, roots[1] @ vt[:k].T * root
        return self

    def transform(self, x: Table) -> np.ndarray:
        """Return the mean of the latent given the first view; columns of frames are matched by name.

        Examples
        --------
        >>> x = np.random.default_rng(0).normal(size=(50, 2))
        >>> sa.baselines.ProbabilisticCCA(1).fit(x, -x[:, :1]).transform(x).shape
        (50, 1)
        """
        if self._columns is not None:
            axes = {"first view": ("columns",), "x": ("cells", "columns")}
            x = in_one_order({"first view": self._columns, "x": x}, axes)["x"]
        x = as_numbers(x, "`x`", 2)
        if x.shape[1] != len(self.means_[0]):
            msg = f"`x` has {x.shape[1]} columns; the first view had {len(self.means_[0])}. Pass the same."
            raise ValueError(msg)
        return (x - self.means_[0]) @ self.codes_[0]

    def predict(self, x: Table) -> np.ndarray:
        """Return the mean of the second view given the first.

        Examples
        --------
        >>> x = np.random.default_rng(0).normal(size=(50, 2))
        >>> cca = sa.baselines.ProbabilisticCCA(1).fit(x, -x[:, :1])
        >>> cca.predict(np.array([[1.0, 0.0]])).round(2).tolist()
        [[-1.0]]
        """
        return self.means_[1] + self.transform(x) @ self.loadings_[1].T
