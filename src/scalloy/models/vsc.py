"""BetaVSC, the model class with a sparse code for users; its mathematics is in :mod:`scalloy.vae.vsc`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scalloy import _keys
from scalloy._arguments import check_latent, one_of, positive, whole
from scalloy._seeds import repeatable
from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.network_kinds import Network
from scalloy.blocks.networks import NetworkSettings
from scalloy.blocks.spike_slab import SpikeSlab
from scalloy.models._core import generate
from scalloy.models._core.annotations import LATENT, Annotator, Found, Written
from scalloy.models._core.base import ScalloyModel
from scalloy.models._core.factories import GeneLikelihood
from scalloy.models._core.protocols import ModelOf
from scalloy.vae.base import Batch, Distributions
from scalloy.vae.vsc import VSC

PRIORS = ("fixed", "pseudo")


class BetaVSC(ScalloyModel):
    """Variational sparse coding of raw counts: many latents, of which each cell uses only a few.

    A latent that is off in a cell is exactly zero there. So each latent can be interpreted: as a program of
    genes that it switches on, and as the set of cells in which it is on.

    Parameters
    ----------
    adata
        Cells, registered with :meth:`setup_anndata`. If they are not, ``.X`` is modelled as it is.
    registry
        Registry that :meth:`setup_anndata` made, for a model without cells.
    beta
        Weight of the KL divergences in the training objective.
    alpha
        Prior probability that a latent is on in a cell.
    prior
        Prior of the code: ``"fixed"`` is the same for all cells; ``"pseudo"`` is a mixture of the posteriors
        of pseudo-inputs, with a penalty that draws their share of latents that are on to ``alpha`` (Tonolini
        et al. 2019).
    n_pseudo
        Number of pseudo-inputs.
    n_hidden, n_latent, n_layers, dropout_rate, gene_likelihood, dispersion, encode_covariates, norm, encoder
        As in :class:`~scalloy.VAE`.
    library
        Library size: ``"observed"`` is the total count (or ``size_factor_key``); with ``"none"`` the expected
        counts do not depend on it.
    decoder
        Decoder: ``"linear"`` adds the effects of the latents on the logarithm of expression, so that a latent
        has the same effect in every cell; ``"mlp"`` has hidden layers, and other networks are as in
        :class:`~scalloy.VAE`.
    temperature
        Temperature of the relaxed gates whose gradient is used; see :mod:`scalloy.blocks.spike_slab`.
    slab_warmup
        Share of training, from its start, in which cells are first told apart only by which latents are on,
        and the values of the latents come in gradually; see :class:`scalloy.vae.vsc.VSC`. 0 means no
        warm-up.
    seed
        Random seed, as in :class:`~scalloy.VAE`.

    Examples
    --------
    >>> adata = sa.datasets.kang()
    >>> sa.BetaVSC.setup_anndata(adata, batch_key="batch")
    >>> model = sa.BetaVSC(adata)
    >>> model.train()  # doctest: +SKIP
    >>> genes = model.get_latent_genes(n_genes=5)
    """

    module: VSC

    generate = generate.generate

    @repeatable
    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        beta: float = 1.0,
        alpha: float = 0.1,
        prior: Literal["fixed", "pseudo"] = "fixed",
        n_pseudo: int = 20,
        n_hidden: int | Sequence[int] = 128,
        n_latent: int = 30,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        gene_likelihood: GeneLikelihood = "nb",
        dispersion: str = "gene",
        library: str = "observed",
        encode_covariates: bool = False,
        norm: str = "layer",
        decoder: Network = "linear",
        temperature: float = 1.0,
        slab_warmup: float = 0.0,
        encoder: Network = "mlp",
        *,
        seed: int | None = None,
    ) -> None:
        positive(beta=beta, temperature=temperature)
        whole(n_pseudo=n_pseudo)
        networks = NetworkSettings(
            n_hidden, n_latent, n_layers, dropout_rate, norm, encode_covariates, encoder, decoder
        )
        one_of("library", library, ("observed", "none"))
        one_of("prior", prior, PRIORS)
        _check(alpha, slab_warmup, prior, norm)
        super().__init__(adata, registry)
        sizes = self.sizes
        width = networks.n_decoded(sizes.n_vars, **sizes.covariates)
        likelihood = self.make_likelihood(
            gene_likelihood, width, dispersion=dispersion, library=library, per_gene=networks.per_gene
        )
        self.module = VSC(
            sizes,
            likelihood,
            networks,
            alpha=alpha,
            pseudo_inputs=self._pseudo_inputs(n_pseudo, likelihood) if prior == "pseudo" else None,
            temperature=temperature,
            slab_warmup=slab_warmup,
        )
        self._plan_defaults = {"weights": {"kl": beta}}
        self._model_summary_string = (
            f"BetaVSC: {gene_likelihood}, n_latent {n_latent}, alpha {alpha}, beta {beta}, {prior} prior, "
            f"{networks.decodes.name} decoder"
        )
        self.init_params_ = self._get_init_params(locals())

    def _pseudo_inputs(self, n: int, likelihood: Likelihood) -> torch.Tensor:
        """Return the initial pseudo-inputs, which are randomly drawn cells."""
        if self.adata is None:  # the values are loaded with the weights
            return torch.zeros(n, self.sizes.n_vars)
        x = self.reader.table().x
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
        """Return the probability that each latent is on, cells x latents.

        Parameters
        ----------
        adata
            New cells with the genes of the model; ``None`` is the model's own.
        indices
            Row numbers or a mask; ``None`` is all cells.
        batch_size
            Number of cells that are encoded at a time.

        Examples
        --------
        >>> betavsc.get_active().shape
        (200, 30)
        """

        def active(batch: Batch) -> torch.Tensor:
            return _active(self, batch, self.module.encode(batch))["active"]

        values = self.reader.per_cell(active, adata, indices, batch_size)
        return pd.DataFrame(values, index=self.reader.names(adata, indices), columns=_names(values.shape[1]))

    def get_sparsity(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> pd.Series:
        """Return the expected share of the latents that are off in each cell.

        Parameters
        ----------
        adata
            New cells with the genes of the model; ``None`` is the model's own.
        indices
            Row numbers or a mask; ``None`` is all cells.
        batch_size
            Number of cells that are encoded at a time.

        Examples
        --------
        >>> bool(betavsc.get_sparsity().between(0, 1).all())
        True
        """
        return (1 - self.get_active(adata, indices, batch_size).mean(axis=1)).rename("sparsity")

    def get_latent_cells(
        self, latent: int, adata: AnnData | None = None, *, least: float = 0.5
    ) -> pd.DataFrame:
        """Return the cells in which a latent is on, those with the largest absolute values first.

        Parameters
        ----------
        latent
            Number of the latent, from 0.
        adata
            New cells with the genes of the model; ``None`` is the model's own.
        least
            Smallest probability with which the latent is on in the cells to return.

        Returns
        -------
        Columns ``code`` (value of the latent) and ``active`` (probability that it is on); the index has the
        names of the cells.

        Examples
        --------
        >>> list(betavsc.get_latent_cells(0))
        ['code', 'active']
        """
        active = self.get_active(adata)
        check_latent(latent, active.shape[1])
        code = self.get_latent_representation(adata)[:, latent]
        frame = pd.DataFrame({"code": code, "active": active.iloc[:, latent]}, index=active.index)
        frame = frame[frame["active"] >= least]
        return frame.iloc[np.argsort(-frame["code"].abs().to_numpy(), kind="stable")]

    def get_latent_summary(self, adata: AnnData | None = None, *, n_genes: int = 5) -> pd.DataFrame:
        """Return one row for each latent: how often it is on, how much it varies, and its genes.

        Parameters
        ----------
        adata
            New cells with the genes of the model; ``None`` is the model's own.
        n_genes
            Number of genes to name that rise with the latent, and that fall with it.

        Returns
        -------
        Columns ``active`` (share of the cells in which the latent is probably on), ``spread`` (standard
        deviation of its values over all cells), ``up`` and ``down`` (names of genes). The index is the number
        of the latent, and the most used latents come first.

        Examples
        --------
        >>> list(betavsc.get_latent_summary())
        ['active', 'spread', 'up', 'down']
        """
        whole(n_genes=n_genes)
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


def _active(model: ModelOf[VSC], batch: Batch, q: Distributions) -> dict[str, torch.Tensor]:
    """Return the probability that each latent is on, for the cells of a batch."""
    q_z = q["z"]
    assert isinstance(q_z, SpikeSlab)
    return {"active": q_z.active}


def _write_active(model: ModelOf[VSC], key: str, found: Found, names: pd.Index) -> Written:
    """Return the probabilities that latents are on, and the sparsity of each cell, under their keys."""
    active = pd.DataFrame(found["active"], index=names, columns=_names(found["active"].shape[1]))
    sparsity = (1 - active.mean(axis=1)).to_numpy()
    return {"obsm": {_keys.active(key): active}, "obs": {_keys.sparsity(key): sparsity}}


def _names(n_latent: int) -> list[str]:
    """Return a name for each latent."""
    return [f"z{j}" for j in range(n_latent)]


def _check(alpha: float, slab_warmup: float, prior: str, norm: str) -> None:
    """Raise an error for values out of range and for settings that cannot be combined."""
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


BetaVSC.annotators = (LATENT, Annotator(_active, _write_active))
