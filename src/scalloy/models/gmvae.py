"""GMVAE for users. The mathematics is in :mod:`scalloy.vae.gmvae`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from anndata import AnnData

from scalloy._seeds import repeatable
from scalloy.blocks.priors import MixturePrior
from scalloy.models import _options
from scalloy.models._mixture import MixtureModel
from scalloy.models._options import GeneLikelihood, Library
from scalloy.vae.gmvae import GMVAE as GMVAEMath


class GMVAE(MixtureModel):
    """Gaussian-mixture VAE of raw counts: the code of a cell, and the cluster that it was drawn from.

    Parameters
    ----------
    adata
        Cells, registered with :meth:`setup_anndata` (or not: then ``.X`` is modelled as it is).
    registry
        What :meth:`setup_anndata` stored, to work without cells.
    n_clusters
        Components, each a cluster. With one the model is :class:`~scalloy.VAE`.
    n_hidden, n_latent, n_layers, dropout_rate, gene_likelihood, dispersion, k_max, library, \
encode_covariates, norm
        As in :class:`~scalloy.VAE`.
    weights
        Of the components: ``"learned"``, ``"uniform"``, or numbers, of which the largest group of cells takes
        the largest.
    n_decoded
        Codes of a cell that are decoded in a step of training; see :mod:`scalloy.vae.gmvae`. The cost grows
        with them and not with ``n_clusters``; as many as clusters leave nothing to chance.
    seed
        As in :class:`~scalloy.VAE`.

    Examples
    --------
    >>> adata = sa.datasets.kang()
    >>> sa.GMVAE.setup_anndata(adata, batch_key="condition")
    >>> model = sa.GMVAE(adata, n_clusters=8)
    >>> model.train()
    >>> model.annotate(adata)
    >>> adata.obs["gmvae_cluster"]
    """

    @repeatable
    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_clusters: int = 10,
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
        weights: Literal["learned", "uniform"] | Sequence[float] = "learned",
        n_decoded: int = 2,
        *,
        seed: int | None = None,
    ) -> None:
        _options.whole(n_clusters=n_clusters, n_hidden=n_hidden, n_latent=n_latent, n_layers=n_layers)
        _options.one_of("norm", norm, _options.NORMS)
        if n_decoded < 2:
            msg = f"`n_decoded={n_decoded}` must be at least 2: one code has nothing to be compared with."
            raise ValueError(msg)
        super().__init__(adata, registry)
        sizes = self._sizes()
        weights = weights if isinstance(weights, str) else [float(w) for w in weights]
        self.module = GMVAEMath(
            sizes,
            self._likelihood(gene_likelihood, n_hidden, dispersion=dispersion, k_max=k_max, library=library),
            MixturePrior(
                _options.components("decoder", sizes, n_clusters, n_latent, 0),
                _options.cluster_weights(weights, n_clusters),
            ),
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            norm=norm,
            encode_covariates=encode_covariates,
            library_prior=self._library_prior(library),
            n_decoded=n_decoded,
        )
        self._model_summary_string = f"GMVAE: {n_clusters} clusters, {gene_likelihood}, n_latent {n_latent}"
        self.init_params_ = self._get_init_params(locals())
