"""Cost of model parts relative to VAE or AE, and cost of predictions relative to training."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData

from scalloy.benchmark.evidence import keeps_seed
from scalloy.benchmark.fit import QUIET, load
from scalloy.benchmark.latent import LIKELIHOODS
from scalloy.benchmark.speed import Clock
from scalloy.models import AE, CGMDVAE, GMVAE, VAE, BetaVAE, BetaVSC
from scalloy.models._core.base import ScalloyModel

ALL = "all"


@keeps_seed()
def cost(
    data: str = "pbmc4k_dcc",
    *,
    n_clusters: Sequence[int] = (1, 10, 50),
    decode_all_up_to: int = 10,
    n_genes: int = 2000,
    max_epochs: int = 6,
    repeats: int = 3,
) -> pd.DataFrame:
    """Measure an epoch of GMVAE by number of components: median processor time as a ratio to VAE's.

    The models are timed in turn in each repetition, and the range of the repetitions is given. Run it with
    one thread (``OMP_NUM_THREADS=1``), because processor time also counts threads that wait for work.
    Components are placed before the first epoch, which is left out, as is validation.

    Parameters
    ----------
    data, n_genes
        Name of a data set, see :func:`scalloy.benchmark.fit.load`, and number of most variable genes that are
        kept.
    n_clusters
        Numbers of components.
    decode_all_up_to
        Largest number of components for which decoding all of them is measured too; otherwise two are
        decoded.
    max_epochs
        Number of epochs of each measurement.
    repeats
        Number of measurements.

    Examples
    --------
    >>> table = sa.benchmark.cost("kang_subset", n_clusters=[1], n_genes=100, max_epochs=2, repeats=1)
    >>> list(table)
    ['n_clusters', 'decoded', 'ratio', 'lowest', 'highest']
    """
    adata = load(data, n_genes)
    kinds: list[tuple[int, int | str]] = [(k, 2) for k in n_clusters]
    kinds += [(k, ALL) for k in n_clusters if 2 < k <= decode_all_up_to]
    ratios: dict[tuple[int, int | str], list[float]] = {kind: [] for kind in kinds}
    for seed in range(repeats):
        plain = _epoch(adata, seed, max_epochs)
        for k, decoded in kinds:
            n_decoded = k if decoded == ALL else int(decoded)
            ratios[k, decoded].append(
                _epoch(adata, seed, max_epochs, GMVAE, n_clusters=k, n_decoded=n_decoded) / plain
            )
    rows = [
        {"n_clusters": k, "decoded": d, "ratio": np.median(r), "lowest": min(r), "highest": max(r)}
        for (k, d), r in ratios.items()
    ]
    return pd.DataFrame(rows)


@keeps_seed()
def autoencoders(
    data: str = "pbmc3k",
    *,
    n_latent: int = 6,
    n_genes: int | None = None,
    max_epochs: int = 6,
    repeats: int = 3,
) -> pd.DataFrame:
    """Measure an epoch of VAE, BetaVAE and BetaVSC: median processor time as a ratio to an AE of equal size.

    The source of AE and VSC reports that variational autoencoders take five times as long as its AE. But they
    had 800 and 400 hidden units and the AE 128: the rows ``VAE, 800 x 2`` show what such sizes cost.

    Parameters
    ----------
    data
        Name of a data set, see :func:`scalloy.benchmark.fit.load`.
    n_latent
        Number of latent dimensions of all models; 6 in the source.
    n_genes
        Number of most variable genes that are kept; ``None`` keeps all, as in the source.
    max_epochs, repeats
        Epochs of each measurement, and number of measurements, as in :func:`cost`.
    """
    adata = load(data, n_genes)
    kinds: dict[tuple[str, str], tuple[type[ScalloyModel], dict[str, Any]]] = {}
    for lik in LIKELIHOODS:
        same = {"n_latent": n_latent, "gene_likelihood": lik}
        for cls in (VAE, BetaVAE, BetaVSC):
            kinds[cls.__name__, lik] = (cls, same)
        kinds["BetaVSC, mlp", lik] = (BetaVSC, {**same, "decoder": "mlp"})
        kinds["VAE, 800 x 2", lik] = (VAE, {**same, "n_hidden": 800, "n_layers": 2})
    ratios: dict[tuple[str, str], list[float]] = {kind: [] for kind in kinds}
    for seed in range(repeats):
        for lik in LIKELIHOODS:
            plain = _epoch(adata, seed, max_epochs, AE, n_latent=n_latent, gene_likelihood=lik)
            for (name, own), (cls, settings) in kinds.items():
                if own == lik:
                    ratios[name, lik].append(_epoch(adata, seed, max_epochs, cls, **settings) / plain)
    rows = [
        {"model": m, "likelihood": k, "ratio": np.median(r), "lowest": min(r), "highest": max(r)}
        for (m, k), r in ratios.items()
    ]
    return pd.DataFrame(rows)


@keeps_seed()
def conditional(
    data: str = "kang",
    *,
    batch_size: Sequence[int] = (128, 512),
    n_genes: int = 2000,
    max_epochs: int = 5,
    repeats: int = 3,
) -> pd.DataFrame:
    """Measure an epoch of CGMDVAE: median processor time as a ratio to that of a VAE of the same size.

    The VAE removes the condition as a batch.

    Parameters
    ----------
    data
        Name of a data set with columns ``condition`` and ``cell_type``.
    batch_size
        Numbers of cells per training step.
    n_genes, max_epochs, repeats
        Most variable genes that are kept, epochs of each measurement, and number of measurements, as in
        :func:`cost`.
    """
    adata = load(data, n_genes)
    given = {"condition_key": "condition"}
    labels = {**given, "labels_key": "cell_type"}
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "conditions": (given, {}),
        "conditions and labels": (labels, {}),
        "each component moves": (labels, {"conditioning": "interaction"}),
        "a style latent": (labels, {"n_w": 5}),
    }
    rows = []
    for size in batch_size:
        ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
        for seed in range(repeats):
            run: dict[str, Any] = {"batch_size": size}
            plain = _epoch(adata, seed, max_epochs, VAE, {"batch_key": "condition"}, **run)
            for kind, (setup, settings) in kinds.items():
                one = _epoch(adata, seed, max_epochs, CGMDVAE, setup, **run, **settings)
                ratios[kind].append(one / plain)
        rows += [
            {"batch_size": size, "with": k, "ratio": np.median(r), "lowest": min(r), "highest": max(r)}
            for k, r in ratios.items()
        ]
    return pd.DataFrame(rows)


@keeps_seed()
def predictions(
    data: str = "kang", *, n_genes: int = 2000, max_epochs: int = 5, repeats: int = 3, few: int = 50
) -> pd.DataFrame:
    """Measure predictions of CGMDVAE under another condition: processor time relative to training.

    One type is never seen treated. ``first`` is the first prediction of some of its controls, which includes
    learning from the other types; ``few`` predicts them once more; ``all`` predicts all controls, once the
    changes of all types are known.

    Parameters
    ----------
    data
        Name of a data set with columns ``condition`` (with ``"control"``) and ``cell_type``.
    n_genes, max_epochs, repeats
        Most variable genes that are kept, epochs of each measurement, and number of measurements, as in
        :func:`cost`.
    few
        Number of cells of the first predictions.

    Returns
    -------
    One row for each of the three: ``cells``, and the time of a cell relative to that of a cell in an epoch of
    training (``ratio``, with ``lowest`` and ``highest``).
    """
    adata = load(data, n_genes)
    control = (adata.obs["condition"] == "control").to_numpy()
    held = adata.obs["cell_type"].value_counts().index[-2]
    of = (adata.obs["cell_type"] == held).to_numpy()
    to = next(c for c in adata.obs["condition"].unique() if c != "control")
    trained, every = adata[~of | control].copy(), adata[control].copy()
    some = adata[of & control][:few].copy()
    ratios: dict[str, list[float]] = {"first": [], "few": [], "all": []}
    for seed in range(repeats):
        setup = {"condition_key": "condition", "labels_key": "cell_type"}
        made, epoch = _trained(trained, seed, max_epochs, CGMDVAE, setup)
        step = epoch / trained.n_obs
        if not seed:
            _seconds(made, some, to)  # compiles what is compiled at the first call
            made.train(max_epochs=1, **QUIET)  # and forgets what was learned
        for name, cells in (("first", some), ("few", some), ("", every), ("all", every)):
            seconds = _seconds(made, cells, to)
            if name:
                ratios[name].append(seconds / cells.n_obs / step)
    sizes = {"first": some.n_obs, "few": some.n_obs, "all": every.n_obs}
    return pd.DataFrame(
        {"what": k, "cells": sizes[k], "ratio": np.median(r), "lowest": min(r), "highest": max(r)}
        for k, r in ratios.items()
    )


def _seconds(model: CGMDVAE, cells: AnnData, to: str) -> float:
    """Return the processor time of a prediction, whatever it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begin = time.process_time()
        model.transfer(cells, to)
        return time.process_time() - begin


def _epoch(*args: Any, **settings: Any) -> float:
    """Return the median processor time of an epoch of training, with the arguments of :func:`_trained`."""
    return _trained(*args, **settings)[1]


def _trained(
    adata: AnnData,
    seed: int,
    max_epochs: int,
    cls: type[ScalloyModel] = VAE,
    setup: dict[str, Any] | None = None,
    *,
    batch_size: int = 128,
    **settings: Any,
) -> tuple[Any, float]:
    """Return a trained model, and the median processor time of an epoch without the first."""
    if max_epochs < 2:
        msg = f"`max_epochs={max_epochs}` leaves nothing to measure without the first epoch. Pass 2 or more."
        raise ValueError(msg)
    scvi.settings.seed = seed
    clock = Clock(time.process_time)
    cls.setup_anndata(adata, **(setup or {}))
    made = cls(adata, **settings)
    if cls in {GMVAE, CGMDVAE}:
        made.module.place_at = 0.0
    timed = {"callbacks": [clock], "early_stopping": False, "check_val_every_n_epoch": 10**6}
    made.train(max_epochs=max_epochs, batch_size=batch_size, **timed, **QUIET)
    return made, float(np.median(clock.seconds[1:]))
