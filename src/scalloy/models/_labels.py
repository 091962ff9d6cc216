"""What models with labels tell: the label of a cell, and whether it has none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS

from scalloy import _keys
from scalloy._seeds import seeded
from scalloy.models import _options
from scalloy.models._base import ScalloyModel
from scalloy.vae.base import Batch

N_SAMPLES = 25
FEW = 10  # cells of a label, with which none of them is spared for validation


class LabelModel(ScalloyModel):
    """Labels from the votes of the module, beside :class:`~scalloy.models._mixture.MixtureModel`."""

    def _label_probabilities(self, adata: Any, indices: Any, batch_size: Any) -> tuple[np.ndarray, ...]:
        """Probability of each label among the labels, and the score of being none of them."""
        if not self.labels:
            msg = (
                f"The model was trained without labels. Call `{type(self).__name__}.setup_anndata(adata, "
                "labels_key=..., unlabeled_category=...)` and train again, or use `get_clusters()`."
            )
            raise ValueError(msg)
        rows, scores = [], []
        with torch.no_grad(), seeded(0):
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
        if not self.labels:
            return written
        p, unknown = self._label_probabilities(adata, None, None)
        obs = {
            _keys.label(key): pd.Categorical.from_codes(p.argmax(1), categories=self.labels),
            _keys.label_probability(key): p.max(1),
            _keys.unknown(key): unknown,
        }
        return {**written, "obs": {**written.get("obs", {}), **obs}}

    def train(self, *args: Any, n_samples_per_label: int | None = None, **kwargs: Any) -> None:  # type: ignore[override]
        """Train the model: the call of :meth:`scalloy.VAE.train`, and besides

        Of a label that fewer than ten cells have, all are trained on and none are left for validation.

        Parameters
        ----------
        *args, **kwargs
            As there.
        n_samples_per_label
            Cells of a rarer label are repeated within an epoch so that there are at least this many.
        """
        more: dict[str, Any] = {}
        if n_samples_per_label is not None:
            _options.positive(n_samples_per_label=n_samples_per_label)
            if not self.labels:
                msg = f"`n_samples_per_label={n_samples_per_label}` needs labels, and none are registered."
                raise ValueError(msg)
            more = {"n_samples_per_label": n_samples_per_label, "n_labels": len(self.labels)}
        if self.labels:
            given = {"kept": self._rarely_labelled(), **(kwargs.get("datasplitter_kwargs") or {})}
            kwargs["datasplitter_kwargs"] = {**given, **more}
        super().train(*args, **kwargs)

    def _rarely_labelled(self) -> np.ndarray:
        """Mask of the cells whose label has few."""
        y = np.asarray(self._manager_of(None).get_from_registry(REGISTRY_KEYS.LABELS_KEY)).ravel()
        return (y < len(self.labels)) & (np.bincount(y)[y] < FEW)
