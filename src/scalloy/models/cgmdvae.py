"""CGMDVAE for users. The mathematics is in :mod:`scalloy.vae.cgmdvae`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalObsField, LabelsWithUnlabeledObsField

from scalloy import _keys
from scalloy.models import _options
from scalloy.models._base import ScalloyModel
from scalloy.models._options import GeneLikelihood
from scalloy.vae.base import Batch, Sizes
from scalloy.vae.cgmdvae import CGMDVAE as CGMDVAEMath
from scalloy.vae.cgmdvae import condition


class CGMDVAE(ScalloyModel):
    """Conditional Gaussian-mixture Dirichlet VAE: populations without labels, with some, or with all.

    Parameters
    ----------
    adata
        Cells, registered with :meth:`setup_anndata` (or not: then ``.X`` is modelled as it is).
    registry
        What :meth:`setup_anndata` stored, to work without cells.
    n_clusters
        Components of the mixture. With labels, the first ones are bound to them and the others are free;
        ``None`` is the number of labels and five more.
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
        ``"standard"`` or ``"condition"``: a mean and a scale for each.
    """

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
        w_prior: Literal["standard", "condition"] = "standard",
        norm: str = "layer",
    ) -> None:
        _options.positive(n_hidden=n_hidden, n_latent=n_latent, n_layers=n_layers, alpha=alpha)
        _options.one_of("norm", norm, _options.NORMS)
        _options.one_of("assignment", assignment, ("exact", "amortised"))
        _options.one_of("w_prior", w_prior, ("standard", "condition"))
        super().__init__(adata, registry)
        sizes = replace(self._sizes(), n_labels=len(self.labels))
        n_clusters = len(self.labels) + 5 if n_clusters is None else n_clusters
        _options.positive(n_clusters=n_clusters)
        _options.enough_components(n_clusters, len(self.labels))
        self.n_clusters = n_clusters
        self.module = CGMDVAEMath(
            sizes,
            self._likelihood(gene_likelihood, n_hidden, dispersion=dispersion),
            _options.components(conditioning, sizes, n_clusters, n_latent, n_w),
            _options.weights(weights, sizes, n_clusters, alpha),
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            norm=norm,
            n_w=n_w,
            w_prior=w_prior == "condition",
            amortised=assignment == "amortised",
            ridge=1.0 if conditioning == "interaction" else 0.0,
        )
        self._model_summary_string = (
            f"CGMDVAE: {n_clusters} components, {gene_likelihood}, n_latent {n_latent}"
        )
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
            Value in that column of cells whose type is unknown; ``None``: all types are known.
        """
        args = {k: v for k, v in locals().items() if k != "__class__"}
        cls._set_up(adata, cls._get_setup_method_args(**args), **kwargs)

    @classmethod
    def _fields(cls, **given: Any) -> list:
        fields = super()._fields(**given)
        labels_key, unknown = given["labels_key"], given.get("unlabeled_category")
        if labels_key is not None and unknown is not None:
            fields[2] = LabelsWithUnlabeledObsField(REGISTRY_KEYS.LABELS_KEY, labels_key, unknown)
        return [*fields, CategoricalObsField(_keys.CONDITION_KEY, given.get("condition_key"))]

    @property
    def labels(self) -> list[str]:
        """The known labels, in the order of the components that are bound to them."""
        if self.registry["setup_args"].get("labels_key") is None:
            return []
        state = self.registry["field_registries"][REGISTRY_KEYS.LABELS_KEY]["state_registry"]
        names = [str(k) for k in state["categorical_mapping"]]
        return [k for k in names if k != str(state.get("unlabeled_category"))]

    @property
    def conditions(self) -> list[str]:
        """The conditions, in the order of their codes."""
        state = self.registry["field_registries"][_keys.CONDITION_KEY]["state_registry"]
        return [str(k) for k in state["categorical_mapping"]]

    def _sizes(self) -> Sizes:
        return replace(super()._sizes(), n_conditions=len(self.conditions))

    # what the mixture tells ---------------------------------------------------------------------

    @property
    def cluster_names(self) -> list[str]:
        """Label of each bound component, and the number of each free one."""
        return [*self.labels, *(str(k) for k in range(len(self.labels), self.n_clusters))]

    @torch.no_grad()
    def get_cluster_probabilities(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Probability of each component, cells x components, given the counts and not the label."""
        rows = []
        for tensors in self._read(adata, indices, batch_size):
            batch = Batch.of(tensors)
            q, c = self.module.encode(batch), condition(batch)
            p_z = self.module.mixture(c, q["w"].mean if "w" in q else None)
            rows.append(self.module.log_assignment(p_z, q["z"].mean, c).exp().cpu())
        names = self._names(adata, indices)
        return pd.DataFrame(torch.cat(rows).numpy(), index=names, columns=self.cluster_names)

    def get_clusters(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> pd.Series:
        """The most probable component of each cell."""
        probabilities = self.get_cluster_probabilities(adata, indices, batch_size)
        found = probabilities.to_numpy().argmax(1)
        values = pd.Categorical.from_codes(found, categories=self.cluster_names)
        return pd.Series(values, index=probabilities.index, name="cluster")

    def get_usage(self) -> pd.Series:
        """Expected number of cells in each component."""
        return self.get_cluster_probabilities().sum().rename("cells")

    def n_alive(self, least: float = 0.001) -> int:
        """Components with at least this share of the cells."""
        usage = np.asarray(self.get_usage())
        return int((usage >= least * usage.sum()).sum())
