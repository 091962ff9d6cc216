"""Base class of all models: AnnData goes in; arrays, data frames and AnnData come out.

The class of a model names its module and its arguments, and lists what it can do: each method is a function
of this package whose first argument is the model (:mod:`scalloy.models._core.protocols`). Getters only
return values, :meth:`ScalloyModel.annotate` writes them, and ``adata.X`` is never changed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.model.base import BaseModelClass, UnsupervisedTrainingMixin

from scalloy._methods import FromAbove
from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.network_kinds import ROLES, plain
from scalloy.data.batches import CellLoader
from scalloy.data.conditions import Conditions
from scalloy.data.splitter import CellSplitter
from scalloy.models._core import annotations as writing
from scalloy.models._core import (
    evidence,
    factories,
    files,
    getters,
    scvi_methods,
    training,
    traverse,
)
from scalloy.models._core.annotations import LATENT, Annotator
from scalloy.models._core.moments import moments
from scalloy.models._core.narrowed import narrowed
from scalloy.models._core.query import load_query_data
from scalloy.models._core.reader import CellReader
from scalloy.models._core.setup import Layout, OneModality, is_set_up, set_up
from scalloy.train.plan import TermsPlan
from scalloy.vae.base import Sizes, VAEModule
from scalloy.vae.vae import LibraryPrior, library_prior

logger = logging.getLogger("scalloy")


class ScalloyModel(UnsupervisedTrainingMixin, BaseModelClass):
    """Base class of all models.

    A subclass sets ``self.module`` and ``self.init_params_`` in its constructor.

    Attributes
    ----------
    layout
        What the model reads from an AnnData: a condition, labels that may be unknown, a second modality.
    annotators
        What :meth:`annotate` writes.
    reader
        Reader of cells for the model.

    Examples
    --------
    >>> isinstance(model, sa.models.ScalloyModel)
    True
    """

    layout: ClassVar[Layout] = OneModality()
    annotators: ClassVar[tuple[Annotator, ...]] = (LATENT,)

    _data_loader_cls = CellLoader
    _data_splitter_cls = CellSplitter
    _training_plan_cls = TermsPlan
    _default_steps = 2500
    _plan_defaults: dict[str, Any] = {}  # noqa: RUF012

    module: VAEModule
    seed: int = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "setup_anndata" not in vars(cls):
            whole = vars(ScalloyModel)["setup_anndata"].__func__
            made = classmethod(narrowed(whole, cls.layout.lacks()))
            cls.setup_anndata = made  # type: ignore[assignment]  # a method may be set
        for method in (writing.annotate, writing.write_annotations):
            if method.__name__ not in vars(cls):
                setattr(cls, method.__name__, narrowed(method, writing.options_without_use(cls.annotators)))

    def __init__(self, adata: AnnData | None = None, registry: dict | None = None) -> None:
        if adata is not None and not is_set_up(type(self), adata):
            logger.warning(
                "%s(adata) without `setup_anndata`: modelling `adata.X`, without batches or covariates. "
                "Call %s.setup_anndata(adata, ...) first to name them.",
                *[type(self).__name__] * 2,
            )
            type(self).setup_anndata(adata)
        self.reader = CellReader(self, self.layout)
        self._kept: dict[Any, Any] = {}  # what was found for the weights as they are
        self._data: dict[str, Any] = {}  # fingerprint of the cells that the weights were trained on
        super().__init__(adata, registry)

    # set-up -------------------------------------------------------------------------------------

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        condition_key: str | None = None,
        labels_key: str | Sequence[str] | None = None,
        unlabeled_category: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        allow_non_counts: bool = False,
        donor_key: str | None = None,
        conditions: Conditions | None = None,
        label_parents: Mapping[str, str] | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register cells for the model: say where the counts are and what the columns mean.

        Counts and columns are checked, and codes of the columns are stored in ``adata``.

        Parameters
        ----------
        adata
            Raw counts, cells x genes, in memory or from :func:`scalloy.data.open_store`.
        layer
            Layer with the counts; ``None`` is ``.X``.
        batch_key
            Column of ``.obs`` with the batch, whose effect is removed from the latent space.
        condition_key
            Column of ``.obs`` with the condition, which predictions can change.
        labels_key
            Column of ``.obs`` with cell types. CGMDVAE learns from them, and predictions under another
            condition use the change that each of them has shown. Other models keep them for evaluation and
            plots.
        unlabeled_category
            Value of ``labels_key`` in cells whose type is unknown; ``None`` means that all types are known.
            There is a warning if no cell has this value, and an error if a label is spelled almost like it.
        size_factor_key
            Column of ``.obs`` with the library size to use instead of the total count.
        categorical_covariate_keys, continuous_covariate_keys
            Further columns of ``.obs`` whose effects are removed from the latent space.
        allow_non_counts
            Whether to accept negative and fractional values; the model then needs a likelihood for such data.
        donor_key
            Column of ``.obs`` with the person, animal or sample that each cell is from. Its effect is removed
            from the latent space. Predictions under another condition are learned by comparing the cells of
            each donor with one another; without it, the cells of each batch. Donors that you pass as
            ``batch_key`` need not be passed here as well. A donor who is new is taken to be like the average
            one.
        conditions
            Columns with perturbations, doses and times, instead of ``condition_key``, for predictions of
            doses, times and combinations that were not seen.
        label_parents
            Parent of each label that has one, if labels are a tree: ``{"CD4 T": "T", "CD8 T": "T"}``; or the
            text between the parts, such as ``"/"``, if they are paths like ``"T/CD4 T"``. Instead, you may
            pass columns from coarse to fine, ``labels_key=["class", "subclass"]``. A cell may have a label of
            any depth: one that is known as ``"T"`` only is of one of the types below.
        **kwargs
            Further arguments of :meth:`scvi.data.AnnDataManager.register_fields`.

        Examples
        --------
        >>> sa.CGMDVAE.setup_anndata(adata, condition_key="condition", labels_key="cluster")
        """
        given = {k: v for k, v in locals().items() if k not in {"__class__", "kwargs", *cls.layout.lacks()}}
        set_up(cls, adata, cls._get_setup_method_args(**given), **kwargs)

    @property
    def labels(self) -> list[str]:
        """Known labels in the order of their codes.

        Examples
        --------
        >>> model.labels
        ['cluster_0', 'cluster_1', 'cluster_2', 'cluster_3', 'cluster_4']
        """
        return self.reader.labels

    @property
    def name(self) -> str:
        """Name of the model in the keys that it writes.

        Examples
        --------
        >>> model.name
        'cgmdvae'
        """
        return type(self).__name__.lower()

    # what every model can do --------------------------------------------------------------------

    train = training.train
    annotate = writing.annotate
    write_annotations = writing.write_annotations
    report = FromAbove()

    get_latent_representation = getters.get_latent_representation
    get_normalized_expression = getters.get_normalized_expression
    posterior_predictive_sample = getters.posterior_predictive_sample
    differential_expression = FromAbove()

    get_elbo = evidence.get_elbo
    get_reconstruction_error = evidence.get_reconstruction_error
    get_marginal_ll = evidence.get_marginal_ll
    get_gene_statistics = evidence.get_gene_statistics
    held_out = evidence.held_out

    get_traversal = traverse.get_traversal
    get_latent_genes = traverse.get_latent_genes

    save = files.save
    load = classmethod(files.load_one)
    load_query_data = classmethod(load_query_data)

    # methods of scvi-tools that need our reader
    load_registry = staticmethod(scvi_methods.load_registry)
    view_setup_args = staticmethod(scvi_methods.view_setup_args)
    view_setup_method_args = scvi_methods.view_setup_method_args
    view_registry = scvi_methods.view_registry
    view_anndata_setup = scvi_methods.view_anndata_setup
    get_state_registry = scvi_methods.get_state_registry
    get_setup_arg = scvi_methods.get_setup_arg
    data_registry = scvi_methods.data_registry
    get_from_registry = scvi_methods.get_from_registry
    transfer_fields = scvi_methods.transfer_fields
    get_anndata_manager = scvi_methods.get_anndata_manager
    deregister_manager = scvi_methods.deregister_manager
    _validate_anndata = scvi_methods._validate_anndata

    # methods of scvi-tools that are not supported
    differential_abundance = scvi_methods.differential_abundance
    setup_annbatch = classmethod(scvi_methods.setup_annbatch)
    update_setup_method_args = scvi_methods.update_setup_method_args
    convert_legacy_save = classmethod(scvi_methods.convert_legacy_save)

    def _get_init_params(self, locals: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the constructor as they are saved: networks by their names."""
        networks = {k: plain(k, locals[k]) for k in ROLES if k in locals}
        return super()._get_init_params({**locals, **networks})

    # for constructors ---------------------------------------------------------------------------

    @property
    def sizes(self) -> Sizes:
        """Numbers of genes, batches, labels and so on, as networks need them.

        Examples
        --------
        >>> model.sizes.n_vars
        40
        """
        return self.reader.sizes

    def make_likelihood(
        self,
        name: str,
        n_hidden: int,
        *,
        library: str = "observed",
        per_gene: bool = False,
        **given: Any,
    ) -> Likelihood:
        """Return a likelihood whose parameters start at the moments of the data.

        Parameters
        ----------
        name
            Name of the likelihood, such as ``"nb"``.
        n_hidden
            Number of units of the last hidden layer of the decoder.
        library
            Library size: ``"observed"``, ``"learned"`` or ``"none"``.
        per_gene
            Whether the decoder returns one value for each gene, so that the map to the genes starts as the
            identity.
        **given
            Further settings of the likelihood, ``dispersion`` and ``k_max``.

        Examples
        --------
        >>> type(model.make_likelihood("nb", n_hidden=128)).__name__
        'NB'
        """
        made = factories.likelihood(name, self.sizes, n_hidden, library=library, **given)
        state = self.registry["field_registries"].get(REGISTRY_KEYS.SIZE_FACTOR_KEY, {})
        if name == "constrained_poisson" and state.get("data_registry"):
            msg = (
                "`gene_likelihood='constrained_poisson'` ties the rates to the observed total of the "
                "cell, but `size_factor_key` was registered. Pass `gene_likelihood='poisson'`."
            )
            raise ValueError(msg)
        if per_gene:
            torch.nn.init.eye_(getattr(made, "base", made).head.weight)
        if self.adata is not None:
            cells = self.reader.table()
            factories.check_range(name, made, cells.x)
            made.start_at(*moments(cells.x), cells.log_ell)
        return made

    def make_library_prior(self, library: str) -> LibraryPrior | None:
        """Return the prior of a learned library size, with the moments of each batch, or else ``None``.

        Parameters
        ----------
        library
            Library size: ``"observed"``, ``"learned"`` or ``"none"``.

        Examples
        --------
        >>> model.make_library_prior("observed") is None
        True
        """
        if library != "learned":
            return None
        n_batch = self.sizes.n_batch
        if self.adata is None:  # the values are loaded with the weights
            return LibraryPrior(torch.zeros(n_batch), torch.ones(n_batch))
        cells = self.reader.table()
        b = cells.columns[REGISTRY_KEYS.BATCH_KEY][:, 0]
        return library_prior(cells.log_ell[:, 0], b, n_batch)
