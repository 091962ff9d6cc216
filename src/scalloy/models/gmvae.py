"""GMVAE, the model class for users; its mathematics is in :mod:`scalloy.vae.gmvae`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from anndata import AnnData

from scalloy._arguments import whole
from scalloy._seeds import repeatable
from scalloy.blocks.mixture_prior import MixturePrior
from scalloy.blocks.network_kinds import Network
from scalloy.blocks.networks import NetworkSettings
from scalloy.models._core import cluster_tree, clusters, factories, generate
from scalloy.models._core.annotations import LATENT
from scalloy.models._core.base import ScalloyModel
from scalloy.models._core.factories import GeneLikelihood, Library
from scalloy.vae.gmvae import GMVAE as GMVAEMath


class GMVAE(ScalloyModel):
    """Gaussian-mixture VAE of raw counts: each component of its prior is a cluster of cells.

    Parameters
    ----------
    adata
        Cells, registered with :meth:`setup_anndata`. If they are not, ``.X`` is modelled as it is.
    registry
        Registry that :meth:`setup_anndata` made, for a model without cells.
    n_clusters
        Number of components, each of which is a cluster. With 1 the model is :class:`~scalloy.VAE`.
    n_hidden, n_latent, n_layers, dropout_rate, gene_likelihood, dispersion, k_max, library, \
encode_covariates, norm, encoder, decoder
        As in :class:`~scalloy.VAE`.
    weights
        Weights of the components: ``"learned"``, ``"uniform"``, or one number for each, the largest of which
        goes to the largest group of cells.
    n_decoded
        Number of codes per cell that are decoded in a training step; see :mod:`scalloy.vae.gmvae`. The cost
        grows with this number and not with ``n_clusters``. If it equals ``n_clusters``, none of the
        components is drawn at random.
    seed
        Random seed, as in :class:`~scalloy.VAE`.

    Examples
    --------
    >>> adata = sa.datasets.kang()
    >>> sa.GMVAE.setup_anndata(adata, batch_key="condition")
    >>> model = sa.GMVAE(adata, n_clusters=8)
    >>> model.train()  # doctest: +SKIP
    >>> model.annotate(adata)
    >>> sizes = adata.obs["gmvae_cluster"].value_counts()
    """

    annotators = (LATENT, clusters.CLUSTERS)
    module: GMVAEMath

    cluster_names = property(clusters.cluster_names)
    get_clusters = clusters.get_clusters
    get_cluster_probabilities = clusters.get_cluster_probabilities
    get_cluster_tree = cluster_tree.get_cluster_tree
    get_usage = clusters.get_usage
    n_alive = clusters.n_alive
    generate = generate.generate

    @repeatable
    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_clusters: int = 10,
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
        weights: Literal["learned", "uniform"] | Sequence[float] = "learned",
        n_decoded: int = 2,
        encoder: Network = "mlp",
        decoder: Network = "mlp",
        *,
        seed: int | None = None,
    ) -> None:
        whole(n_clusters=n_clusters)
        networks = NetworkSettings(
            n_hidden, n_latent, n_layers, dropout_rate, norm, encode_covariates, encoder, decoder
        )
        if n_decoded < 2:
            msg = f"`n_decoded={n_decoded}` must be at least 2: one code has nothing to be compared with."
            raise ValueError(msg)
        super().__init__(adata, registry)
        sizes = self.sizes
        width = networks.n_decoded(sizes.n_vars, **sizes.covariates)
        weights = weights if isinstance(weights, str) else [float(w) for w in weights]
        self.module = GMVAEMath(
            sizes,
            self.make_likelihood(
                gene_likelihood,
                width,
                dispersion=dispersion,
                k_max=k_max,
                library=library,
                per_gene=networks.per_gene,
            ),
            MixturePrior(
                factories.components("decoder", sizes, n_clusters, n_latent, 0),
                factories.cluster_weights(weights, n_clusters),
            ),
            networks,
            library_prior=self.make_library_prior(library),
            n_decoded=n_decoded,
        )
        self._model_summary_string = f"GMVAE: {n_clusters} clusters, {gene_likelihood}, n_latent {n_latent}"
        self.init_params_ = self._get_init_params(locals())
