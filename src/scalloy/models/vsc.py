"""Sparse codes for users. The mathematics is in :mod:`scalloy.vae.vsc`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scalloy import _keys
from scalloy._seeds import repeatable
from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.networks import Beside
from scalloy.models import _options
from scalloy.models._base import ScalloyModel
from scalloy.models._options import GeneLikelihood
from scalloy.vae.base import Batch
from scalloy.vae.vsc import VSC

PRIORS = ("fixed", "pseudo")
DECODERS = ("linear", "mlp")


class BetaVSC(ScalloyModel):
    """Variational sparse coding of raw counts: many latents, of which a cell uses a few.

    A latent that is off in a cell is exactly zero there, so that one that is on can be read: as the
    program of genes that it switches on, and the cells in which it does.

    Parameters
    ----------
    adata
        Cells, registered with :meth:`setup_anndata` (or not: then ``.X`` is modelled as it is).
    registry
        What :meth:`setup_anndata` stored, to work without cells.
    beta
        Weight of the KLs in the training objective.
    alpha
        Share of the latents that are on in a cell, before any data.
    prior
        ``"fixed"`` has this share for all cells; ``"pseudo"`` is a mixture of what pseudo-inputs are encoded
        as, with ``alpha`` as their aim on average (Tonolini et al. 2019).
    n_pseudo
        Number of pseudo-inputs.
    n_hidden, n_latent, n_layers, dropout_rate, gene_likelihood, dispersion, encode_covariates, norm
        As in :class:`~scalloy.VAE`.
    library
        ``"observed"`` (or as given by ``size_factor_key``) or ``"none"``.
    decoder
        ``"linear"`` adds what the latents do to the logarithm of expression, so that what a latent does is
        the same in every cell; ``"mlp"`` has ``n_layers`` hidden layers.
    temperature
        Of the relaxed gates whose gradient is used; see :mod:`scalloy.blocks.spikes`.
    slab_warmup
        Share of training over which the values of latents follow which are on; see :mod:`scalloy.vae.vsc`.
    seed
        As in :class:`~scalloy.VAE`.

    Examples
    --------
    >>> adata = sa.datasets.kang()
    >>> sa.BetaVSC.setup_anndata(adata, batch_key="batch")
    >>> model = sa.BetaVSC(adata)
    >>> model.train()
    >>> model.get_latent_genes(n_genes=5)
    """

    @repeatable
    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        beta: float = 1.0,
        alpha: float = 0.1,
        prior: Literal["fixed", "pseudo"] = "fixed",
        n_pseudo: int = 20,
        n_hidden: int = 128,
        n_latent: int = 30,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        gene_likelihood: GeneLikelihood = "nb",
        dispersion: str = "gene",
        library: str = "observed",
        encode_covariates: bool = False,
        norm: str = "layer",
        decoder: Literal["linear", "mlp"] = "linear",
        temperature: float = 1.0,
        slab_warmup: float = 0.0,
        *,
        seed: int | None = None,
    ) -> None:
        _options.positive(
            beta=beta, n_hidden=n_hidden, n_latent=n_latent, n_layers=n_layers, n_pseudo=n_pseudo
        )
        _options.positive(temperature=temperature)
        _options.one_of("norm", norm, _options.NORMS)
        _options.one_of("library", library, ("observed", "none"))
        _options.one_of("prior", prior, PRIORS)
        _options.one_of("decoder", decoder, DECODERS)
        _check(alpha, slab_warmup, prior, norm)
        super().__init__(adata, registry)
        sizes = self._sizes()
        known: dict[str, Any] = {"n_cats": sizes.removed, "n_cont": sizes.n_cont}
        beside = Beside(n_latent, **known) if decoder == "linear" else None
        width = n_hidden if beside is None else beside.n_out
        likelihood = self._likelihood(gene_likelihood, width, dispersion=dispersion, library=library)
        self.module = VSC(
            sizes,
            likelihood,
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            norm=norm,
            encode_covariates=encode_covariates,
            dec_x=beside,
            alpha=alpha,
            pseudo_inputs=self._pseudo_inputs(n_pseudo, likelihood) if prior == "pseudo" else None,
            temperature=temperature,
            slab_warmup=slab_warmup,
        )
        self._plan_defaults = {"weights": {"kl": beta}}
        self._model_summary_string = (
            f"BetaVSC: {gene_likelihood}, n_latent {n_latent}, alpha {alpha}, beta {beta}, {prior} prior, "
            f"{decoder} decoder"
        )
        self.init_params_ = self._get_init_params(locals())

    def _pseudo_inputs(self, n: int, likelihood: Likelihood) -> torch.Tensor:
        """They begin at cells, drawn at random."""
        if self.adata is None:  # values come with the weights
            return torch.zeros(n, self._sizes().n_vars)
        x = self._all_cells().x
        if n > x.shape[0]:
            msg = f"`n_pseudo={n}` is more than the {x.shape[0]} cells, at which pseudo-inputs begin."
            raise ValueError(msg)
        rows = torch.randperm(x.shape[0])[:n].numpy()
        some = x[rows]
        some = some.toarray() if hasattr(some, "toarray") else np.asarray(some)
        return likelihood.features(torch.as_tensor(some, dtype=torch.float32))

    # reading the code ---------------------------------------------------------------------------

    def get_active(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Probability that each latent is on, cells x latents.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        """

        def active(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.module.encode(Batch.of(tensors))["z"].active

        values = self._per_cell(adata, indices, batch_size, active)
        return pd.DataFrame(values, index=self._names(adata, indices), columns=_names(values.shape[1]))

    def get_sparsity(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> pd.Series:
        """Expected share of the latents that are off in each cell.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        """
        return (1 - self.get_active(adata, indices, batch_size).mean(axis=1)).rename("sparsity")

    def get_latent_cells(
        self, latent: int, adata: AnnData | None = None, *, least: float = 0.5
    ) -> pd.DataFrame:
        """Cells in which a latent is on, those with the largest values first.

        Parameters
        ----------
        latent
            Its number, from 0.
        adata
            New cells; ``None`` is the model's own.
        least
            Probability of being on.

        Returns
        -------
        ``code`` and ``active`` of these cells, by name.
        """
        active = self.get_active(adata)
        _options.check_latent(latent, active.shape[1])
        code = self.get_latent_representation(adata)[:, latent]
        frame = pd.DataFrame({"code": code, "active": active.iloc[:, latent]}, index=active.index)
        frame = frame[frame["active"] >= least]
        return frame.iloc[np.argsort(-frame["code"].abs().to_numpy(), kind="stable")]

    def get_latent_summary(self, adata: AnnData | None = None, *, n_genes: int = 5) -> pd.DataFrame:
        """One row for each latent: in how many cells it is on, how it varies there, and its genes.

        Parameters
        ----------
        adata
            New cells; ``None`` is the model's own.
        n_genes
            Names of genes that rise, and that fall, with it.

        Returns
        -------
        ``active`` (share of the cells), ``spread`` (standard deviation of the code), ``up``, ``down``; the
        most used latents first, the index is their number.
        """
        _options.whole(n_genes=n_genes)
        active, code = self.get_active(adata).to_numpy(), self.get_latent_representation(adata)
        frame = pd.DataFrame({"active": (active > 0.5).mean(0), "spread": code.std(0)})
        frame.index.name = "latent"
        changes = self.get_latent_genes(None, adata=adata).pivot(
            index="gene", columns="latent", values="change"
        )
        for name, sign in (("up", 1), ("down", -1)):
            largest = [(sign * changes[j]).nlargest(n_genes) for j in frame.index]
            frame[name] = [", ".join(v[v > 0].index) for v in largest]
        return frame.sort_values("active", ascending=False, kind="stable")

    def _annotations(self, adata: AnnData | None, key: str) -> dict[str, dict[str, Any]]:
        out, active = super()._annotations(adata, key), self.get_active(adata)
        out["obsm"][_keys.active(key)] = active
        return {**out, "obs": {_keys.sparsity(key): (1 - active.mean(axis=1)).to_numpy()}}


def _names(n_latent: int) -> list[str]:
    return [f"z{j}" for j in range(n_latent)]


def _check(alpha: float, slab_warmup: float, prior: str, norm: str) -> None:
    """What cannot be combined."""
    if not 0 < alpha < 1:
        msg = f"`alpha={alpha}` is the share of latents that are on: pass a number between 0 and 1."
        raise ValueError(msg)
    if not 0 <= slab_warmup <= 1:
        msg = f"`slab_warmup={slab_warmup}` is a share of training: pass a number from 0 to 1."
        raise ValueError(msg)
    if prior == "pseudo" and norm == "batch":
        msg = (
            "`prior='pseudo'` with `norm='batch'`: pseudo-inputs belong to no batch of cells. Pass another, "
            "or `prior='fixed'`."
        )
        raise ValueError(msg)
