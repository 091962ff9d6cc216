"""One modality from another by simple means, with the call of :class:`scalloy.POISEVAE`.

Genes are read as log-normalised counts and their logarithmic total, proteins as ``log1p`` of counts.

========  ====================================================================================
mean      of the cells that were trained on
ridge     regression on 50 principal components
knn       mean of the 50 nearest cells in 50 principal components
cca       scikit-learn's canonical correlation analysis between principal components
pcca      its probabilistic form (Bach & Jordan 2005): the mean given the other one, in closed form
mlp       neural network (256, 128) of scikit-learn on 50 principal components, which stops early
========  ====================================================================================
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

from scalloy.baselines.predictors import normalised
from scalloy.models._options import one_of

N_PCS, N_NEAREST, N_CANONICAL = 50, 50, 10
NETWORK: dict[str, Any] = {"hidden_layer_sizes": (256, 128), "alpha": 1.0, "early_stopping": True}
CROSS_METHODS = ("mean", "ridge", "knn", "cca", "pcca", "mlp")


class CrossModal:
    """See the head of this file.

    Parameters
    ----------
    adata
        Raw counts of genes, and of proteins in ``.obsm``; cells have both.
    method
        One of the above.
    protein_obsm_key
        Key of ``.obsm`` with the proteins.
    seed
        Of the network.
    """

    def __init__(
        self,
        adata: AnnData,
        method: str = "ridge",
        *,
        protein_obsm_key: str = "protein_counts",
        seed: int = 0,
    ) -> None:
        self.adata, self.method = adata, one_of("method", method, CROSS_METHODS)
        self.key, self.seed = protein_obsm_key, seed
        self._fitted: dict[str, Any] = {}

    def train(self) -> None:
        """Learn both directions."""
        genes, proteins = self._genes(self.adata), self._proteins(self.adata)
        if lacking := int(np.isnan(proteins).any(1).sum()):
            msg = (
                f"{lacking} cell(s) lack proteins (NaN) in `adata.obsm[{self.key!r}]`. Leave these cells out."
            )
            raise ValueError(msg)
        for name, x, y in (("prot", genes, proteins), ("rna", proteins, genes[:, :-1])):
            self._fitted[name] = make_pipeline(StandardScaler(), self._regression(x, y)).fit(x, y)

    def _regression(self, x: np.ndarray, y: np.ndarray) -> Any:
        pcs = PCA(min(N_PCS, *x.shape), random_state=0)
        n = min(N_CANONICAL, x.shape[1], y.shape[1])
        return {
            "mean": DummyRegressor,
            "ridge": lambda: make_pipeline(pcs, RidgeCV(np.logspace(-2, 4, 13))),
            "knn": lambda: make_pipeline(pcs, KNeighborsRegressor(N_NEAREST)),
            "cca": lambda: make_pipeline(pcs, CCA(n, max_iter=5000)),
            "pcca": lambda: make_pipeline(pcs, ProbabilisticCCA(n)),
            "mlp": lambda: make_pipeline(pcs, MLPRegressor(**NETWORK, random_state=self.seed)),
        }[self.method]()

    def predict(self, modality: str, from_: str, adata: AnnData | None = None) -> pd.DataFrame:
        """Expected ``log1p``: of counts of proteins, of those of genes scaled to 10,000 per cell."""
        one_of("modality", modality, ("rna", "prot"))
        if from_ == modality:
            msg = f"`from_={from_!r}` is what is to be predicted. Pass the other modality."
            raise ValueError(msg)
        cells = self.adata if adata is None else adata
        x = self._genes(cells) if modality == "prot" else self._proteins(cells)
        names = self.adata.obsm[self.key].columns if modality == "prot" else self.adata.var_names
        return pd.DataFrame(self._fitted[modality].predict(x), index=cells.obs_names, columns=names)

    @staticmethod
    def _genes(cells: AnnData) -> np.ndarray:
        x = np.asarray(cells.X.todense() if sp.issparse(cells.X) else cells.X, dtype=float)
        return np.hstack([np.log1p(normalised(x)), np.log(x.sum(1, keepdims=True))])

    def _proteins(self, cells: AnnData) -> np.ndarray:
        return np.log1p(np.asarray(cells.obsm[self.key], dtype=float))


class ProbabilisticCCA(RegressorMixin, BaseEstimator):
    """Two views of one latent: ``x_m = W_m y + mean_m + noise_m``, by maximum likelihood.

    Bach & Jordan 2005: with whitened cross-covariance ``U P V^T``, the posterior mean of ``y`` given the
    first view is ``P^(1/2) U^T Sigma_1^(-1/2) (x_1 - mean_1)``, and ``W_2 = Sigma_2^(1/2) V P^(1/2)``.
    """

    def __init__(self, n_components: int = 10) -> None:
        self.n_components = n_components

    def fit(self, x: np.ndarray, y: np.ndarray) -> ProbabilisticCCA:
        """Learn from two views of the same cells."""
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

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Mean of the latent given the first view."""
        return (x - self.means_[0]) @ self.codes_[0]

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Mean of the second view given the first one."""
        return self.means_[1] + self.transform(x) @ self.loadings_[1].T
