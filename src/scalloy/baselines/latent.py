"""scGen's prediction: the mean difference of treated and control cells in the latent space of a VAE.

Lotfollahi et al., "scGen predicts single-cell perturbation responses", Nature Methods 2019. The authors'
package averages the treated cells of the types that were seen treated, but the control cells of all types,
including the held-out one. ``matched=False`` does the same; by default both averages are over the same types.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scalloy._arguments import category, totals
from scalloy.baselines.predictors import seen_under_both
from scalloy.data.checks import check_keys, check_type
from scalloy.models.vae import BetaVAE

#: Settings of scGen's network; its KL has a weight of 5e-5 beside half the squared error.
SCGEN: dict[str, Any] = {
    "n_hidden": 800,
    "n_latent": 100,
    "n_layers": 2,
    "dropout_rate": 0.2,
    "norm": "batch",
    "gene_likelihood": "mse",
    "beta": 5e-5,
}


class LatentShift:
    """scGen as a baseline, called in the same way as a model.

    Parameters
    ----------
    adata
        Cells to learn from, with raw counts in ``.X``.
    condition_key, labels_key
        Columns of ``.obs`` with conditions and cell types.
    matched
        Whether to average treated and control cells over the same types, each type with the same weight.
    **settings
        Settings of the :class:`~scalloy.BetaVAE`; those of scGen are the defaults.

    Examples
    --------
    >>> scgen = sa.baselines.LatentShift(adata, condition_key="condition", labels_key="cluster", n_hidden=16)
    >>> scgen.train(max_epochs=1, enable_progress_bar=False)
    >>> treated = scgen.transfer(adata[adata.obs["condition"] == "control"].copy(), to="treated_1")
    """

    def __init__(
        self, adata: AnnData, *, condition_key: str, labels_key: str, matched: bool = True, **settings: Any
    ) -> None:
        self.condition_key, self.labels_key, self.matched = condition_key, labels_key, matched
        check_keys(check_type(adata), {"condition_key": condition_key, "labels_key": labels_key})
        BetaVAE.setup_anndata(adata, labels_key=labels_key)
        self.model = BetaVAE(adata, **{**SCGEN, **settings})

    def train(self, max_epochs: int | None = None, **kwargs: Any) -> None:
        """Train the VAE.

        Parameters
        ----------
        max_epochs
            Maximum number of epochs; ``None`` chooses by the number of cells.
        **kwargs
            Further arguments of :meth:`scalloy.VAE.train`.

        Examples
        --------
        >>> keys = {"condition_key": "condition", "labels_key": "cluster"}
        >>> scgen = sa.baselines.LatentShift(adata, **keys, n_hidden=16)
        >>> scgen.train(max_epochs=1, enable_progress_bar=False)
        """
        self.model.train(max_epochs=max_epochs, **kwargs)

    def delta(self, source: str, to: str, without: str) -> np.ndarray:
        """Return the difference between the latent means of two conditions.

        Parameters
        ----------
        source, to
            Conditions from which and to which to predict.
        without
            Type to predict. Its treated cells are left out; if ``matched``, its control cells are too.

        Examples
        --------
        >>> keys = {"condition_key": "condition", "labels_key": "cluster"}
        >>> scgen = sa.baselines.LatentShift(adata, **keys, n_hidden=16, n_latent=5)
        >>> scgen.train(max_epochs=1, enable_progress_bar=False)
        >>> scgen.delta("control", "treated_1", without="cluster_0").shape
        (5,)
        """
        return self._delta(self.model.get_latent_representation(), source, to, without)

    def _delta(self, z: np.ndarray, source: str, to: str, without: str) -> np.ndarray:
        """Compute :meth:`delta` from codes ``z`` of the cells that were learned from."""
        obs = self.model.adata.obs[[self.labels_key, self.condition_key]].astype(str)
        types, conditions = (obs[k].to_numpy() for k in (self.labels_key, self.condition_key))
        if not self.matched:
            treated = (conditions == to) & (types != without)
            return z[treated].mean(0) - z[conditions == source].mean(0)
        both = seen_under_both(set(zip(types, conditions, strict=True)), source, to, without)
        of = [[z[(types == t) & (conditions == c)].mean(0) for t in both] for c in (to, source)]
        return np.mean(of[0], axis=0) - np.mean(of[1], axis=0)

    def transfer(
        self, cells: AnnData, to: str, *, seed: int = 0, target_sum: float = 1e4, **_: Any
    ) -> AnnData:
        """Predict cells as they would look under another condition.

        Parameters
        ----------
        cells
            Cells with the genes of the model, of one or more types and conditions.
        to
            Condition to predict.
        seed
            Not used, because codes are posterior means.
        target_sum
            Total count to which each predicted cell is scaled before the logarithm.
        **_
            Further arguments of the ``transfer`` of models, which are ignored.

        Returns
        -------
        AnnData with expected log-normalised expression in ``.X``.

        Examples
        --------
        >>> keys = {"condition_key": "condition", "labels_key": "cluster"}
        >>> scgen = sa.baselines.LatentShift(adata, **keys, n_hidden=16)
        >>> scgen.train(max_epochs=1, enable_progress_bar=False)
        >>> treated = scgen.transfer(adata[adata.obs["condition"] == "control"].copy(), to="treated_1")
        """
        cells = self.model.reader.fitting(cells)
        check_keys(cells, {"condition_key": self.condition_key, "labels_key": self.labels_key})
        totals(target_sum=target_sum)
        known = self.model.adata.obs[self.condition_key].astype(str)
        to = category("to", to, sorted(known.unique()))
        obs = cells.obs[[self.labels_key, self.condition_key]].astype(str)
        learned, z = self.model.get_latent_representation(), self.model.get_latent_representation(cells)
        for (name, source), rows in obs.groupby([self.labels_key, self.condition_key]).indices.items():
            z[rows] += self._delta(learned, source, to, name)
        parts, begin = [], 0
        with torch.no_grad():
            for batch in self.model.reader.batches(cells, decodes=True):
                here = torch.as_tensor(z[begin : begin + len(batch.b)], dtype=torch.float32)
                begin += len(batch.b)
                p = self.model.module.decode(batch, {"z": here.to(batch.b.device)})["x"]
                parts.append(p.mean.clamp_min(0).cpu().numpy())
        x = np.log1p(np.expm1(np.concatenate(parts)) * (target_sum / 1e4))
        out = AnnData(x, obs=cells.obs.copy(), var=cells.var[[]].copy())
        out.obs[self.condition_key] = pd.Categorical([to] * out.n_obs)
        how = "matched" if self.matched else "as shipped"
        out.uns["transfer"] = {"model": f"LatentShift: {how}", "to": to}
        return out
