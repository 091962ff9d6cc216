"""What models with a mixture tell about cells: clusters, labels, and whether a cell is of no known type.

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
from scalloy.models import _options
from scalloy.models._base import ScalloyModel
from scalloy.vae.base import Batch

N_SAMPLES = 25


class MixtureModel(ScalloyModel):
    """Clusters and labels from the posterior of the components."""

    @property
    def cluster_names(self) -> list[str]:
        """Label of each bound component, and the number of each free cluster."""
        prior = self.module.prior
        n = int(prior.cluster_of[prior.used].max()) + 1
        return [*self.labels, *(str(k) for k in range(len(self.labels), n))]

    def _groups_of_unlabelled(self, cells: AnnData | None) -> np.ndarray:
        """Of models with conditions too: the predicted label; without labels the cluster."""
        found = self.predict_labels(cells) if self.labels else self.get_clusters(cells)
        return found.astype(str).to_numpy()

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

    # labels -------------------------------------------------------------------------------------

    def _label_probabilities(self, adata: Any, indices: Any, batch_size: Any) -> tuple[np.ndarray, ...]:
        """Probability of each label among the labels, and the score of being none of them."""
        if not self.labels:
            msg = (
                f"The model was trained without labels. Call `{type(self).__name__}.setup_anndata(adata, "
                "labels_key=..., unlabeled_category=...)` and train again, or use `get_clusters()`."
            )
            raise ValueError(msg)
        rows, scores = [], []
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for tensors in self._read(adata, indices, batch_size):
                p, known = self.module.label_probabilities(Batch.of(tensors), N_SAMPLES)
                rows.append(p.cpu())
                scores.append((1 - known).clamp(0, 1).cpu())
        return torch.cat(rows).numpy(), torch.cat(scores).numpy()

    def predict_labels(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        soft: bool = False,
        batch_size: int | None = None,
    ) -> pd.Series | pd.DataFrame:
        """Label of each cell from its counts alone, or the probability of each label.

        The probabilities are those among the known labels, averaged over samples of the posterior of ``z``;
        whether the cell is of a known type at all is told by :meth:`get_unknown_score`.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        soft
            Whether to return probabilities, cells x labels.
        """
        p, _ = self._label_probabilities(adata, indices, batch_size)
        names = self._names(adata, indices)
        if soft:
            return pd.DataFrame(p, index=names, columns=self.labels)
        values = pd.Categorical.from_codes(p.argmax(1), categories=self.labels)
        return pd.Series(values, index=names, name="label")

    def get_unknown_score(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> pd.Series:
        """Score in [0, 1] of a cell being of none of the known types; above 0.5 it is flagged.

        It is the probability of the free components, raised where the cell lies farther out than the
        labelled cells of its type do. Free components find types that the labels lack where such cells are
        trained on, without labels; for cells that are only mapped the distance alone can tell.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        """
        _, score = self._label_probabilities(adata, indices, batch_size)
        return pd.Series(score, index=self._names(adata, indices), name="unknown")

    # writing ------------------------------------------------------------------------------------

    def _annotations(self, adata: AnnData | None, key: str) -> dict[str, dict[str, Any]]:
        written = super()._annotations(adata, key)
        probabilities = self.get_cluster_probabilities(adata)
        p, names = probabilities.to_numpy(), probabilities.columns
        obs: dict[str, Any] = {
            _keys.cluster(key): pd.Categorical.from_codes(p.argmax(1), categories=names),
            _keys.cluster_probability(key): p.max(1),
        }
        if self.labels:
            p, unknown = self._label_probabilities(adata, None, None)
            obs[_keys.label(key)] = pd.Categorical.from_codes(p.argmax(1), categories=self.labels)
            obs[_keys.label_probability(key)] = p.max(1)
            obs[_keys.unknown(key)] = unknown
        written["obsm"][_keys.probabilities(key)] = probabilities
        return {**written, "obs": obs}

    # training -----------------------------------------------------------------------------------

    def train(self, *args: Any, n_samples_per_label: int | None = None, **kwargs: Any) -> None:  # type: ignore[override]
        """Train the model: the call of :meth:`scalloy.VAE.train`, and besides

        Parameters
        ----------
        *args, **kwargs
            As there.
        n_samples_per_label
            Cells of a rarer label are repeated within an epoch so that there are at least this many.
        """
        if n_samples_per_label is not None:
            _options.positive(n_samples_per_label=n_samples_per_label)
            if not self.labels:
                msg = f"`n_samples_per_label={n_samples_per_label}` needs labels, and none are registered."
                raise ValueError(msg)
            more = {"n_samples_per_label": n_samples_per_label, "n_labels": len(self.labels)}
            kwargs["datasplitter_kwargs"] = {**(kwargs.get("datasplitter_kwargs") or {}), **more}
        super().train(*args, **kwargs)
