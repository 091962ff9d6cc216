"""What a latent means: the genes that change when it does. A mixin of every model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scalloy.data.loader import as_positions
from scalloy.models import _options
from scalloy.vae.base import Batch, Latents, VAEModule

EDGE = 0.02  # of the cells lie beyond each end of a traversal
CELLS = 500


class Traverse:
    """See the head of this file."""

    module: VAEModule
    _manager_of: Callable[..., Any]
    get_latent_representation: Callable[..., Any]
    get_var_names: Callable[[], Any]
    _read: Callable[..., Iterator[dict[str, torch.Tensor]]]

    def get_traversal(
        self,
        latent: int,
        values: Sequence[float] | None = None,
        *,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_steps: int = 7,
    ) -> pd.DataFrame:
        """Expression along a latent, all else of each cell being as it is.

        Parameters
        ----------
        latent
            Its number, from 0.
        values
            That the latent takes; ``None`` is ``n_steps`` from low to high among the cells.
        adata, indices
            Cells to begin from, as in :meth:`get_latent_representation`; the mean over them is
            returned, of at most 500.
        n_steps
            How many values.

        Returns
        -------
        A row for each value (the index), a column for each gene: log1p of expression per 10,000 (of
        likelihoods of data as given, these; of Bernoulli, probabilities).
        """
        _options.whole(n_steps=n_steps)
        codes, rows = self._codes(adata, indices)
        _options.check_latent(latent, codes.shape[1])
        at = np.linspace(*span(codes[:, latent]), n_steps) if values is None else np.asarray(values, float)
        return self._traversed({latent: at}, adata, rows)[latent]

    def get_latent_genes(
        self,
        n_genes: int | None = 10,
        *,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
    ) -> pd.DataFrame:
        """Genes that change most from the low to the high end of each latent.

        Parameters
        ----------
        n_genes
            Of each latent; ``None`` is all.
        adata, indices
            As in :meth:`get_traversal`.

        Returns
        -------
        ``latent``, ``gene``, ``change`` (on the scale of :meth:`get_traversal`), the strongest first.
        """
        if n_genes is not None:
            _options.whole(n_genes=n_genes)
        codes, rows = self._codes(adata, indices)
        ends = {j: np.asarray(span(codes[:, j])) for j in range(codes.shape[1])}
        parts = []
        for j, frame in self._traversed(ends, adata, rows).items():
            change = frame.iloc[1] - frame.iloc[0]
            change = change.iloc[np.argsort(-change.abs().to_numpy(), kind="stable")[:n_genes]]
            parts.append(pd.DataFrame({"latent": j, "gene": change.index, "change": change.to_numpy()}))
        return pd.concat(parts, ignore_index=True)

    def _codes(self, adata: AnnData | None, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """Codes of the cells, and the rows of those to begin from."""
        codes = self.get_latent_representation(adata, indices, which="z")
        n = (self._manager_of(None).adata if adata is None else adata).n_obs
        rows = np.arange(n) if indices is None else as_positions(indices, n)
        some = rows[np.linspace(0, len(rows) - 1, min(CELLS, len(rows))).astype(int)]
        return codes, some

    @torch.inference_mode()
    def _traversed(
        self, at: dict[int, np.ndarray], adata: AnnData | None, rows: np.ndarray
    ) -> dict[int, pd.DataFrame]:
        """Mean expression of the cells for each value of each latent."""
        names = self.get_var_names()
        sums = {j: np.zeros((len(values), len(names))) for j, values in at.items()}
        for tensors in self._read(adata, rows, None, decodes=True):
            batch = Batch.of(tensors)
            latents: Latents = {k: q.mean for k, q in self.module.encode(batch).items()}
            for j, values in at.items():
                for i, value in enumerate(values):
                    z = latents["z"].clone()
                    z[:, j] = float(value)
                    p_x = self.module.decode(batch, {**latents, "z": z})["x"]
                    sums[j][i] += self.module.likelihood.predicted(p_x).sum(0).cpu().numpy()
        return {j: pd.DataFrame(v / len(rows), index=at[j], columns=names) for j, v in sums.items()}


def span(code: np.ndarray) -> tuple[float, float]:
    """Low and high end of a latent; of one that does not vary, what would be usual."""
    low, high = np.quantile(code, (EDGE, 1 - EDGE))
    return (float(low), float(high)) if high - low > 1e-3 else (0.0, 1.0)
