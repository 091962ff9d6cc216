"""What does a component cost? Time of an epoch of GMVAE against that of VAE, in one run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData

from scalloy.benchmark.evidence import keeps_seed
from scalloy.benchmark.fit import QUIET, load
from scalloy.benchmark.speed import Clock
from scalloy.models import GMVAE, VAE

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
    """Median time of an epoch as a ratio to the VAE's, with the range of the repetitions, which alternate.

    Components are placed before the first epoch, which is left out, as is validation.

    Parameters
    ----------
    data, n_genes
        As in :func:`scalloy.benchmark.likelihoods`.
    n_clusters
        Numbers of components.
    decode_all_up_to
        Up to this number the time with all components decoded is measured too.
    max_epochs
        Of each measurement.
    repeats
        How many.
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
                _epoch(adata, seed, max_epochs, n_clusters=k, n_decoded=n_decoded) / plain
            )
    rows = [
        {"n_clusters": k, "decoded": d, "ratio": np.median(r), "lowest": min(r), "highest": max(r)}
        for (k, d), r in ratios.items()
    ]
    return pd.DataFrame(rows)


def _epoch(adata: AnnData, seed: int, max_epochs: int, **mixture: int) -> float:
    """Seconds of the median epoch but the first."""
    scvi.settings.seed = seed
    cls, clock = (GMVAE if mixture else VAE), Clock()
    cls.setup_anndata(adata)
    made = cls(adata, **mixture)
    if mixture:
        made.module.place_at = 0.0
    timed = {"callbacks": [clock], "early_stopping": False, "check_val_every_n_epoch": 10**6}
    made.train(max_epochs=max_epochs, batch_size=128, **timed, **QUIET)
    return float(np.median(clock.seconds[1:]))
