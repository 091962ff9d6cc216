"""What models with a mixture tell about cells: clusters.

Base of the users' classes whose module has a :class:`~scalloy.blocks.priors.MixturePrior`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scalloy import _keys
from scalloy.models._base import ScalloyModel
from scalloy.vae.base import Batch


class MixtureModel(ScalloyModel):
    """Clusters from the posterior of the components."""

    @property
    def cluster_names(self) -> list[str]:
        """Label of each bound component, and the number of each free cluster.

        Where a label is such a number itself, ``"3"`` say, free clusters are called ``"free 3"`` and so on.
        """
        prior = self.module.prior
        n = int(prior.cluster_of[prior.used].max()) + 1
        bound = self.labels[: prior.n_labels]
        return [*bound, *_keys.unique((str(k) for k in range(len(bound), n)), bound)]

    # clusters -----------------------------------------------------------------------------------

    def get_cluster_probabilities(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Probability of each cluster, cells x clusters, given the counts and not the label.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        """
        module, read = self.module, self._read(adata, indices, batch_size)
        rows = [module.prior.of_clusters(module.assignment(Batch.of(tensors))).cpu() for tensors in read]
        values = torch.cat(rows).numpy()
        return pd.DataFrame(values, index=self._names(adata, indices), columns=self.cluster_names)

    def get_clusters(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> pd.Series:
        """The most probable cluster of each cell."""
        probabilities = self.get_cluster_probabilities(adata, indices, batch_size)
        found = probabilities.to_numpy().argmax(1)
        values = pd.Categorical.from_codes(found, categories=self.cluster_names)
        return pd.Series(values, index=probabilities.index, name="cluster")

    def get_usage(self, by: str | None = None) -> pd.Series | pd.DataFrame:
        """Expected number of the model's cells in each cluster.

        Parameters
        ----------
        by
            Column of ``.obs``: one row for each of its categories.
        """
        probabilities = self.get_cluster_probabilities()
        if by is None:
            return probabilities.sum().rename("cells")
        return probabilities.groupby(self.adata.obs[by].to_numpy(), observed=True).sum()

    def n_alive(self, least: float = 0.001) -> int:
        """Clusters with at least this share of the model's cells."""
        usage = np.asarray(self.get_usage())
        return int((usage >= least * usage.sum()).sum())

    def _annotations(self, adata: AnnData | None, key: str) -> dict[str, dict[str, Any]]:
        written = super()._annotations(adata, key)
        probabilities = self.get_cluster_probabilities(adata)
        p, names = probabilities.to_numpy(), probabilities.columns
        written["obsm"][_keys.probabilities(key)] = probabilities
        written["uns"][_keys.settings(key)]["clusters"] = list(names)
        obs = {
            _keys.cluster(key): pd.Categorical.from_codes(p.argmax(1), categories=names),
            _keys.cluster_probability(key): p.max(1),
        }
        return {**written, "obs": {**written.get("obs", {}), **obs}}
