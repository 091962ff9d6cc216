"""Which cells differ between two groups, and which genes go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.stats import false_discovery_control, rankdata, ttest_1samp
from torch import Tensor

from scalloy.blocks.divergences import kernel, median_scales
from scalloy.compare.designs import Design
from scalloy.compare.groups import column, design_of, representation
from scalloy.compare.statistics import EXACT, ROWS
from scalloy.models._options import one_of

if TYPE_CHECKING:
    from scalloy.models._base import ScalloyModel


def witness(
    data: AnnData | ScalloyModel,
    use_rep: str | None = None,
    *,
    groupby: str,
    groups: tuple[str, str],
    donor_key: str | None = None,
    unit: Literal["auto", "donor", "cell"] = "auto",
    n_permutations: int = 500,
    at_least: int = 10,
    rng: int | np.random.Generator = 0,
) -> pd.DataFrame:
    """Which cells lie where one group is denser than the other?

    The witness function of the MMD at a cell, ``mean k(cell, b) - mean k(cell, a)`` over cells of other
    donors (or over other cells): above zero where group ``b`` is denser. Its p-value comes from the
    permutations that :func:`groups` uses. Beyond 5,000 cells a random part of them stands for each group.

    Parameters
    ----------
    data, use_rep, groupby, donor_key, unit, at_least, rng
        As in :func:`groups`; for one cell type pass its cells.
    groups
        Names of ``a`` and ``b``.
    n_permutations
        At most.

    Returns
    -------
    For each cell of the two groups, by name: ``group``, ``donor`` (where there are some), ``witness``,
    ``zscore`` (against the permutations), ``pvalue`` and ``padj`` (Benjamini-Hochberg over cells).
    """
    rng = np.random.default_rng(rng)
    x, obs = representation(data, use_rep)
    of = column(obs, "groupby", groupby)
    for name in groups:
        one_of("groups", name, sorted(set(of)))
    cells = np.flatnonzero(np.isin(of, groups))
    group = (of[cells] == groups[1]).astype(int)
    donor = None if donor_key is None else column(obs, "donor_key", donor_key)[cells]
    whole = design_of(group, donor, unit, at_least)
    marks = whole.thinned(EXACT, rng)
    labels, every = marks.labelings(n_permutations, rng)
    labels = np.concatenate([marks.group[:, None].astype(np.int8), labels], 1)
    parts = [_score(v, every) for v in _witnesses(x[cells], whole, marks, labels)]
    out = {"group": of[cells]} | ({} if donor is None else {"donor": donor})
    out |= {k: np.concatenate(v) for k, v in zip(("witness", "zscore", "pvalue"), zip(*parts))}
    frame = pd.DataFrame(out, index=obs.index[cells])
    return frame.assign(padj=false_discovery_control(frame["pvalue"]))


def _witnesses(x: np.ndarray, whole: Design, marks: Design, labels: np.ndarray) -> list[np.ndarray]:
    """Witness of some cells at a time for each labeling, over units apart from a cell's own."""
    z = torch.as_tensor(np.asarray(x, dtype=np.float32))
    chosen = np.flatnonzero(marks.unit >= 0)
    marked, unit = z[chosen], torch.as_tensor(marks.unit[chosen])
    scales, size = median_scales(marked), torch.bincount(unit).float()
    own_of_unit = np.full(len(whole.group), -1)  # what a unit is apart from, by its code in `marks`
    own_of_unit[whole.unit[chosen]] = marks.apart[marks.unit[chosen]]
    own = torch.as_tensor(np.where(whole.unit >= 0, own_of_unit[whole.unit], -1))
    apart, b = torch.as_tensor(marks.apart), torch.as_tensor(labels).float()
    out = []
    for rows, of in zip(z.split(ROWS), own.split(ROWS)):
        k = kernel(rows, marked, scales)
        if len(size) < len(marked):
            k = torch.zeros(len(rows), len(size)).index_add_(1, unit, k) / size
        else:
            k = k[:, torch.argsort(unit)]
        others = (of[:, None] != apart).float()
        out.append((_mean(k * others, others, b) - _mean(k * others, others, 1 - b)).numpy())
    return out


def _mean(k: Tensor, others: Tensor, b: Tensor) -> Tensor:
    return (k @ b) / (others @ b).clamp_min(1)


def _score(values: np.ndarray, every: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observed value, in units of the permutations' spread, and its p-value, by cell."""
    observed, null = values[:, 0], values[:, 1:]
    spread = np.maximum(null.std(1), 1e-12)
    as_high = (np.abs(null) >= np.abs(observed)[:, None] * (1 - 1e-5)).sum(1)
    p = as_high / null.shape[1] if every else (1 + as_high) / (1 + null.shape[1])
    return observed, (observed - null.mean(1)) / spread, np.clip(p, 1 / null.shape[1], 1)


def genes(adata: AnnData, found: pd.DataFrame, *, layer: str | None = None) -> pd.DataFrame:
    """Genes whose expression goes with the witness function, within each sample.

    Spearman's correlation of log-normalised expression with the witness is taken among the cells of each
    group of each donor, where the group itself cannot cause it; samples weigh alike.

    Parameters
    ----------
    adata
        Raw counts of the cells.
    found
        Of :func:`witness`.
    layer
        With the counts; ``None`` is ``.X``.

    Returns
    -------
    By gene, the strongest first: ``correlation`` (mean over samples), ``n_samples`` in which it could be
    computed, ``pvalue`` (t-test over samples, from three on) and ``padj``.
    """
    cells = adata[found.index]
    counts = sp.csr_matrix(cells.X if layer is None else cells.layers[layer], dtype=np.float64)
    normed = AnnData(counts, obs=cells.obs[[]].copy())
    sc.pp.normalize_total(normed, target_sum=1e4)
    x = normed.X.tocsc()
    keys = [k for k in ("group", "donor") if k in found]
    samples = found.groupby(keys, sort=True).indices.values()
    r = np.stack([_spearman(x[rows], found["witness"].to_numpy()[rows]) for rows in samples if len(rows) > 2])
    known = np.isfinite(r).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known > 0, np.nansum(r, 0) / known, np.nan)
    frame = pd.DataFrame({"correlation": mean, "n_samples": known}, index=adata.var_names)
    frame["pvalue"] = np.nan
    tested = np.flatnonzero(known >= 3)
    if len(tested):
        z = np.arctanh(np.clip(r[:, tested], -0.999999, 0.999999))
        frame.iloc[tested, 2] = ttest_1samp(z, 0.0, nan_policy="omit").pvalue
    ok = frame["pvalue"].notna()
    frame["padj"] = np.nan
    frame.loc[ok, "padj"] = false_discovery_control(frame.loc[ok, "pvalue"]) if ok.any() else np.nan
    return frame.iloc[np.argsort(-frame["correlation"].abs().fillna(-1).to_numpy())]


def _spearman(x: sp.csc_matrix, y: np.ndarray) -> np.ndarray:
    """Of each column of sparse values from zero with ``y``; not a number for a constant column."""
    y = rankdata(y)
    y = y - y.mean()
    n, out = len(y), np.full(x.shape[1], np.nan)
    for g in range(x.shape[1]):
        rows, values = x.indices[x.indptr[g] : x.indptr[g + 1]], x.data[x.indptr[g] : x.indptr[g + 1]]
        zeros = n - len(rows)
        if len(rows) == 0:
            continue
        rank = rankdata(values) + zeros  # zeros share the lowest ranks
        low = (zeros + 1) / 2
        mean = (rank.sum() + zeros * low) / n
        square = np.square(rank - mean).sum() + zeros * (low - mean) ** 2
        if square > 0:
            out[g] = (rank - low) @ y[rows] / np.sqrt(square * (y @ y))
    return out
