"""VAE and BetaVAE, the model classes for users; their mathematics is in :mod:`scalloy.vae.vae`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anndata import AnnData

from scalloy._arguments import positive
from scalloy._seeds import repeatable
from scalloy.blocks.network_kinds import Network
from scalloy.blocks.networks import NetworkSettings
from scalloy.models._core import generate
from scalloy.models._core.base import ScalloyModel
from scalloy.models._core.factories import GeneLikelihood, Library
from scalloy.models._core.from_scvi import from_scvi
from scalloy.vae.vae import VAE as VAEMath


class VAE(ScalloyModel):
    """Variational autoencoder of raw counts.

    Parameters
    ----------
    adata
        Cells, registered with :meth:`setup_anndata`. If they are not, ``.X`` is modelled as it is.
    registry
        Registry that :meth:`setup_anndata` made, for a model without cells.
    n_hidden
        Number of units of each hidden layer, or a list with that of each layer of the encoder, such as
        ``[128, 64]``; the decoder then has them in reverse.
    n_latent
        Number of dimensions of the latent space.
    n_layers
        Number of hidden layers of the encoder, and of the decoder, if ``n_hidden`` is one number.
    dropout_rate
        Dropout rate of the encoder.
    gene_likelihood
        Likelihood of the data. For raw counts: ``"nb"``, ``"zinb"``, ``"poisson"``, ``"zip"`` and
        ``"constrained_poisson"``, or ``"bernoulli"`` for whether each gene was detected. For expression that
        the model log-normalises itself: ``"gaussian"`` (learned variance) and ``"mse"`` (fixed variance). For
        the data as given: ``"normal"`` and ``"bernoulli_given"`` (values from 0 to 1). Other likelihoods have
        the names under which you registered them, see :func:`scalloy.blocks.gene_likelihoods.register`.
    dispersion
        Inverse dispersion of NB and ZINB: one for each gene (``"gene"``), for each gene and batch
        (``"gene-batch"``), or for each gene and cell (``"gene-cell"``).
    k_max
        Counts below this number are categories of their own: a piecewise categorical likelihood, with NB or
        Poisson for larger counts. 0 means none.
    library
        Library size of a cell: ``"observed"`` is its total count (or ``size_factor_key``), ``"learned"``
        makes it a latent, and with ``"none"`` the expected counts do not depend on it.
    encode_covariates
        Whether the encoder sees batch and covariates too; the decoder always does.
    norm
        Normalisation of the hidden layers: ``"layer"``, ``"batch"`` or ``"none"``.
    encoder, decoder
        Network of each: ``"mlp"`` (hidden layers), ``"residual"``, ``"conv"`` (the genes are the pixels of an
        image), as a decoder also ``"linear"``, or a name under which you registered your own, see
        :func:`scalloy.blocks.network_kinds.register`. A dictionary has the name and settings:
        ``{"kind": "conv", "shape": (28, 28)}``, or ``{"n_hidden": [64, 64, 128]}`` for layers of its own.
    seed
        Random seed of the initial weights, of the split of the cells, and of all draws in training and later.
        ``None`` uses ``scvi.settings.seed``, or 0 if that is not set, so the same data and settings give the
        same model.

    Examples
    --------
    >>> import scanpy as sc
    >>> adata = sa.datasets.kang()
    >>> sa.VAE.setup_anndata(adata, batch_key="batch")
    >>> model = sa.VAE(adata)
    >>> model.train()  # doctest: +SKIP
    >>> model.annotate(adata)
    >>> sc.pp.neighbors(adata, use_rep="X_vae")  # doctest: +SKIP
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
        gene_likelihood: GeneLikelihood = "nb",
        dispersion: str = "gene",
        k_max: int = 0,
        library: Library = "observed",
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
        super().__init__(adata, registry)
        _build(self, networks, gene_likelihood, dispersion=dispersion, k_max=k_max, library=library)
        self.init_params_ = self._get_init_params(locals())

    from_scvi = classmethod(from_scvi)
    generate = generate.generate


class BetaVAE(ScalloyModel):
    """VAE whose KL divergence has the weight ``beta``: above 1, a simpler code for a worse reconstruction.

    Parameters
    ----------
    adata
        Cells, registered with :meth:`setup_anndata`. If they are not, ``.X`` is modelled as it is.
    registry
        Registry that :meth:`setup_anndata` made, for a model without cells.
    beta
        Weight of the KL divergence in the training objective; 1 gives the VAE.
    n_hidden, n_latent, n_layers, dropout_rate, gene_likelihood, dispersion, k_max, library, \
encode_covariates, norm, encoder, decoder, seed
        As in :class:`VAE`.

    Examples
    --------
    >>> sa.BetaVAE.setup_anndata(adata, batch_key="batch")
    >>> betavae = sa.BetaVAE(adata, beta=4.0, n_latent=5)
    """

    from_scvi = VAE.from_scvi
    generate = generate.generate

    @repeatable
    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        beta: float = 4.0,
        n_hidden: int | Sequence[int] = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        gene_likelihood: GeneLikelihood = "nb",
        dispersion: str = "gene",
        k_max: int = 0,
        library: Library = "observed",
        encode_covariates: bool = False,
        norm: str = "layer",
        encoder: Network = "mlp",
        decoder: Network = "mlp",
        *,
        seed: int | None = None,
    ) -> None:
        positive(beta=beta)
        networks = NetworkSettings(
            n_hidden, n_latent, n_layers, dropout_rate, norm, encode_covariates, encoder, decoder
        )
        super().__init__(adata, registry)
        _build(self, networks, gene_likelihood, dispersion=dispersion, k_max=k_max, library=library)
        self._plan_defaults = {"weights": {"z": beta}}
        self._model_summary_string += f", beta {beta}"
        self.init_params_ = self._get_init_params(locals())


def _build(
    model: ScalloyModel, networks: NetworkSettings, gene_likelihood: str, *, library: str, **of_counts: Any
) -> None:
    """Build the module of a model from its settings."""
    width = networks.n_decoded(model.sizes.n_vars, **model.sizes.covariates)
    model.module = VAEMath(
        model.sizes,
        model.make_likelihood(
            gene_likelihood, width, library=library, per_gene=networks.per_gene, **of_counts
        ),
        networks,
        library_prior=model.make_library_prior(library),
    )
    model._model_summary_string = (
        f"{type(model).__name__}: {gene_likelihood}, n_latent {networks.n_latent}, {networks}"
    )
