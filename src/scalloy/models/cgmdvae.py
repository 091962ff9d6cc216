"""CGMDVAE, the model class for users; its mathematics is in :mod:`scalloy.vae.cgmdvae`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from anndata import AnnData

from scalloy._arguments import one_of, positive
from scalloy._seeds import repeatable
from scalloy.blocks.mixture_prior import MixturePrior
from scalloy.blocks.network_kinds import Network
from scalloy.blocks.networks import UNBOUNDED, Domain, NetworkSettings
from scalloy.models._core import (
    cluster_tree,
    clusters,
    conditions,
    factories,
    generate,
    groups,
    labels,
    novel,
    responses,
)
from scalloy.models._core.annotations import LATENT
from scalloy.models._core.base import ScalloyModel
from scalloy.models._core.factories import GeneLikelihood, MixtureWeights
from scalloy.models._core.setup import OneModality
from scalloy.vae.cgmdvae import CGMDVAE as CGMDVAEMath

THESIS, THESIS_LIKELIHOOD = Domain(5.0, (-9.0, 1.0)), "mse"  # of Kolb's thesis: bounds of q, likelihood
CONDITION_WEIGHT = 5.0  # with 1, conditions that start at the same place separate too slowly in some runs
W_OF_OLD_FILES = ("relative",)  # what "condition" is called if the model is from file formats 1 to 3


class CGMDVAE(ScalloyModel):
    """Conditional Gaussian-mixture Dirichlet VAE: a VAE whose prior is a mixture of Gaussians.

    Without labels, the components of the mixture become clusters of cells. If some or all of the cells are
    labelled, it predicts the labels of the others and says which cells are of none of the known types. It
    also predicts how cells would look under another condition.

    Parameters
    ----------
    adata
        Cells, registered with :meth:`setup_anndata`. If they are not, ``.X`` is modelled as it is.
    registry
        Registry that :meth:`setup_anndata` made, for a model without cells.
    n_clusters
        Number of clusters. Superfluous clusters stay empty or small. With 1 there is a single component: a
        conditional VAE with one Gaussian as its prior. ``None`` finds the number: 25 components are leaves of
        a tree (:mod:`scalloy.blocks.cluster_tree`), which is cut there. If there are labels, the first
        clusters are bound to them and the others are free; ``None`` then adds five free ones. It also makes
        five clusters with ``weights="uniform"`` or ``"local"``, which do not allow merging.
    n_hidden, n_latent, n_layers, dropout_rate, norm, encoder, decoder
        Settings of the networks, as in :class:`~scalloy.VAE`.
    n_w
        Number of dimensions of the style latent ``w``, which moves the components; 0 means none.
    gene_likelihood, dispersion
        As in :class:`~scalloy.VAE`.
    conditioning
        Where the condition acts. ``"decoder"``: in the encoder and the decoder only. In the other cases it
        also moves the components: ``"shared"`` moves all of them together, ``"interaction"`` also moves each
        of them a little in its own way, ``"full"`` moves each of them freely.
    weights
        Weights of the mixture: ``"global"`` (one Dirichlet), ``"condition"`` (one Dirichlet per condition),
        ``"empirical"`` (a point estimate), ``"uniform"``, ``"local"`` (one Dirichlet per cell), or a name
        under which you registered other weights, see :func:`scalloy.blocks.mixture_weights.register`.
    alpha
        Concentration of the Dirichlet.
    assignment
        How the component of a cell is found: ``"exact"`` integrates it out, ``"amortised"`` has a network.
    w_prior
        Prior of the style latent. ``"standard"`` is N(0, I). ``"condition"`` learns a mean and a scale for
        each condition, so that ``w`` tells conditions apart (:mod:`scalloy.blocks.style_prior`).
        ``"relative"`` is what models with ``"condition"`` have that were saved in file formats 1 to 3.
    label_weight
        Weight of the penalty on labels that the components do not predict. With a larger weight, labels are
        predicted a little better if half of them are known, and cells under another condition worse.
    mmd_weight
        Weight of the penalty on differences between batches within components (their squared MMD); 0 means
        none. With 200 and at least 256 cells per step (``train(batch_size=256)``), batches that differ much
        mix better, and cell types stay apart about as well. Needs ``batch_key``.
    as_published
        Whether to train as in Kolb's thesis: with bounded latents, components that start at random places, no
        warm-up, and squared errors that weigh twice as much.
    seed
        Random seed, as in :class:`~scalloy.VAE`.

    Examples
    --------
    >>> adata = sa.datasets.kang()
    >>> sa.CGMDVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    >>> model = sa.CGMDVAE(adata)
    >>> model.train()  # doctest: +SKIP
    >>> model.annotate()
    >>> b_cells = adata[(adata.obs["cell_type"] == "B cells") & (adata.obs["condition"] == "control")].copy()
    >>> stimulated = model.transfer(b_cells, to="stimulated")
    """

    ROUTES = ("auto", "decoder", "transport", "style")
    layout = OneModality(condition=True, unlabeled=True)
    annotators = (LATENT, clusters.CLUSTERS, labels.LABELS)
    module: CGMDVAEMath

    train = labels.train
    predict_labels = labels.predict_labels
    get_unknown_score = labels.get_unknown_score
    get_novel = novel.get_novel

    cluster_names = property(clusters.cluster_names)
    get_clusters = clusters.get_clusters
    get_cluster_probabilities = clusters.get_cluster_probabilities
    get_cluster_tree = cluster_tree.get_cluster_tree
    get_usage = clusters.get_usage
    n_alive = clusters.n_alive
    generate = generate.generate

    condition_key = property(conditions.key)
    transfer = conditions.transfer
    write_transfer = conditions.write_transfer
    predict = conditions.predict
    get_transfer_groups = groups.get_transfer_groups
    dose_response = responses.dose_response
    interactions = responses.interactions
    get_nearest_conditions = responses.get_nearest_conditions
    _group_unlabelled = groups.as_predicted
    conditions = property(conditions.names)

    @repeatable
    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_clusters: int | None = None,
        n_hidden: int | Sequence[int] = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        n_w: int = 0,
        dropout_rate: float = 0.1,
        gene_likelihood: GeneLikelihood = "nb",
        dispersion: str = "gene",
        conditioning: Literal["decoder", "shared", "interaction", "full"] = "decoder",
        weights: MixtureWeights = "global",
        alpha: float = 1.0,
        assignment: Literal["exact", "amortised"] = "exact",
        w_prior: Literal["standard", "condition", "relative"] = "standard",
        norm: str = "layer",
        label_weight: float = 1.0,
        as_published: bool = False,
        encoder: Network = "mlp",
        decoder: Network = "mlp",
        *,
        mmd_weight: float = 0.0,
        seed: int | None = None,
    ) -> None:
        positive(alpha=alpha)
        networks = NetworkSettings(
            n_hidden, n_latent, n_layers, dropout_rate, norm, encoder_kind=encoder, decoder_kind=decoder
        )
        one_of("assignment", assignment, ("exact", "amortised"))
        one_of("w_prior", w_prior, ("standard", "condition", *W_OF_OLD_FILES))
        if w_prior == "condition" and not n_w:
            msg = "`w_prior='condition'` is the prior of `w`, and there is none. Pass `n_w=1`, say."
            raise ValueError(msg)
        super().__init__(adata, registry)
        _check_batches(self.sizes.n_batch, mmd_weight)
        sizes, merges = replace(self.sizes, n_labels=len(self.labels)), not self.labels
        merges &= factories.merges(weights)
        clusters, n_components = factories.clusters(n_clusters, sizes.n_labels, merges=merges)
        prior = MixturePrior(
            factories.components(conditioning, sizes, n_components, n_latent, n_w),
            factories.weights(weights, sizes, n_components, alpha),
            n_labels=sizes.n_labels,
            n_conditions=sizes.n_conditions,
            n_clusters=clusters,
            placed=as_published,
            hierarchy=None if (tree := self.reader.tree) is None else tree.hierarchy,
        )
        self.module = CGMDVAEMath(
            sizes,
            self.make_likelihood(
                gene_likelihood,
                networks.n_decoded(sizes.n_vars, **sizes.known),
                dispersion=dispersion,
                per_gene=networks.per_gene,
            ),
            prior,
            networks,
            n_w=n_w,
            w_prior="free" if as_published and w_prior == "condition" else w_prior,
            amortised=assignment == "amortised",
            ridge=1.0 if conditioning == "interaction" else 0.0,
            domain=THESIS if as_published else UNBOUNDED,
            calibrated=tree is not None,
            mmd=mmd_weight > 0,
        )
        self._plan_defaults = plan(gene_likelihood, label_weight if self.labels else None, as_published)
        if self.module.w_prior == "condition":
            self._plan_defaults["weights"]["condition"] = CONDITION_WEIGHT
        if mmd_weight:
            self._plan_defaults["weights"]["mmd"] = mmd_weight
        self._model_summary_string = f"CGMDVAE: {n_components} components for {clusters or 'any number of'} \
clusters, {gene_likelihood}, n_latent {n_latent}"
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def original(cls, adata: AnnData, n_clusters: int = 10, **kwargs: Any) -> CGMDVAE:
        """Make the model of Kolb's thesis (2023), for comparison.

        It has squared errors of log-normalised expression, a Dirichlet for each cell (integrated out), a
        network for the component, a condition that acts everywhere, a style latent as large as ``z``, and no
        warm-up. It differs from the thesis in three ways:

        - Bounds. The thesis softly keeps the means of q(z), q(w), every component of p(z | w, y, c) and a
          learned p(w | c) within (-5, 5), and their log-variances within (-9, 1). Here only q(z) and q(w) are
          bounded so (by a hyperbolic tangent and a clamp); log-scales of components lie within (-5, 3).
        - The Dirichlet of a cell is integrated out under the best q(d). The thesis samples it from the output
          of a network.
        - The optimizer and its schedule are those of this package (the thesis steps through several learning
          rates), and the best weights are restored.

        Parameters
        ----------
        adata
            Cells, registered with :meth:`setup_anndata`.
        n_clusters
            Number of components.
        **kwargs
            Other arguments of the constructor; the defaults are those of the thesis.

        Examples
        --------
        >>> sa.CGMDVAE.setup_anndata(adata, condition_key="condition")
        >>> thesis = sa.CGMDVAE.original(adata, n_clusters=5)
        """
        n_latent = kwargs.pop("n_latent", 12)
        thesis = {
            "n_hidden": 1024,
            "n_layers": 2,
            "n_w": n_latent,
            "dropout_rate": 0.15,
            "gene_likelihood": "mse",
            "conditioning": "full",
            "weights": "local",
            "assignment": "amortised",
            "norm": "batch",
            "label_weight": 1.0,
            "as_published": True,
        }
        return cls(adata, n_clusters=n_clusters, n_latent=n_latent, **{**thesis, **kwargs})


def _check_batches(n_batch: int, mmd_weight: float) -> None:
    """Raise if the weight is negative, or if there are no batches to compare."""
    if not (mmd_weight >= 0 and (mmd_weight == 0 or n_batch > 1)):
        msg = (
            f"`mmd_weight={mmd_weight}` is the weight of differences between batches, of which there are "
            f"{n_batch}. Pass a number above 0 and `setup_anndata(batch_key=)` with two or more, or 0."
        )
        raise ValueError(msg)


def plan(gene_likelihood: str, label_weight: float | None, as_published: bool) -> dict[str, Any]:
    """Return the weights of the terms of the objective, and the warm-up.

    The squared errors of the thesis lack the factor 1/2; halving all other weights has the same effect.
    """
    half = 0.5 if as_published and gene_likelihood == THESIS_LIKELIHOOD else 1.0
    weights = {"kl": half} if half != 1 else {}
    if label_weight is not None:
        weights["label"] = half * label_weight
    return {"weights": weights, **({"kl_warmup": 0.0} if as_published else {})}
