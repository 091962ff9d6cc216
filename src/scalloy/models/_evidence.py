"""How well a trained model explains cells: evidence, its terms, and the counts of each gene.

A mixin of :class:`scalloy.models._base.ScalloyModel`, which reads cells as in :mod:`scalloy.models._getters`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scalloy._seeds import seeded
from scalloy.blocks.sparse import dense
from scalloy.models import _options
from scalloy.models._getters import Tensors
from scalloy.vae.base import Batch, VAEModule


class Evidence:
    """ELBO, reconstruction, marginal likelihood, statistics of genes."""

    module: VAEModule
    seed: int
    summary_stats: Any
    get_var_names: Callable[[], Any]
    _read: Callable[..., Any]
    _per_cell: Callable[..., np.ndarray]

    def get_elbo(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        seed: int | None = None,
    ) -> float | np.ndarray:
        """Return the evidence lower bound in nats per cell, by one sample of the latents; higher is better.

        ``-(recon + sum(kl) + sum(kl_global) / N)``: terms of the whole data set, such as the divergence of
        the weights of a mixture, are shared by the N cells of training. But for noise it is not above
        :meth:`get_marginal_ll`, which is of the same cells by default.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`; neither given, the cells that training left out
            (:meth:`held_out`).
        return_mean
            Whether to average over cells.
        seed
            Random seed; ``None`` is that of the model.
        """
        n_trained = self._n_trained()

        def elbo(tensors: Tensors) -> torch.Tensor:
            t = self.module.objective(Batch.of(tensors))
            return -(t.recon + sum(t.kl.values()) + sum(t.kl_global.values()) / n_trained)

        values = self._per_cell(adata, self._or_held_out(adata, indices), batch_size, elbo, seed)
        return float(values.mean(dtype=np.float64)) if return_mean else values

    def get_reconstruction_error(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        seed: int | None = None,
    ) -> dict[str, float | np.ndarray]:
        """Return ``-log p(x | latents)`` in nats per cell, by one sample of the latents; lower is better.

        Of the same cells and samples it is the first term of :meth:`get_elbo`, whose arguments it has.
        """

        def recon(tensors: Tensors) -> torch.Tensor:
            return self.module.objective(Batch.of(tensors)).recon

        values = self._per_cell(adata, self._or_held_out(adata, indices), batch_size, recon, seed)
        return {"reconstruction_loss": float(values.mean(dtype=np.float64)) if return_mean else values}

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_mc_samples: int = 1000,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_se: bool = False,
        seed: int | None = None,
    ) -> float | tuple[float, float] | np.ndarray:
        """Importance-weighted estimate of ``log p(x)`` in nats; with more samples it rises to it.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`; neither given, the cells that training left out
            (:meth:`held_out`).
        n_mc_samples
            Samples of the latents per cell; the cost grows in proportion.
        return_mean
            Whether to average over cells.
        return_se
            Whether to return the standard error of that average besides, over cells and samples.
        seed
            Of what is drawn; ``None`` is that of the model.
        """
        _options.whole(n_mc_samples=n_mc_samples)
        rows = self._or_held_out(adata, indices)

        def marginal(tensors: Tensors) -> torch.Tensor:
            return self.module.marginal_ll(tensors, n_mc_samples=n_mc_samples)

        values = self._per_cell(adata, rows, batch_size, marginal, seed).astype(np.float64)
        if not return_mean:
            return values
        if not return_se:
            return float(values.mean())
        if len(values) < 2:
            msg = f"`return_se=True` needs at least 2 cells, and there is {len(values)}."
            raise ValueError(msg)
        return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))

    def held_out(self) -> np.ndarray | None:
        """Rows of the model's cells that training left out: its test set, or else its validation set.

        ``None``, all cells, where nothing was left out. The best weights are those of the lowest loss on the
        validation set, so that for a comparison of models a test set is better: ``train(train_size=0.8,
        validation_size=0.1)``.
        """
        sets = (getattr(self, name, None) for name in ("test_indices", "validation_indices"))
        return next((np.asarray(rows) for rows in sets if rows is not None and len(rows)), None)

    def _or_held_out(self, adata: Any, indices: Any) -> Any:
        """Return the rows that are given, or else those of the model's cells that training left out."""
        return self.held_out() if adata is None and indices is None else indices

    def _n_trained(self) -> float:
        """Return the number of cells that share what is of the whole data set.

        A query has nothing to share: its prior of the weights is what the reference has learned.
        """
        if self.module.free is not None:
            return np.inf
        rows = getattr(self, "train_indices_", None)
        return len(rows) if rows is not None and len(rows) else int(self.summary_stats["n_cells"])

    @torch.inference_mode()
    def get_gene_statistics(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Mean, variance and share of zeros of the counts of each gene, observed and expected by the model.

        Expected over the same cells, each with one sample of its latents: the variance is that within cells,
        as the likelihood has it, and that between their means.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        seed
            Of what is drawn; ``None`` is that of the model.
        """
        if not self.module.likelihood.draws_counts:
            msg = f"{type(self.module.likelihood).__name__} is no likelihood of counts: train with 'nb', say."
            raise ValueError(msg)
        sums, n = [], 0
        with seeded(seed, self.seed):
            for tensors in self._read(adata, indices, batch_size, decodes=True):
                batch = Batch.of(tensors)
                p_x = self.module.decode(batch, self.module.draw(self.module.encode(batch)))["x"]
                x, mean, zeros = dense(batch.x), p_x.mean, p_x.log_pmf(torch.zeros_like(p_x.mean)).exp()
                parts = (x, x.square(), (x == 0).to(x), mean, p_x.variance + mean.square(), zeros)
                sums.append(torch.stack([v.double().sum(0) for v in parts]).cpu())
                n += len(x)
        first, second, zero = (torch.stack(sums).sum(0) / n).view(2, 3, -1).transpose(0, 1).numpy()
        values = np.concatenate([first, second - first**2, zero]).T
        names = [f"{of}_{by}" for of in ("mean", "variance", "zeros") for by in ("observed", "expected")]
        return pd.DataFrame(values, index=np.asarray(self.get_var_names()), columns=names)
