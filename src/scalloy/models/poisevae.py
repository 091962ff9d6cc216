"""POISEVAE for users. The mathematics is in :mod:`scalloy.vae.poisevae`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal
from weakref import WeakValueDictionary

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import ObsmField

from scalloy import _keys
from scalloy._keys import SECOND_KEY
from scalloy._seeds import repeatable
from scalloy.data import checks
from scalloy.data.align import shallow
from scalloy.data.modalities import check_second, is_mudata, joined, with_columns
from scalloy.models import _options
from scalloy.models._base import ScalloyModel, moments, without
from scalloy.models._options import GeneLikelihood, JointKind, SecondLikelihood
from scalloy.models._pairs import PairGetters
from scalloy.vae.base import Sizes
from scalloy.vae.poisevae import POISEVAE as POISEVAEMath

logger = logging.getLogger("scalloy")


class POISEVAE(PairGetters, ScalloyModel):
    """RNA and protein, or two of anything: a code for each modality, and a prior that couples them.

    Parameters
    ----------
    adata
        MuData, registered with :meth:`setup_mudata`, or AnnData, registered with :meth:`setup_anndata`.
    registry
        What the set-up stored, to work without cells.
    n_hidden, n_layers, dropout_rate, gene_likelihood
        As in :class:`~scalloy.VAE`; ``gene_likelihood`` is that of the first modality.
    n_latent
        Dimensions of each of the two codes.
    protein_likelihood
        Of the second modality: ``"background"`` (counts of antibodies: a mixture of background and
        foreground), ``"nb"``, ``"normal"`` or ``"bernoulli"`` (values within [0, 1]) for data as given.
    joint
        ``"poise"``: private codes whose first and second powers are coupled; ``"gaussian"``: only the first
        ones, a probabilistic CCA between codes; ``"independent"``: not coupled. Rivals with one shared code:
        ``"product"`` and ``"mixture"`` of experts.
    kappa
        How close to the border of what can be normalised the coupling may come, from 0 to 1.
    hide
        Shares of the cells of which the first, or the second, modality is hidden from the encoders in
        training, so that each learns to tell the other one.
    hidden_rate
        Share of the counts of genes that is hidden from the encoder in training.
    encode_covariates
        Whether the encoders see batch and covariates too; the decoders always do.
    n_chains, n_sweeps, chains
        Gibbs chains that follow the prior in training, and sweeps of each at every step; ``"kept"`` from step
        to step or ``"restarted"``.
    seed
        As in :class:`~scalloy.VAE`.

    Examples
    --------
    >>> adata = sa.datasets.citeseq()
    >>> sa.POISEVAE.setup_anndata(adata, protein_obsm_key="protein_counts")
    >>> model = sa.POISEVAE(adata)
    >>> model.train()
    >>> model.predict("prot", from_="rna", adata=rna_only)
    """

    _default_steps = 6000
    _mudata: ClassVar[WeakValueDictionary[str, Any]] = WeakValueDictionary()  # by the set-up that it has

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
        _options.whole(n_hidden=n_hidden, n_latent=n_latent, n_layers=n_layers, n_chains=n_chains)
        _options.whole(n_sweeps=n_sweeps)
        _options.shares(hidden_rate=hidden_rate, hide=hide[0])
        _options.shares(hide=hide[1])
        _options.shares(hide=sum(hide))
        super().__init__(self._registered(adata), registry)
        self._source = adata if is_mudata(adata) else None
        prior = {"kappa": kappa, "n_chains": n_chains, "n_sweeps": n_sweeps, "chains": chains}
        sizes = self._sizes()
        self.module = POISEVAEMath(
            sizes,
            self._likelihood(gene_likelihood, n_hidden),
            _options.second_likelihood(protein_likelihood, sizes, n_hidden),
            _options.joint(joint, n_latent, **prior),
            n_latent=n_latent,
            n_hidden=n_hidden,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            hide=(hide[0], hide[1]),
            hidden_rate=hidden_rate,
            encode_covariates=encode_covariates,
        )
        if self.adata is not None:
            self._start_at_data(protein_likelihood)
        self._model_summary_string = (
            f"POISEVAE: {gene_likelihood} and {protein_likelihood}, joint {joint}, n_latent {n_latent} each"
        )
        self.init_params_ = self._get_init_params(locals())

    def _start_at_data(self, protein_likelihood: str) -> None:
        """Begin at the moments of the second modality, where it was measured, and the usual library size."""
        cells, likelihood = self._all_cells(), self.module.likelihood2
        x2 = cells.columns[SECOND_KEY]
        values = x2[~x2.isnan()].numpy()
        if len(values) == 0:
            msg = f"{self.modalities[1]!r} is NaN throughout: there is nothing to learn it from."
            raise ValueError(msg)
        _options.check_range(protein_likelihood, likelihood, values, argument="protein_likelihood")
        mean, variance = moments(x2.numpy())
        likelihood.start_at(mean, variance, cells.log_ell)
        counted = torch.from_numpy(np.asarray(abs(cells.x).sum(axis=1)).ravel() > 0)
        if not counted.any():
            msg = f"{self.modalities[0]!r} is zero throughout: there is nothing to learn it from."
            raise ValueError(msg)
        self.module.start_at(likelihood.features(x2).nanmean(0).nan_to_num(0.0), cells.log_ell[counted])

    def _annotations(self, adata: Any, key: str) -> dict[str, dict[str, Any]]:
        written, (_, second) = super()._annotations(adata, key), self.modalities
        more = {
            _keys.latent(f"{key}_{name}"): self.get_latent_representation(adata, which=name)
            for name in self.modalities
        }
        more[_keys.completed(key, second)] = self.predict(second, adata=adata)
        return written | {"obsm": written["obsm"] | more}

    # set-up -------------------------------------------------------------------------------------

    @classmethod
    def setup_anndata(  # type: ignore[override]
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
        """Say what is where in ``adata``.

        Parameters
        ----------
        adata
            Raw counts of genes, cells x genes. A cell without any counts is one whose RNA was not measured.
        protein_obsm_key
            Key of ``.obsm`` with the second modality, such as raw counts of proteins: a DataFrame or an
            array, NaN where it was not measured (cells, or single proteins of a batch). ``None`` takes the
            only key that begins with "protein".
        layer, batch_key, labels_key, size_factor_key, categorical_covariate_keys, \
continuous_covariate_keys, allow_non_counts
            As in :meth:`scalloy.VAE.setup_anndata`. The batch is removed from both codes.
        modalities
            What to call the first and the second modality.
        """
        if protein_obsm_key is None:
            found = [k for k in checks.check_type(adata).obsm if k.startswith("protein")]
            protein_obsm_key = found[0] if len(found) == 1 else None
        cls._set_up(adata, cls._get_setup_method_args(**without(locals(), "__class__", "found")), **kwargs)

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
        """Say what is where in ``mdata``, whose cells need not all have both modalities.

        Parameters
        ----------
        mdata
            MuData with raw counts.
        modalities
            Names of the first (genes) and the second one.
        layers
            Layer of each with the counts; ``None`` is ``.X``.
        batch_key, labels_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys, \
allow_non_counts
            As in :meth:`setup_anndata`; columns are looked for in ``mdata.obs``, then in those of the
            modalities.
        """
        if not is_mudata(mdata):
            msg = f"`mdata` is a {type(mdata).__name__}. Pass a MuData, or call `setup_anndata`."
            raise TypeError(msg)
        args = cls._get_setup_method_args(**without(locals(), "__class__"))
        adata = joined(mdata, modalities, layers, keys=_columns(args["setup_args"]))
        cls._set_up(adata, args, **kwargs)
        mdata.uns["_scvi_uuid"] = adata.uns["_scvi_uuid"]
        cls._mudata[adata.uns["_scvi_uuid"]] = mdata

    @classmethod
    def _registered(cls, data: Any) -> Any:
        """The AnnData that stands for a MuData."""
        if not is_mudata(data):
            return data
        if cls._mudata.get(data.uns.get("_scvi_uuid")) is not data:  # a copy is not set up
            logger.warning("POISEVAE(mdata) without `setup_mudata`: modelling `.X` of 'rna' and 'prot'.")
            cls.setup_mudata(data)
        return cls._setup_adata_manager_store[data.uns["_scvi_uuid"]].adata

    @classmethod
    def _obsm_keys(cls, given: dict) -> tuple[str, ...]:
        return (given.get("protein_obsm_key") or given["modalities"][1],)

    @classmethod
    def _fields(cls, **given: Any) -> list:
        (key,) = cls._obsm_keys(given)
        return [*super()._fields(**given), ObsmField(SECOND_KEY, key, correct_data_format=False)]

    @classmethod
    def _known_otherwise(cls, adata: AnnData, given: dict) -> np.ndarray:
        (key,) = cls._obsm_keys(given)
        allow = given["allow_non_counts"]
        return check_second(adata, "protein_obsm_key", key, allow_non_counts=allow)

    @classmethod
    def _joined(cls, data: Any, registry: dict) -> AnnData:
        given = registry["setup_args"]
        fields = registry["field_registries"]
        known = [fields[k]["state_registry"]["column_names"] for k in (REGISTRY_KEYS.X_KEY, SECOND_KEY)]
        names = tuple(list(k) for k in known)
        (key,) = cls._obsm_keys(given)
        if is_mudata(data):
            layers = given.get("layers", (None, None))
            data = joined(data, given["modalities"], layers, keys=_columns(given), names=names)
            data.obsm[key] = data.obsm.pop(given["modalities"][1])  # where the set-up has it
        if key in checks.check_type(data).obsm:
            return with_columns(data, key, known[1])
        logger.info(
            "`adata.obsm` has no %r: cells of which %r was not measured.", key, given["modalities"][1]
        )
        out = shallow(data)
        out.obsm[key] = pd.DataFrame(np.nan, index=data.obs_names, columns=names[1], dtype=np.float32)
        return with_columns(out, key, known[1])

    def _sizes(self) -> Sizes:
        return replace(super()._sizes(), n_vars2=self.summary_stats[f"n_{SECOND_KEY}"])


def _columns(given: dict) -> list[str]:
    """Columns of ``.obs`` that a set-up names."""
    return [key for _, key in checks.columns(given)]
