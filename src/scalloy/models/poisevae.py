"""POISEVAE, the model class for users; its mathematics is in :mod:`scalloy.vae.poisevae`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal
from weakref import WeakValueDictionary

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

from scalloy import _keys
from scalloy._arguments import few, one_of, shares, whole
from scalloy._keys import OTHER_KEYS
from scalloy._seeds import repeatable
from scalloy.blocks.joint_posteriors import Posterior
from scalloy.blocks.networks import NetworkSettings
from scalloy.data import checks
from scalloy.data.disk import DiskRows
from scalloy.data.modalities import joined
from scalloy.files.anndata_files import is_mudata
from scalloy.models._core import cross_modal, factories, joint_prior
from scalloy.models._core.annotations import Annotator, Found, Written
from scalloy.models._core.base import ScalloyModel
from scalloy.models._core.factories import GeneLikelihood, JointKind, OtherLikelihood
from scalloy.models._core.modality_layout import SeveralModalities, columns
from scalloy.models._core.moments import moments
from scalloy.models._core.setup import set_up
from scalloy.vae.base import Batch, Distributions
from scalloy.vae.poisevae import POISEVAE as POISEVAEMath

logger = logging.getLogger("scalloy")


class POISEVAE(ScalloyModel):
    """VAE of several modalities, such as RNA, ATAC and protein: a code for each, under a coupled prior.

    Parameters
    ----------
    adata
        MuData, registered with :meth:`setup_mudata`, or AnnData, registered with :meth:`setup_anndata`.
    registry
        Registry that the set-up made, for a model without cells.
    n_hidden, n_layers, dropout_rate, gene_likelihood
        As in :class:`~scalloy.VAE`; ``gene_likelihood`` is the likelihood of the first modality.
    n_latent
        Number of dimensions of the code of each modality.
    protein_likelihood
        Likelihood of the other modalities that are dense, unless ``likelihoods`` says otherwise. For counts:
        ``"background"`` (antibodies, a mixture of background and foreground) and ``"nb"``. For data as given:
        ``"normal"``, ``"bernoulli"`` (from 0 to 1) and ``"categorical"`` (one column per category).
    joint
        Prior of the codes. With ``"poise"`` each modality has its own code, and the first and second powers
        of each two are coupled; ``"gaussian"`` couples only the first powers, a probabilistic CCA of the
        codes; ``"independent"`` does not couple them. For comparison, ``"product"`` and ``"mixture"`` have
        one shared code, whose posterior is a product or a mixture of experts.
    kappa
        Bound on the strength of the coupling, from 0 to 1; at 1 the prior could no longer be normalised.
    hide
        Share of the cells in which each modality is hidden from the encoders in training, so that each learns
        to predict the others; of more than two, one is chosen by these shares, one of the others stays, and
        each further one is hidden with probability 1/2. ``None`` hides the first in a quarter of the cells,
        and one of the others in a half.
    hidden_rate
        Share of the counts that is hidden from the encoder in training, of genes and of other modalities
        whose rates are shares of a total.
    encode_covariates
        Whether the encoders see batch and covariates too; the decoders always do.
    n_chains, n_sweeps
        Number of Gibbs chains that follow the prior in training, and number of sweeps of each per step.
    chains
        Whether the chains are ``"kept"`` from one step to the next, or ``"restarted"`` at each.
    likelihoods
        Likelihood of modalities by their names. Besides those of ``protein_likelihood``: ``"poisson"`` and
        ``"nb_total"``, whose rates are shares of the cell's total in this modality (fragments in peaks; the
        default of sparse modalities is ``"poisson"``), and ``"detected"`` (presence of fragments).
    seed
        Random seed, as in :class:`~scalloy.VAE`.

    Examples
    --------
    >>> adata = sa.datasets.citeseq()
    >>> sa.POISEVAE.setup_anndata(adata, protein_obsm_key="protein_counts")
    >>> model = sa.POISEVAE(adata)
    >>> model.train()  # doctest: +SKIP
    >>> rna_only = adata[:100].copy()
    >>> del rna_only.obsm["protein_counts"]
    >>> proteins = model.predict("prot", from_="rna", adata=rna_only)
    """

    layout = SeveralModalities()
    module: POISEVAEMath

    modalities = property(cross_modal.modalities)
    get_variables = cross_modal.get_variables
    get_latent_representation = cross_modal.get_latent_representation
    get_reconstruction_error = cross_modal.get_reconstruction_error
    predict = cross_modal.predict
    get_coupling = joint_prior.get_coupling
    get_log_partition = joint_prior.get_log_partition
    get_mixing = joint_prior.get_mixing
    generate = joint_prior.generate
    get_cross_traversal = joint_prior.get_cross_traversal

    _default_steps = 6000
    _mudata: ClassVar[WeakValueDictionary[str, Any]] = WeakValueDictionary()  # MuData by set-up identifier

    @repeatable
    def __init__(
        self,
        adata: Any = None,
        registry: dict | None = None,
        n_hidden: int | Sequence[int] = 256,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        gene_likelihood: GeneLikelihood = "nb",
        protein_likelihood: OtherLikelihood = "background",
        joint: JointKind = "poise",
        kappa: float = 0.7,
        hide: Sequence[float] | None = None,
        hidden_rate: float = 0.5,
        encode_covariates: bool = False,
        n_chains: int = 256,
        n_sweeps: int = 2,
        chains: Literal["kept", "restarted"] = "kept",
        *,
        likelihoods: Mapping[str, GeneLikelihood | OtherLikelihood] | None = None,
        seed: int | None = None,
    ) -> None:
        networks = NetworkSettings(
            n_hidden, n_latent, n_layers, dropout_rate, encode_covariates=encode_covariates
        )
        whole(n_chains=n_chains, n_sweeps=n_sweeps)
        shares(hidden_rate=hidden_rate)
        super().__init__(self._registered(adata), registry)
        self.reader.given = adata if is_mudata(adata) else None
        sizes, first = self.sizes, self.modalities[0]
        self._asked = dict(likelihoods or {})  # likelihoods by the names of modalities
        self.likelihoods = self._likelihoods(gene_likelihood, protein_likelihood)
        others = zip(self.modalities[1:], sizes.n_others, strict=True)
        width = networks.n_decoded(sizes.n_vars, **sizes.covariates)
        chosen: Any = {"kappa": kappa, "n_chains": n_chains, "n_sweeps": n_sweeps, "chains": chains}
        self.module = POISEVAEMath(
            sizes,
            [
                self.make_likelihood(self.likelihoods[first], width),
                *(self._other_likelihood(name, n, width) for name, n in others),
            ],
            factories.joint(joint, n_latent, len(self.modalities), **chosen),
            networks,
            hide=self._hide(hide),
            hidden_rate=hidden_rate,
        )
        if self.adata is not None:
            self._start_at_data()
        named = ", ".join(f"{name} {likelihood}" for name, likelihood in self.likelihoods.items())
        self._model_summary_string = f"POISEVAE: {named}; joint {joint}, n_latent {n_latent} each"
        self.init_params_ = self._get_init_params(locals())

    def _likelihoods(self, of_genes: str, of_others: str) -> dict[str, str]:
        """Return the name of the likelihood of each modality."""
        first, *others = self.modalities
        for name in self._asked:
            one_of("likelihoods", name, self.modalities)
        sparse = {name for k, name in enumerate(others, 1) if cross_modal.held_sparse(self, k)}
        default = {first: of_genes, **{k: "poisson" if k in sparse else of_others for k in others}}
        return default | self._asked

    def _argument(self, name: str) -> str:
        """Return the argument that names the likelihood of a modality, for messages."""
        usual = "gene_likelihood" if name == self.modalities[0] else "protein_likelihood"
        return f"likelihoods[{name!r}]" if len(self.modalities) > 2 or name in self._asked else usual

    def _other_likelihood(self, name: str, n_vars: int, n_hidden: int) -> Any:
        return factories.other_likelihood(self._argument(name), self.likelihoods[name], n_vars, n_hidden)

    def _hide(self, given: Sequence[float] | None) -> tuple[float, ...]:
        """Return the share of the cells of which each modality is the first to be hidden."""
        n = len(self.modalities)
        hide = (0.25, *[0.5 / (n - 1)] * (n - 1)) if given is None else tuple(given)
        if len(hide) != n:
            msg = f"`hide={hide}` has {len(hide)} shares for {n} modalities: {few(self.modalities)}."
            raise ValueError(msg)
        for share in (*hide, sum(hide)):
            shares(hide=share)
        return hide

    def _start_at_data(self) -> None:
        """Start at the moments of each modality, where measured, and the mean of its log totals."""
        cells = self.reader.table()
        if isinstance(cells.x, DiskRows):
            msg = "POISEVAE reads cells in memory, not from a store. Set up `adata.to_memory()` instead."
            raise TypeError(msg)
        if self.adata_manager._source_registry is not None:
            return  # the weights will be those of a model that was trained before
        counted = torch.from_numpy(np.asarray(abs(cells.x).sum(axis=1)).ravel() > 0)
        if not counted.any():
            msg = f"{self.modalities[0]!r} is zero throughout: there is nothing to learn it from."
            raise ValueError(msg)
        self.module.start_at(0, None, cells.log_ell[counted])
        for k, name in enumerate(self.modalities[1:], 1):
            key = OTHER_KEYS[k - 1]
            self._start_one(k, name, cells.sparse.get(key, cells.columns.get(key)), cells.log_ell)

    def _start_one(self, k: int, name: str, x: Any, log_ell: torch.Tensor) -> None:
        """Start at the moments of one modality beside the first."""
        likelihood, sparse = self.module.likelihoods[k], sp.issparse(x)
        there = np.diff(x.indptr) > 0 if sparse else ~x.isnan().all(-1).numpy()
        if not there.any():
            msg = f"{name!r} is NaN throughout: there is nothing to learn it from."
            raise ValueError(msg.replace("NaN", "zero") if sparse else msg)
        values, argument = x.data if sparse else x[~x.isnan()].numpy(), self._argument(name)
        factories.check_range(self.likelihoods[name], likelihood, values, argument=argument)
        if self.likelihoods[name] == "categorical":
            factories.check_categories(argument, x[there] if sparse else x.numpy()[there])
        rows = x[there] if sparse else x.numpy()
        total = np.asarray(rows.sum(1)).ravel() if sparse else np.nansum(rows[there], 1)
        total = total[total > 0] if (total > 0).any() else np.ones(1)
        log_total = torch.from_numpy(np.log(total)).float().unsqueeze(-1)
        likelihood.start_at(*moments(rows), log_total if likelihood.depth == "total" else log_ell)
        middle = None if sparse else likelihood.features(x).nanmean(0).nan_to_num(0.0)
        self.module.start_at(k, middle, log_total)

    # set-up -------------------------------------------------------------------------------------

    @classmethod
    def setup_anndata(  # type: ignore[override]  # several modalities need other arguments
        cls,
        adata: AnnData,
        protein_obsm_key: str | None = None,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        allow_non_counts: bool = False,
        modalities: Sequence[str] | None = None,
        obsm_keys: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Register cells for the model: say where the modalities and the columns are in ``adata``.

        Parameters
        ----------
        adata
            Raw counts of genes, cells x genes. In a cell without any counts, RNA was not measured.
        protein_obsm_key
            Key of ``.obsm`` with the second modality, such as raw counts of proteins: a DataFrame or an
            array, NaN where it was not measured (in some cells, or some proteins in a batch); or a sparse
            array, such as fragments in peaks, with a row of zeros where it was not measured and, if they
            have names, the names of its columns in ``.uns`` under ``<key>_names``. ``None`` uses the only key
            that begins with "protein", or else the name of the second modality.
        layer, batch_key, labels_key, size_factor_key, categorical_covariate_keys, \
continuous_covariate_keys, allow_non_counts
            As in :meth:`scalloy.VAE.setup_anndata`. The effect of the batch is removed from all codes.
        modalities
            Names for the first and the other modalities; ``None`` is ``("rna", "prot")``, or "rna" and the
            names in ``obsm_keys``.
        obsm_keys
            Key of ``.obsm`` of each modality after the first, by its name; one that is not named is under its
            own name.

        Examples
        --------
        >>> sa.POISEVAE.setup_anndata(adata, protein_obsm_key="protein_counts", batch_key="batch")
        >>> sa.POISEVAE.setup_anndata(adata, obsm_keys={"prot": "protein_counts"})
        """
        if protein_obsm_key is None and not obsm_keys:
            found = [k for k in checks.check_type(adata).obsm if k.startswith("protein")]
            protein_obsm_key = found[0] if len(found) == 1 else None
        obsm_keys = dict(obsm_keys or {})
        modalities = _named(modalities or (("rna", *obsm_keys) if obsm_keys else ("rna", "prot")), obsm_keys)
        set_up(cls, adata, cls._get_setup_method_args(**_arguments(locals())), **kwargs)

    @classmethod
    def setup_mudata(
        cls,
        mdata: Any,
        modalities: Sequence[str] | None = None,
        layers: Sequence[str | None] | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        allow_non_counts: bool = False,
        **kwargs: Any,
    ) -> None:
        """Register a MuData for the model; its cells need not all have all modalities.

        Parameters
        ----------
        mdata
            MuData with raw counts.
        modalities
            Names of the first modality (genes) and the others in ``mdata``; ``None`` is all of them, "rna"
            first. A sparse modality of more than 1,000 variables stays sparse.
        layers
            Layer with the counts of each modality; ``None`` is ``.X``.
        batch_key, labels_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys, \
allow_non_counts
            As in :meth:`scalloy.VAE.setup_anndata`; columns are looked for in ``mdata.obs``, then in the
            ``.obs`` of the modalities.

        Examples
        --------
        >>> from anndata import AnnData
        >>> from mudata import MuData
        >>> prot = AnnData(adata.obsm["protein_counts"].astype("float32"))
        >>> mdata = MuData({"rna": adata, "prot": prot})
        >>> sa.POISEVAE.setup_mudata(mdata, modalities=("rna", "prot"), batch_key="batch")
        """
        if not is_mudata(mdata):
            msg = f"`mdata` is a {type(mdata).__name__}. Pass a MuData, or call `setup_anndata`."
            raise TypeError(msg)
        modalities = _named(modalities or sorted(mdata.mod, key=lambda name: name != "rna"))
        args = cls._get_setup_method_args(**_arguments(locals()))
        adata = joined(mdata, modalities, layers, keys=columns(args["setup_args"]))
        set_up(cls, adata, args, **kwargs)
        mdata.uns["_scvi_uuid"] = adata.uns["_scvi_uuid"]
        cls._mudata[adata.uns["_scvi_uuid"]] = mdata

    @classmethod
    def _registered(cls, data: Any) -> Any:
        """Return the AnnData that was registered for a MuData, and any other data as they are."""
        if not is_mudata(data):
            return data
        if cls._mudata.get(data.uns.get("_scvi_uuid")) is not data:  # a copy counts as not set up
            cls.setup_mudata(data)
            logger.warning("POISEVAE(mdata) without `setup_mudata`: modelling `.X` of %s.", few(data.mod))
        return cls._setup_adata_manager_store[data.uns["_scvi_uuid"]].adata


def _arguments(local: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a set-up method from its ``locals()``."""
    return {k: v for k, v in local.items() if k not in {"__class__", "found", "kwargs"}}


def _named(given: Sequence[str], obsm_keys: Mapping[str, str] | None = None) -> list[str]:
    """Check the names of modalities and those of which keys are given, and return the first."""
    names = [str(name) for name in given]
    if isinstance(given, str) or not 2 <= len(set(names)) == len(names) <= 1 + len(OTHER_KEYS):
        msg = (
            f"`modalities={given!r}`: expected 2 to {1 + len(OTHER_KEYS)} different names, that of the first "
            "modality (genes) and those of the others."
        )
        raise ValueError(msg)
    for name in obsm_keys or ():
        one_of("obsm_keys", name, names[1:])
    return names


def _completed(model: cross_modal.Model) -> list[int]:
    """Return the numbers of the modalities that are completed: those in `.obsm` that are dense."""
    others = range(1, len(cross_modal.modalities(model)))
    return [k for k in others if not cross_modal.held_sparse(model, k)]


def _look(model: cross_modal.Model, batch: Batch, q: Distributions) -> dict[str, torch.Tensor]:
    """Return the codes of all modalities, and those in `.obsm` completed where they were not measured."""
    assert isinstance(q, Posterior)
    joint, names = model.module.joint, cross_modal.modalities(model)
    codes = joint.codes(q)
    out = {f"code {name}": codes[latent][0] for name, latent in zip(names, joint.letters, strict=True)}
    for k in _completed(model):
        out[f"completed {names[k]}"] = cross_modal.predicted(model, batch, k, q=q)[0]
    return {"joint": joint.code(q)[0], **out}


def _write(model: cross_modal.Model, key: str, found: Found, cells: pd.Index) -> Written:
    """Return the codes and the completed modalities under their keys."""
    names = cross_modal.modalities(model)
    out: dict[str, np.ndarray | pd.DataFrame] = {_keys.latent(key): found["joint"]}
    out |= {_keys.latent(f"{key}_{name}"): found[f"code {name}"] for name in names}
    for k in _completed(model):
        variables, values = cross_modal.get_variables(model, names[k]), found[f"completed {names[k]}"]
        out[_keys.completed(key, names[k])] = pd.DataFrame(values, index=cells, columns=variables)
    return {"obsm": out}


POISEVAE.annotators = (Annotator(_look, _write, decodes=True),)
