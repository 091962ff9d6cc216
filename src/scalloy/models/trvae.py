"""TRVAE for users. The mathematics is in :mod:`scalloy.vae.trvae`."""

from __future__ import annotations

from typing import Any, Literal

from anndata import AnnData

from scalloy._seeds import repeatable
from scalloy.models import _options
from scalloy.models._conditions import ConditionModel
from scalloy.models._options import GeneLikelihood
from scalloy.vae.trvae import TRVAE as TRVAEMath


class TRVAE(ConditionModel):
    """Conditional VAE whose conditions are made alike after the first layer of the decoder (trVAE).

    Parameters
    ----------
    adata
        Cells, registered with :meth:`setup_anndata` with a ``condition_key``.
    registry
        What :meth:`setup_anndata` stored, to work without cells.
    n_hidden, n_latent, n_layers, dropout_rate, gene_likelihood, dispersion, norm
        As in :class:`~scalloy.VAE`.
    mmd_weight
        Weight of the penalty: the squared maximum mean discrepancy between conditions. 0 leaves a
        conditional VAE.
    inject
        Where the decoder sees the condition: ``"all"`` layers, or the ``"first"`` only, as published: a
        strong penalty then takes the effect away.
    kernel
        ``"median"``: five scales around the median distance, unbiased; ``"trvae"``: the 19 fixed ones of the
        paper, biased.
    mmd_within_labels
        Whether only cells of the same label are compared, so that a different composition of cell types under
        the conditions is no discrepancy. Needs ``labels_key``.
    pairs
        Whether the discrepancies of several pairs of conditions are averaged (``"mean"``) or added up
        (``"sum"``, as published).
    kl_weight
        Weight of the KL divergence of the code.
    seed
        As in :class:`~scalloy.VAE`.

    Examples
    --------
    >>> adata = sa.datasets.kang()
    >>> sa.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    >>> model = sa.TRVAE(adata)
    >>> model.train()
    >>> stimulated = model.transfer(adata[adata.obs["condition"] == "control"].copy(), to="stimulated")
    """

    @repeatable
    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_hidden: int = 128,
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
        *,
        seed: int | None = None,
    ) -> None:
        _options.whole(n_hidden=n_hidden, n_latent=n_latent, n_layers=n_layers)
        _options.one_of("norm", norm, _options.NORMS)
        _options.one_of("inject", inject, ("all", "first"))
        _options.one_of("kernel", kernel, ("median", "trvae"))
        _options.one_of("pairs", pairs, ("mean", "sum"))
        for name, weight in {"mmd_weight": mmd_weight, "kl_weight": kl_weight}.items():
            if not 0 <= weight < float("inf"):
                msg = f"`{name}={weight}` must not be below zero, and finite."
                raise ValueError(msg)
        super().__init__(adata, registry)
        if mmd_within_labels and not self.labels:
            msg = "`mmd_within_labels` needs labels. Call `TRVAE.setup_anndata(adata, labels_key=...)`."
            raise ValueError(msg)
        self.module = TRVAEMath(
            self._sizes(),
            self._likelihood(gene_likelihood, n_hidden, dispersion=dispersion),
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            norm=norm,
            inject_all=inject == "all",
            published_kernel=kernel == "trvae",
            by_label=mmd_within_labels,
            sum_pairs=pairs == "sum",
        )
        own = {} if kl_weight == 1.0 else {"z": kl_weight}  # so that `plan_kwargs` can weigh it as "kl"
        self._plan_defaults = {"weights": {"mmd": mmd_weight, **own}}
        self._model_summary_string = (
            f"TRVAE: {gene_likelihood}, n_latent {n_latent}, penalty {mmd_weight}, condition into {inject}"
        )
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def original(cls, adata: AnnData, **kwargs: Any) -> TRVAE:
        """Make the model of the paper (Lotfollahi et al. 2020), for comparison.

        Squared errors of log-normalised expression, its 19 kernels, the discrepancies of all pairs of
        conditions added up, and the condition in the first layer of the decoder only. Its weights make it a
        deterministic autoencoder: beside the squared error of a cell, the mean KL of a dimension of the code
        weighs 1e-9 and a discrepancy 0.01. Batches are of 512 cells there: ``train(batch_size=512)``.

        Differs from the paper in that the further layers of the encoder see the condition too, units are
        rectified where theirs leak, and the decoder has no dropout and ends without a rectifier.

        Parameters
        ----------
        adata
            Cells, registered with :meth:`setup_anndata` with a ``condition_key``.
        **kwargs
            Other arguments of the constructor; those of the paper are the defaults.
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
        _options.whole(n_latent=options["n_latent"])
        return cls(adata, **{"kl_weight": PUBLISHED["z"] / options["n_latent"], **options})


#: The paper weighs a sum over 512 cells by eta = 100, and means by beta = 500 and alpha = 5e-5.
PUBLISHED = {"mmd": 500 / (100 * 512), "z": 5e-5 / (100 * 512)}
