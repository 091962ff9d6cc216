"""CGMDVAE for users. The mathematics is in :mod:`scalloy.vae.cgmdvae`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import LabelsWithUnlabeledObsField

from scalloy._seeds import repeatable
from scalloy.blocks.networks import UNBOUNDED, Domain
from scalloy.blocks.priors import MixturePrior
from scalloy.models import _options
from scalloy.models._base import without
from scalloy.models._conditions import ConditionModel
from scalloy.models._labels import LabelModel
from scalloy.models._mixture import MixtureModel
from scalloy.models._options import GeneLikelihood
from scalloy.vae.cgmdvae import CGMDVAE as CGMDVAEMath

THESIS, THESIS_LIKELIHOOD = Domain(5.0, (-9.0, 1.0)), "mse"
CONDITION_WEIGHT = 5.0  # with 1 it takes some trainings too long to part conditions that begin together
W_OF_OLD_FILES = ("relative",)  # prior of w, in place of "condition" in files of formats 1 to 3


class CGMDVAE(LabelModel, MixtureModel, ConditionModel):
    """Conditional Gaussian-mixture Dirichlet VAE: populations without labels, with some, or with all.

    Parameters
    ----------
    adata
        Cells, registered with :meth:`setup_anndata` (or not: then ``.X`` is modelled as it is).
    registry
        What :meth:`setup_anndata` stored, to work without cells.
    n_clusters
        Clusters to find; more than needed is no harm, what is not needed stays empty. One is one component:
        a conditional VAE with a single Gaussian as its prior. ``None`` finds out: 25 components are merged
        where they share cells (:mod:`scalloy.blocks.partition`). With labels, the first clusters are bound to
        them and the others are free; ``None`` then is five free ones (as it is with weights ``"uniform"`` and
        ``"local"``, which do not merge).
    n_hidden, n_latent, n_layers, dropout_rate, norm
        Of the networks, as in :class:`~scalloy.VAE`.
    n_w
        Dimensions of a style latent that moves the components; 0 is none.
    gene_likelihood, dispersion
        As in :class:`~scalloy.VAE`.
    conditioning
        Where the condition acts: ``"decoder"`` (with the encoder), ``"shared"`` (it also moves all components
        together), ``"interaction"`` (and each a little in its own way), ``"full"`` (freely).
    weights
        Of the mixture: ``"global"`` (one Dirichlet), ``"condition"`` (one per condition), ``"empirical"``,
        ``"uniform"``, or ``"local"`` (one Dirichlet per cell).
    alpha
        Concentration of the Dirichlet.
    assignment
        ``"exact"`` integrates the component out, ``"amortised"`` has a network for it.
    w_prior
        Prior of the style latent: ``"standard"`` is N(0, I); under ``"condition"`` a mean and a scale of each
        condition are learned, and ``w`` tells conditions apart (:mod:`scalloy.blocks.styles`);
        ``"relative"`` is what became of the latter in models that were saved in formats 1 to 3.
    label_weight
        Weight of the penalty on labels which the components do not tell. More of it tells labels a little
        better where half of them are known, and makes worse predictions under another condition.
    as_published
        Train as in Kolb's thesis: latents within bounds, components that begin at random, no warm-up, and
        squared errors that weigh twice as much.
    seed
        As in :class:`~scalloy.VAE`.

    Examples
    --------
    >>> adata = sa.datasets.kang()
    >>> sa.CGMDVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    >>> model = sa.CGMDVAE(adata)
    >>> model.train()
    >>> model.annotate()
    >>> stimulated = model.transfer(adata[adata.obs["condition"] == "control"].copy(), to="stimulated")
    """

    ROUTES = ("auto", "decoder", "transport", "style")

    @repeatable
    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_clusters: int | None = None,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        n_w: int = 0,
        dropout_rate: float = 0.1,
        gene_likelihood: GeneLikelihood = "nb",
        dispersion: str = "gene",
        conditioning: Literal["decoder", "shared", "interaction", "full"] = "decoder",
        weights: Literal["global", "condition", "empirical", "uniform", "local"] = "global",
        alpha: float = 1.0,
        assignment: Literal["exact", "amortised"] = "exact",
        w_prior: Literal["standard", "condition", "relative"] = "standard",
        norm: str = "layer",
        label_weight: float = 1.0,
        as_published: bool = False,
        *,
        seed: int | None = None,
    ) -> None:
        _options.positive(n_hidden=n_hidden, n_latent=n_latent, n_layers=n_layers, alpha=alpha)
        _options.one_of("norm", norm, _options.NORMS)
        _options.one_of("assignment", assignment, ("exact", "amortised"))
        _options.one_of("w_prior", w_prior, ("standard", "condition", *W_OF_OLD_FILES))
        if w_prior == "condition" and not n_w:
            msg = "`w_prior='condition'` is the prior of `w`, and there is none. Pass `n_w=1`, say."
            raise ValueError(msg)
        super().__init__(adata, registry)
        sizes, merges = replace(self._sizes(), n_labels=len(self.labels)), not self.labels
        merges &= weights in {"global", "condition", "empirical"}
        clusters, n_components = _options.clusters(n_clusters, sizes.n_labels, merges=merges)
        prior = MixturePrior(
            _options.components(conditioning, sizes, n_components, n_latent, n_w),
            _options.weights(weights, sizes, n_components, alpha),
            n_labels=sizes.n_labels,
            n_conditions=sizes.n_conditions,
            n_clusters=clusters,
            placed=as_published,
        )
        self.module = CGMDVAEMath(
            sizes,
            self._likelihood(gene_likelihood, n_hidden, dispersion=dispersion),
            prior,
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            norm=norm,
            n_w=n_w,
            w_prior="free" if as_published and w_prior == "condition" else w_prior,
            amortised=assignment == "amortised",
            ridge=1.0 if conditioning == "interaction" else 0.0,
            domain=THESIS if as_published else UNBOUNDED,
        )
        self._plan_defaults = plan(gene_likelihood, label_weight if self.labels else None, as_published)
        if self.module.w_prior == "condition":
            self._plan_defaults["weights"]["condition"] = CONDITION_WEIGHT
        self._model_summary_string = f"CGMDVAE: {n_components} components for {clusters or 'any number of'} \
clusters, {gene_likelihood}, n_latent {n_latent}"
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(  # type: ignore[override]
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        condition_key: str | None = None,
        labels_key: str | None = None,
        unlabeled_category: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        allow_non_counts: bool = False,
        **kwargs: Any,
    ) -> None:
        """Say what is where in ``adata``: as in :class:`~scalloy.VAE`, and besides

        Parameters
        ----------
        adata, layer, batch_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys, \
allow_non_counts
            As in :meth:`scalloy.VAE.setup_anndata`.
        condition_key
            Column of ``.obs`` with the condition that predictions can change.
        labels_key
            Column of ``.obs`` with cell types; components are bound to them.
        unlabeled_category
            Value in that column of cells whose type is unknown; ``None``: all types are known. If no cell has
            it, a warning says so; if a label is spelled like it, an error.
        """
        cls._set_up(adata, cls._get_setup_method_args(**without(locals(), "__class__")), **kwargs)

    @classmethod
    def _fields(cls, **given: Any) -> list:
        fields = super()._fields(**given)
        labels_key, unknown = given["labels_key"], given.get("unlabeled_category")
        if labels_key is not None and unknown is not None:
            fields[2] = LabelsWithUnlabeledObsField(REGISTRY_KEYS.LABELS_KEY, labels_key, unknown)
        return fields

    @classmethod
    def original(cls, adata: AnnData, n_clusters: int = 10, **kwargs: Any) -> CGMDVAE:
        """The formulation of Kolb's thesis (2023), for comparison.

        Squared errors of log-normalised expression, a Dirichlet of its own for each cell (integrated out),
        a network for the component, everything conditioned on the condition, a style latent as large as
        ``z``, no warm-up. Differs from it:

        - Bounds. The thesis keeps means within (-5, 5) and log-variances within (-9, 1), softly, of q(z),
          q(w), every component of p(z | w, y, c) and a learned p(w | c). Here only q(z) and q(w) have these
          bounds (by a hyperbolic tangent and a clamp); log-scales of components are within (-5, 3).
        - The Dirichlet of a cell is integrated out under the best q(d), where the thesis samples it from
          what a network says.
        - The optimizer and its schedule (the thesis has a ladder of learning rates), and that the best
          weights are restored.

        Parameters
        ----------
        adata
            As in the constructor.
        n_clusters
            Components.
        **kwargs
            Other arguments of the constructor; those of the thesis are the defaults.
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

    def _groups_of_unlabelled(self, cells: AnnData | None) -> np.ndarray:
        """The predicted label; without labels the cluster."""
        found = self.predict_labels(cells) if self.labels else self.get_clusters(cells)
        return found.astype(str).to_numpy()

    def generate(
        self,
        n: int,
        *,
        cluster: str | None = None,
        condition: str | None = None,
        library_size: float | None = None,
        noise: bool = True,
        seed: int = 0,
    ) -> AnnData:
        """Return cells that were never measured, drawn from the prior of ``z``.

        Parameters
        ----------
        n
            How many.
        cluster
            Label or number of the cluster they belong to; ``None`` draws it by the weights of the mixture.
        condition
            Their condition; ``None`` takes that of a template.
        library_size
            Of each; ``None`` takes that of a template, a cell of the same cluster that the model was trained
            on, which gives batch and covariates in any case.
        noise
            Whether to draw observations from the likelihood; ``False`` gives their means, which vary less.
        seed
            Random seed.

        Returns
        -------
        AnnData with batch, condition and cluster in ``.obs``, and in ``.X`` what the likelihood is of:
        counts; of ``"gaussian"`` and ``"mse"`` log-normalised expression; of ``"bernoulli"`` whether a gene
        was detected; of ``"normal"`` and ``"bernoulli_given"`` values like those of the data.
        """
        from scalloy.models._generate import generate

        given = {"library_size": library_size, "noise": noise, "seed": seed}
        return generate(self, n, cluster=cluster, to=condition, **given)


def plan(gene_likelihood: str, label_weight: float | None, as_published: bool) -> dict[str, Any]:
    """Weights of the terms. The thesis' squared errors lack the half: that is a half on all the rest."""
    half = 0.5 if as_published and gene_likelihood == THESIS_LIKELIHOOD else 1.0
    weights = {"kl": half} if half != 1 else {}
    if label_weight is not None:
        weights["label"] = half * label_weight
    return {"weights": weights, **({"kl_warmup": 0.0} if as_published else {})}
