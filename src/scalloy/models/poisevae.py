"""POISEVAE, the model class for users; its mathematics is in :mod:`scalloy.vae.poisevae`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Literal
from weakref import WeakValueDictionary

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scalloy import _keys
from scalloy._arguments import shares, whole
from scalloy._keys import SECOND_KEY
from scalloy._seeds import repeatable
from scalloy.blocks.joint_posteriors import BOTH, Posterior
from scalloy.blocks.networks import NetworkSettings
from scalloy.data import checks
from scalloy.data.disk import DiskRows
from scalloy.data.modalities import joined
from scalloy.files.anndata_files import is_mudata
from scalloy.models._core import factories, pair_prior, pairs
from scalloy.models._core.annotations import Annotator, Found, Written
from scalloy.models._core.base import ScalloyModel
from scalloy.models._core.factories import GeneLikelihood, JointKind, SecondLikelihood
from scalloy.models._core.moments import moments
from scalloy.models._core.pair_layout import TwoModalities, columns
from scalloy.models._core.setup import set_up
from scalloy.vae.base import Batch, Distributions
from scalloy.vae.poisevae import POISEVAE as POISEVAEMath

logger = logging.getLogger("scalloy")


class POISEVAE(ScalloyModel):
    """VAE of two modalities, such as RNA and protein: a code for each, and a prior that couples them.

    Parameters
    ----------
    adata
        MuData, registered with :meth:`setup_mudata`, or AnnData, registered with :meth:`setup_anndata`.
    registry
        Registry that the set-up made, for a model without cells.
    n_hidden, n_layers, dropout_rate, gene_likelihood
        As in :class:`~scalloy.VAE`; ``gene_likelihood`` is the likelihood of the first modality.
    n_latent
        Number of dimensions of each of the two codes.
    protein_likelihood
        Likelihood of the second modality. For counts: ``"background"`` (antibodies, a mixture of background
        and foreground) and ``"nb"``. For data as given: ``"normal"`` and ``"bernoulli"`` (from 0 to 1).
    joint
        Prior of the codes. With ``"poise"`` each modality has its own code, and their first and second
        powers are coupled; ``"gaussian"`` couples only the first powers, a probabilistic CCA of the codes;
        ``"independent"`` does not couple them. For comparison, ``"product"`` and ``"mixture"`` have one
        shared code, whose posterior is a product or a mixture of experts.
    kappa
        Bound on the strength of the coupling, from 0 to 1; at 1 the prior could no longer be normalised.
    hide
        Shares of the cells with both modalities in which the first, and the second, is hidden from the
        encoders in training, so that each modality learns to predict the other one.
    hidden_rate
        Share of the counts of genes that is hidden from the encoder in training.
    encode_covariates
        Whether the encoders see batch and covariates too; the decoders always do.
    n_chains, n_sweeps
        Number of Gibbs chains that follow the prior in training, and number of sweeps of each per step.
    chains
        Whether the chains are ``"kept"`` from one step to the next, or ``"restarted"`` at each.
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

    layout = TwoModalities()
    module: POISEVAEMath

    modalities = property(pairs.modalities)
    get_variables = pairs.get_variables
    get_latent_representation = pairs.get_latent_representation
    get_reconstruction_error = pairs.get_reconstruction_error
    predict = pairs.predict
    get_coupling = pair_prior.get_coupling
    get_log_partition = pair_prior.get_log_partition
    get_mixing = pair_prior.get_mixing
    generate = pair_prior.generate
    get_cross_traversal = pair_prior.get_cross_traversal

    _default_steps = 6000
    _mudata: ClassVar[WeakValueDictionary[str, Any]] = WeakValueDictionary()  # MuData by set-up identifier

    @repeatable
    def __init__(
        self,
        adata: Any = None,
        registry: dict | None = None,
        n_hidden: int = 256,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        gene_likelihood: GeneLikelihood = "nb",
        protein_likelihood: SecondLikelihood = "background",
        joint: JointKind = "poise",
        kappa: float = 0.7,
        hide: tuple[float, float] = (0.25, 0.5),
        hidden_rate: float = 0.5,
        encode_covariates: bool = False,
        n_chains: int = 256,
        n_sweeps: int = 2,
        chains: Literal["kept", "restarted"] = "kept",
        *,
        seed: int | None = None,
    ) -> None:
        networks = NetworkSettings(
            n_hidden, n_latent, n_layers, dropout_rate, encode_covariates=encode_covariates
        )
        whole(n_chains=n_chains, n_sweeps=n_sweeps)
        shares(hidden_rate=hidden_rate, hide=hide[0])
        shares(hide=hide[1])
        shares(hide=sum(hide))
        super().__init__(self._registered(adata), registry)
        self.reader.given = adata if is_mudata(adata) else None
        sizes = self.sizes
        self.module = POISEVAEMath(
            sizes,
            self.make_likelihood(gene_likelihood, n_hidden),
            factories.second_likelihood(protein_likelihood, sizes, n_hidden),
            factories.joint(
                joint, n_latent, kappa=kappa, n_chains=n_chains, n_sweeps=n_sweeps, chains=chains
            ),
            networks,
            hide=(hide[0], hide[1]),
            hidden_rate=hidden_rate,
        )
        if self.adata is not None:
            self._start_at_data(protein_likelihood)
        self._model_summary_string = (
            f"POISEVAE: {gene_likelihood} and {protein_likelihood}, joint {joint}, n_latent {n_latent} each"
        )
        self.init_params_ = self._get_init_params(locals())

    def _start_at_data(self, protein_likelihood: str) -> None:
        """Start at the moments of the second modality, where measured, and the mean log library size."""
        cells, likelihood = self.reader.table(), self.module.likelihood2
        x2 = cells.columns[SECOND_KEY]
        values = x2[~x2.isnan()].numpy()
        if len(values) == 0:
            msg = f"{self.modalities[1]!r} is NaN throughout: there is nothing to learn it from."
            raise ValueError(msg)
        factories.check_range(protein_likelihood, likelihood, values, argument="protein_likelihood")
        mean, variance = moments(x2.numpy())
        likelihood.start_at(mean, variance, cells.log_ell)
        if isinstance(cells.x, DiskRows):
            msg = "POISEVAE reads cells in memory, not from a store. Set up `adata.to_memory()` instead."
            raise TypeError(msg)
        counted = torch.from_numpy(np.asarray(abs(cells.x).sum(axis=1)).ravel() > 0)
        if not counted.any():
            msg = f"{self.modalities[0]!r} is zero throughout: there is nothing to learn it from."
            raise ValueError(msg)
        self.module.start_at(likelihood.features(x2).nanmean(0).nan_to_num(0.0), cells.log_ell[counted])

    # set-up -------------------------------------------------------------------------------------

    @classmethod
    def setup_anndata(  # type: ignore[override]  # two modalities need other arguments
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
        modalities: Sequence[str] = ("rna", "prot"),
        **kwargs: Any,
    ) -> None:
        """Register cells for the model: say where the two modalities and the columns are in ``adata``.

        Parameters
        ----------
        adata
            Raw counts of genes, cells x genes. In a cell without any counts, RNA was not measured.
        protein_obsm_key
            Key of ``.obsm`` with the second modality, such as raw counts of proteins: a DataFrame or an
            array, NaN where it was not measured (in some cells, or some proteins in a batch). ``None`` uses
            the only key that begins with "protein", or else the name of the second modality.
        layer, batch_key, labels_key, size_factor_key, categorical_covariate_keys, \
continuous_covariate_keys, allow_non_counts
            As in :meth:`scalloy.VAE.setup_anndata`. The effect of the batch is removed from both codes.
        modalities
            Names for the first and the second modality.

        Examples
        --------
        >>> sa.POISEVAE.setup_anndata(adata, protein_obsm_key="protein_counts", batch_key="batch")
        """
        if protein_obsm_key is None:
            found = [k for k in checks.check_type(adata).obsm if k.startswith("protein")]
            protein_obsm_key = found[0] if len(found) == 1 else None
        set_up(cls, adata, cls._get_setup_method_args(**_arguments(locals())), **kwargs)

    @classmethod
    def setup_mudata(
        cls,
        mdata: Any,
        modalities: Sequence[str] = ("rna", "prot"),
        layers: Sequence[str | None] = (None, None),
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        allow_non_counts: bool = False,
        **kwargs: Any,
    ) -> None:
        """Register a MuData for the model; its cells need not all have both modalities.

        Parameters
        ----------
        mdata
            MuData with raw counts.
        modalities
            Names of the first modality (genes) and the second one in ``mdata``.
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
            logger.warning("POISEVAE(mdata) without `setup_mudata`: modelling `.X` of 'rna' and 'prot'.")
            cls.setup_mudata(data)
        return cls._setup_adata_manager_store[data.uns["_scvi_uuid"]].adata


def _arguments(local: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a set-up method from its ``locals()``."""
    return {k: v for k, v in local.items() if k not in {"__class__", "found", "kwargs"}}


def _look(model: pairs.Model, batch: Batch, q: Distributions) -> dict[str, torch.Tensor]:
    """Return the codes of both modalities, and the second modality completed where it was not measured."""
    assert isinstance(q, Posterior)
    joint, names = model.module.joint, pairs.modalities(model)
    codes = joint.codes(q)
    out = {f"code {name}": codes[latent][0] for name, latent in zip(names, BOTH, strict=True)}
    completed = pairs.predicted(model, batch, 1, q=q)[0]
    return {"joint": joint.code(q)[0], **out, "completed": completed}


def _write(model: pairs.Model, key: str, found: Found, names: pd.Index) -> Written:
    """Return the codes and the completed second modality under their keys."""
    modalities = pairs.modalities(model)
    second = modalities[1]
    out: dict[str, np.ndarray | pd.DataFrame] = {_keys.latent(key): found["joint"]}
    out |= {_keys.latent(f"{key}_{name}"): found[f"code {name}"] for name in modalities}
    variables = pairs.get_variables(model, second)
    out[_keys.completed(key, second)] = pd.DataFrame(found["completed"], index=names, columns=variables)
    return {"obsm": out}


POISEVAE.annotators = (Annotator(_look, _write, decodes=True),)
