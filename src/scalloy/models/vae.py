"""VAE and beta-VAE for users. The mathematics is in :mod:`scalloy.vae.vae`."""

from __future__ import annotations

import inspect
from typing import Any

from anndata import AnnData

from scalloy._seeds import repeatable
from scalloy.models import _options
from scalloy.models._base import ScalloyModel
from scalloy.models._options import GeneLikelihood, Library
from scalloy.vae.vae import VAE as VAEMath


class VAE(ScalloyModel):
    """Variational autoencoder of raw counts.

    Parameters
    ----------
    adata
        Cells, registered with :meth:`setup_anndata` (or not: then ``.X`` is modelled as it is).
    registry
        What :meth:`setup_anndata` stored, to work without cells.
    n_hidden
        Units of each hidden layer.
    n_latent
        Dimensions of the latent space.
    n_layers
        Hidden layers of the encoder, and of the decoder.
    dropout_rate
        In the encoder.
    gene_likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"``, ``"zip"``, ``"constrained_poisson"`` (raw counts);
        ``"gaussian"``, ``"mse"`` (log-normalised within the model, variance learned or fixed);
        ``"normal"``, ``"bernoulli_given"`` (the data as given); ``"bernoulli"`` (detected or not).
    dispersion
        Inverse dispersion per ``"gene"``, ``"gene-batch"`` or ``"gene-cell"`` (NB and ZINB).
    k_max
        Counts below it are categories of their own (piecewise categorical, with Poisson and NB); 0 is none.
    library
        Library size: ``"observed"`` (or as given by ``size_factor_key``), ``"learned"``, or ``"none"``
        for rates that are free of it.
    encode_covariates
        Whether the encoder sees batch and covariates too; the decoder always does.
    norm
        ``"layer"``, ``"batch"`` or ``"none"``.
    seed
        Of the first weights, of the cells that are left out, and of all that is drawn in training and later.
        ``None`` is ``scvi.settings.seed``, or 0: the same data and settings give the same model.

    Examples
    --------
    >>> adata = sa.datasets.kang()
    >>> sa.VAE.setup_anndata(adata, batch_key="batch")
    >>> model = sa.VAE(adata)
    >>> model.train()
    >>> model.annotate(adata)
    >>> sc.pp.neighbors(adata, use_rep="X_vae")
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
        gene_likelihood: GeneLikelihood = "nb",
        dispersion: str = "gene",
        k_max: int = 0,
        library: Library = "observed",
        encode_covariates: bool = False,
        norm: str = "layer",
        *,
        seed: int | None = None,
    ) -> None:
        _options.whole(n_hidden=n_hidden, n_latent=n_latent, n_layers=n_layers)
        _options.one_of("norm", norm, _options.NORMS)
        super().__init__(adata, registry)
        self.module = VAEMath(
            self._sizes(),
            self._likelihood(gene_likelihood, n_hidden, dispersion=dispersion, k_max=k_max, library=library),
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            norm=norm,
            encode_covariates=encode_covariates,
            library_prior=self._library_prior(library),
        )
        self._model_summary_string = (
            f"{type(self).__name__}: {gene_likelihood}, n_latent {n_latent}, n_hidden {n_hidden} x {n_layers}"
        )
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def from_scvi(cls, model: Any) -> VAE:
        """The same model as a :class:`scvi.model.SCVI`, with its weights, history and cells.

        The code of each cell is the same, and so is what is decoded from it; the variance of the code lacks
        the 1e-4 that scvi-tools adds to it.

        Parameters
        ----------
        model
            Of scvi-tools, with its cells.
        """
        from scalloy.models._scvi import from_scvi

        return from_scvi(VAE, model)


class BetaVAE(VAE):
    """VAE whose KL weighs ``beta``: above one, a simpler code at the price of reconstruction.

    Parameters
    ----------
    beta
        Weight of the KL in the training objective; 1 is the VAE.
    adata, registry, **kwargs
        As in :class:`VAE`.
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        beta: float = 4.0,
        **kwargs: Any,
    ) -> None:
        _options.positive(beta=beta)
        super().__init__(adata, registry, **kwargs)
        self._plan_defaults = {"weights": {"z": beta}}
        self._model_summary_string += f", beta {beta}"
        defaults = {k: p.default for k, p in inspect.signature(VAE).parameters.items()}
        settings = {**defaults, **kwargs, "beta": beta, "seed": self.seed}
        known = {k: v for k, v in settings.items() if k not in {"adata", "registry"}}
        self.init_params_ = {"kwargs": {}, "non_kwargs": known}
