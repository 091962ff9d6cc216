"""AE, the plain autoencoder for users; its mathematics is in :mod:`scalloy.vae.autoencoder`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anndata import AnnData

from scalloy._arguments import one_of
from scalloy._seeds import repeatable
from scalloy.blocks.network_kinds import Network
from scalloy.blocks.networks import NetworkSettings
from scalloy.models._core.base import ScalloyModel
from scalloy.models._core.factories import GeneLikelihood
from scalloy.vae.autoencoder import AE as AEMath


class AE(ScalloyModel):
    """Autoencoder without a prior and without sampling.

    By default it minimises the squared error of log-normalised expression.

    Parameters
    ----------
    adata, registry, n_hidden, n_latent, n_layers, dropout_rate, dispersion, encode_covariates, norm, \
encoder, decoder, seed
        As in :class:`~scalloy.VAE`.
    gene_likelihood
        Likelihood, one of those of :class:`~scalloy.VAE`; ``"mse"`` gives the classical autoencoder.
    library
        Library size: ``"observed"`` is the total count (or ``size_factor_key``); with ``"none"`` the expected
        counts do not depend on it.

    Examples
    --------
    >>> adata = sa.datasets.kang()
    >>> sa.AE.setup_anndata(adata)
    >>> model = sa.AE(adata)
    >>> model.train()  # doctest: +SKIP
    >>> model.annotate()
    >>> adata.obsm["X_ae"].shape
    (6137, 10)
    """

    @repeatable
    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_hidden: int | Sequence[int] = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        gene_likelihood: GeneLikelihood = "mse",
        dispersion: str = "gene",
        library: str = "observed",
        encode_covariates: bool = False,
        norm: str = "layer",
        encoder: Network = "mlp",
        decoder: Network = "mlp",
        *,
        seed: int | None = None,
    ) -> None:
        networks = NetworkSettings(
            n_hidden, n_latent, n_layers, dropout_rate, norm, encode_covariates, encoder, decoder
        )
        one_of("library", library, ("observed", "none"))
        super().__init__(adata, registry)
        width = networks.n_decoded(self.sizes.n_vars, **self.sizes.covariates)
        self.module = AEMath(
            self.sizes,
            self.make_likelihood(
                gene_likelihood, width, dispersion=dispersion, library=library, per_gene=networks.per_gene
            ),
            networks,
        )
        self._model_summary_string = f"AE: {gene_likelihood}, n_latent {n_latent}, {networks}"
        self.init_params_ = self._get_init_params(locals())

    def get_marginal_ll(self, *args: Any, **kwargs: Any) -> Any:
        """Raise an error: an autoencoder has no prior, hence no marginal likelihood.

        Parameters
        ----------
        *args, **kwargs
            Ignored.

        Examples
        --------
        >>> sa.VAE.setup_anndata(adata)
        >>> vae = sa.VAE(adata)
        >>> vae.train(max_epochs=2, enable_progress_bar=False)
        >>> vae.get_marginal_ll(n_mc_samples=10) < 0
        True
        """
        msg = "AE has no prior over its code, hence no marginal likelihood. Use VAE for one."
        raise NotImplementedError(msg)
