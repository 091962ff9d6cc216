"""Plain autoencoder for users. The mathematics is in :mod:`scalloy.vae.autoencoder`."""

from __future__ import annotations

from typing import Any

from anndata import AnnData

from scalloy._seeds import repeatable
from scalloy.models import _options
from scalloy.models._base import ScalloyModel
from scalloy.models._options import GeneLikelihood
from scalloy.vae.autoencoder import AE as AEMath


class AE(ScalloyModel):
    """Autoencoder without prior or sampling; by default of log-normalised expression, squared error.

    Parameters
    ----------
    adata, registry, n_hidden, n_latent, n_layers, dropout_rate, dispersion, encode_covariates, norm
        As in :class:`scalloy.VAE`.
    gene_likelihood
        As in :class:`scalloy.VAE`; ``"mse"`` is the classical one.
    library
        ``"observed"`` (or as given by ``size_factor_key``) or ``"none"``.
    seed
        As in :class:`scalloy.VAE`.
    """

    @repeatable
    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        gene_likelihood: GeneLikelihood = "mse",
        dispersion: str = "gene",
        library: str = "observed",
        encode_covariates: bool = False,
        norm: str = "layer",
        *,
        seed: int | None = None,
    ) -> None:
        _options.whole(n_hidden=n_hidden, n_latent=n_latent, n_layers=n_layers)
        _options.one_of("norm", norm, _options.NORMS)
        _options.one_of("library", library, ("observed", "none"))
        super().__init__(adata, registry)
        self.module = AEMath(
            self._sizes(),
            self._likelihood(gene_likelihood, n_hidden, dispersion=dispersion, library=library),
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            norm=norm,
            encode_covariates=encode_covariates,
        )
        self._model_summary_string = (
            f"AE: {gene_likelihood}, n_latent {n_latent}, n_hidden {n_hidden} x {n_layers}"
        )
        self.init_params_ = self._get_init_params(locals())

    def get_marginal_ll(self, *args: Any, **kwargs: Any) -> Any:
        """An autoencoder has no prior, so nothing to integrate: raises."""
        msg = "AE has no prior over its code, hence no marginal likelihood. Use VAE for one."
        raise NotImplementedError(msg)
