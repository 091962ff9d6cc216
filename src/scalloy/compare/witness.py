"""Witness function of two groups: the cells that differ between them, and the genes that go with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.stats import false_discovery_control, rankdata
from torch import Tensor

from scalloy._arguments import few, one_of
from scalloy.blocks.divergences import kernel, median_scales
from scalloy.compare.designs import Design
from scalloy.compare.groups import check, column, design_of, representation
from scalloy.compare.statistics import EXACT, ROWS, centred
from scalloy.data.checks import check_counts, check_layer, check_type

if TYPE_CHECKING:
    from scalloy.models._core.base import ScalloyModel


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
    """Find the cells that lie where one group is denser than the other.

    The witness function of the MMD at a cell is ``mean k(cell, b) - mean k(cell, a)`` over the cells of other
    donors (or over all other cells). It is above zero where group ``b`` is denser. Its p-value comes from the
    same kind of permutations as in :func:`groups`. Of more than 5,000 cells, a random subset represents each
    group.

    Parameters
    ----------
    data, use_rep, groupby, donor_key, unit, at_least, rng
        As in :func:`groups`. To look into one cell type, pass its cells only.
    groups
        Names of the groups ``a`` and ``b``.
    n_permutations
        Maximum number of permutations.

    Returns
    -------
    One row per cell of the two groups, by name: ``group``, ``donor`` (if there are donors), ``witness``,
    ``zscore`` (against the permutations), ``pvalue`` and ``padj`` (Benjamini-Hochberg over cells).

    Examples
    --------
    >>> found = sa.compare.witness(model, groupby="condition", groups=("control", "treated_1"))
    >>> list(found)
    ['group', 'witness', 'zscore', 'pvalue', 'padj']
    """
    check(unit, donor_key, n_permutations=n_permutations, at_least=at_least)
    rng = np.random.default_rng(rng)
    x, obs = representation(data, use_rep)
    of, groups = column(obs, "groupby", groupby), (str(groups[0]), str(groups[1]))
    for name in groups:
        one_of("groups", name, sorted(set(of)))
    cells = np.flatnonzero(np.isin(of, groups))
    group = (of[cells] == groups[1]).astype(int)
    donor = None if donor_key is None else column(obs, "donor_key", donor_key)[cells]
    whole = design_of(group, donor, unit, at_least)
    marks = whole.thinned(EXACT, rng)
    labels, _ = marks.labelings(n_permutations, rng)
    own, apart = _own(whole, marks, donor)
    parts = [_score(v) for v in _witnesses(x[cells], own, marks, apart, labels)]
    out = {"group": of[cells]} | ({} if donor is None else {"donor": donor})
    out |= {k: np.concatenate(v) for k, v in zip(("witness", "zscore", "pvalue"), zip(*parts))}
    frame = pd.DataFrame(out, index=obs.index[cells])
    return frame.assign(padj=false_discovery_control(frame["pvalue"]))


def _own(whole: Design, marks: Design, donor: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return a code of each cell and of each unit; a cell is not compared with units of its own code.

    This leaves out a cell's own donor, or the cell itself where cells are the units.
    """
    chosen = np.flatnonzero(marks.unit >= 0)
    if "cells" in whole.kind:
        own = np.full(len(whole.unit), -1)
        own[chosen] = marks.unit[chosen]
        return own, np.arange(len(marks.group))
    codes, apart = pd.factorize(donor)[0], np.empty(len(marks.group), dtype=int)
    apart[marks.unit[chosen]] = codes[chosen]
    return codes, apart


def _witnesses(
    x: np.ndarray, own: np.ndarray, marks: Design, apart: np.ndarray, labels: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the witness function of some cells at a time for each labeling, over units of other codes."""
    z, chosen = centred(x), np.flatnonzero(marks.unit >= 0)
    marked, unit = z[chosen], torch.as_tensor(marks.unit[chosen])
    scales, size = median_scales(marked), torch.bincount(unit).float()
    of_unit, b = torch.as_tensor(apart), torch.as_tensor(labels).float()
    for rows, of in zip(z.split(ROWS), torch.as_tensor(own).split(ROWS)):
        k = torch.zeros(len(rows), len(size)).index_add_(1, unit, kernel(rows, marked, scales)) / size
        others = (of[:, None] != of_unit).float()
        yield (_mean(k * others, others, b) - _mean(k * others, others, 1 - b)).numpy()


def _mean(k: Tensor, others: Tensor, b: Tensor) -> Tensor:
    """Mean kernel of each cell over the other units that a labeling puts into ``b``."""
    return (k @ b) / (others @ b).clamp_min(1)


def _score(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the observed witness, its z-score against the permutations, and its p-value, by cell."""
    observed, null = values[:, 0], values[:, 1:]
    spread = np.maximum(null.std(1), 1e-12)
    as_high = (np.abs(null) >= np.abs(observed)[:, None] * (1 - 1e-5)).sum(1)
    return observed, (observed - null.mean(1)) / spread, (1 + as_high) / (1 + null.shape[1])


def genes(adata: AnnData, found: pd.DataFrame, *, layer: str | None = None) -> pd.DataFrame:
    """Rank genes by how their expression correlates with the witness function within each sample.

    The Spearman correlation of normalised expression (or of its logarithm, which has the same ranks) with the
    witness is computed among the cells of each group of each donor, so that the group itself cannot cause it.
    It is averaged over the samples of a donor and then over donors, which have equal weights. The result
    describes the cells that differ. It does not test whether they do, because the witness is a function of
    the latent space, and so is the expression of most genes.

    Parameters
    ----------
    adata
        The cells with raw counts.
    found
        Table that :func:`witness` returned.
    layer
        Layer with the counts; ``None`` uses ``.X``.

    Returns
    -------
    One row per gene, the strongest first: ``correlation`` (mean over donors), ``spread`` (its standard
    deviation over donors) and ``n`` (number of donors in which the gene varies, or of groups if there are no
    donors).

    Examples
    --------
    >>> found = sa.compare.witness(model, groupby="condition", groups=("control", "treated_1"))
    >>> list(sa.compare.genes(adata, found))
    ['correlation', 'spread', 'n']
    """
    if not check_type(adata).obs_names.is_unique:
        msg = "Names of cells occur more than once. Call `adata.obs_names_make_unique()` before `witness`."
        raise ValueError(msg)
    rows = adata.obs_names.get_indexer(found.index)
    if (rows < 0).any():
        msg = (
            f"`found` names cells that are not in `adata`: {few(found.index[rows < 0])}. Pass the same cells."
        )
        raise KeyError(msg)
    x = check_layer(adata, layer)
    check_counts(adata, layer, allow_non_counts=True, genes=False)
    normed = AnnData(sp.csr_matrix(x, dtype=np.float64)[rows], obs=pd.DataFrame(index=found.index))
    sc.pp.normalize_total(normed, target_sum=1e4)
    x, w = normed.X.tocsc(), found["witness"].to_numpy()
    keys = [k for k in ("donor", "group") if k in found]
    samples = {k: rows for k, rows in found.groupby(keys, sort=True).indices.items() if len(rows) > 2}
    if not samples:
        msg = "No sample has more than two cells, so nothing can be correlated."
        raise ValueError(msg)
    r = pd.DataFrame({k: _spearman(x[rows], w[rows]) for k, rows in samples.items()}, index=adata.var_names).T
    r = r.groupby(level=0).mean()  # mean over the samples of a donor
    frame = pd.DataFrame({"correlation": r.mean(), "spread": r.std(), "n": r.notna().sum()})
    return frame.iloc[np.argsort(-frame["correlation"].abs().fillna(-1).to_numpy(), kind="stable")]


def _spearman(x: sp.csc_matrix, y: np.ndarray) -> np.ndarray:
    """Spearman correlation of each column of ``x``, with values from 0, with ``y``; NaN if it is constant."""
    x.eliminate_zeros()
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
