"""TRVAE, the model class for users; its mathematics is in :mod:`scalloy.vae.trvae`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from anndata import AnnData

from scalloy._arguments import one_of, whole
from scalloy._seeds import repeatable
from scalloy.blocks.network_kinds import Network
from scalloy.blocks.networks import NetworkSettings
from scalloy.models._core import conditions, generate, groups, responses
from scalloy.models._core.base import ScalloyModel
from scalloy.models._core.factories import GeneLikelihood
from scalloy.models._core.setup import OneModality
from scalloy.vae.trvae import TRVAE as TRVAEMath
from scalloy.vae.trvae import later_known


class TRVAE(ScalloyModel):
    """Conditional VAE with a penalty that makes conditions alike after the decoder's first layer (trVAE).

    Parameters
    ----------
    adata
        Cells, registered with :meth:`setup_anndata` and a ``condition_key``.
    registry
        Registry that :meth:`setup_anndata` made, for a model without cells.
    n_hidden, n_latent, n_layers, dropout_rate, gene_likelihood, dispersion, norm, encoder, decoder
        As in :class:`~scalloy.VAE`. The first layer of the decoder, on which the penalty acts, is a plain one
        whatever its network is.
    mmd_weight
        Weight of the penalty, which is the squared maximum mean discrepancy between conditions. With 0 the
        model is a conditional VAE.
    inject
        Layers of the decoder that see the condition: ``"all"``, or the ``"first"`` only, as published. With
        the latter, a strong penalty removes the effect of the condition.
    kernel
        Kernels of the discrepancy: ``"median"`` has five scales around the median distance and an unbiased
        estimate, ``"trvae"`` the 19 fixed scales of the paper and a biased one.
    mmd_within_labels
        Whether to compare only cells of the same label, so that a different composition of cell types under
        the conditions is not penalised. Needs ``labels_key``.
    pairs
        Whether to average the discrepancies of all pairs of conditions (``"mean"``), or to add them up
        (``"sum"``, as published).
    kl_weight
        Weight of the KL divergence of the code.
    seed
        Random seed, as in :class:`~scalloy.VAE`.

    Examples
    --------
    >>> adata = sa.datasets.kang()
    >>> sa.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    >>> model = sa.TRVAE(adata)
    >>> model.train()  # doctest: +SKIP
    >>> b_cells = adata[(adata.obs["cell_type"] == "B cells") & (adata.obs["condition"] == "control")].copy()
    >>> stimulated = model.transfer(b_cells, to="stimulated")
    """

    ROUTES = ("auto", "decoder")
    layout = OneModality(condition=True)
    module: TRVAEMath

    generate = generate.generate
    condition_key = property(conditions.key)
    transfer = conditions.transfer
    write_transfer = conditions.write_transfer
    predict = conditions.predict
    get_transfer_groups = groups.get_transfer_groups
    dose_response = responses.dose_response
    interactions = responses.interactions
    get_nearest_conditions = responses.get_nearest_conditions
    _group_unlabelled = groups.all_alike
    conditions = property(conditions.names)

    @repeatable
    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_hidden: int | Sequence[int] = 128,
        n_latent: int = 10,
        n_layers: int = 2,
        dropout_rate: float = 0.1,
        gene_likelihood: GeneLikelihood = "nb",
        dispersion: str = "gene",
        mmd_weight: float = 100.0,
        inject: Literal["all", "first"] = "all",
        kernel: Literal["median", "trvae"] = "median",
        mmd_within_labels: bool = False,
        norm: str = "layer",
        pairs: Literal["mean", "sum"] = "mean",
        kl_weight: float = 1.0,
        encoder: Network = "mlp",
        decoder: Network = "mlp",
        *,
        seed: int | None = None,
    ) -> None:
        networks = NetworkSettings(
            n_hidden,
            n_latent,
            n_layers,
            dropout_rate,
            norm,
            encoder_kind=encoder,
            decoder_kind=decoder,
            usual_layers=2,
        )
        one_of("inject", inject, ("all", "first"))
        one_of("kernel", kernel, ("median", "trvae"))
        one_of("pairs", pairs, ("mean", "sum"))
        for name, weight in {"mmd_weight": mmd_weight, "kl_weight": kl_weight}.items():
            if not 0 <= weight < float("inf"):
                msg = f"`{name}={weight}` must not be below zero, and finite."
                raise ValueError(msg)
        super().__init__(adata, registry)
        if mmd_within_labels and not self.labels:
            msg = "`mmd_within_labels` needs labels. Call `TRVAE.setup_anndata(adata, labels_key=...)`."
            raise ValueError(msg)
        sizes, later = self.sizes, later_known(self.sizes, inject_all=inject == "all")
        width = networks.n_decoded(sizes.n_vars, skip=1, **later)
        self.module = TRVAEMath(
            sizes,
            self.make_likelihood(gene_likelihood, width, dispersion=dispersion, per_gene=networks.per_gene),
            networks,
            inject_all=inject == "all",
            published_kernel=kernel == "trvae",
            by_label=mmd_within_labels,
            sum_pairs=pairs == "sum",
        )
        own = {} if kl_weight == 1.0 else {"z": kl_weight}  # without "z", `plan_kwargs` can still set "kl"
        self._plan_defaults = {"weights": {"mmd": mmd_weight, **own}}
        self._model_summary_string = (
            f"TRVAE: {gene_likelihood}, n_latent {n_latent}, penalty {mmd_weight}, condition into {inject}"
        )
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def original(cls, adata: AnnData, **kwargs: Any) -> TRVAE:
        """Make the model of the paper (Lotfollahi et al. 2020), for comparison.

        It has squared errors of log-normalised expression and 19 fixed kernels, the discrepancies of all
        pairs of conditions are added up, and only the first layer of the decoder sees the condition. Its
        weights make it nearly a deterministic autoencoder: relative to the squared error of a cell, the
        mean KL per dimension of the code has the weight 1e-9, and a discrepancy 0.01. The paper trains with
        batches of 512 cells: ``train(batch_size=512)``.

        It differs from the paper in three ways: the later layers of the encoder see the condition too, units
        are rectified (leaky in the paper), and the decoder has no dropout and no rectifier at its end.

        Parameters
        ----------
        adata
            Cells, registered with :meth:`setup_anndata` and a ``condition_key``.
        **kwargs
            Other arguments of the constructor; the defaults are those of the paper.

        Examples
        --------
        >>> sa.TRVAE.setup_anndata(adata, condition_key="condition")
        >>> paper = sa.TRVAE.original(adata)
        """
        paper: dict[str, Any] = {
            "n_hidden": 800,
            "n_latent": 40,
            "n_layers": 2,
            "dropout_rate": 0.2,
            "gene_likelihood": "mse",
            "mmd_weight": PUBLISHED["mmd"],
            "inject": "first",
            "kernel": "trvae",
            "norm": "batch",
            "pairs": "sum",
        }
        options = {**paper, **kwargs}
        whole(n_latent=options["n_latent"])
        return cls(adata, **{"kl_weight": PUBLISHED["z"] / options["n_latent"], **options})


#: Weights relative to the squared error of a cell: the paper weighs the sum of these errors over 512 cells by
#: eta = 100, the mean discrepancy by beta = 500, and the mean KL by alpha = 5e-5.
PUBLISHED = {"mmd": 500 / (100 * 512), "z": 5e-5 / (100 * 512)}
