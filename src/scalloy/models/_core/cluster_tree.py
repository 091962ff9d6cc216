"""Tree of clusters of a model as a table, with what speaks for each division of a cluster.

The public function is a method of the models with a mixture, :class:`scalloy.GMVAE` and
:class:`scalloy.CGMDVAE`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import ttest_ind_from_stats

from scalloy._arguments import whole
from scalloy.blocks.cluster_tree import leaves_below
from scalloy.models._core.clusters import Cut, cut_at, merges_of
from scalloy.models._core.protocols import ModelOf
from scalloy.vae.base import HasClusters

COLUMNS = ["divided", "larger", "smaller", "larger_cells", "smaller_cells"]
COLUMNS += ["apart", "overlap", "gain", "agreement"]
MARKERS = ["larger_markers", "smaller_markers"]
LEAST = 2  # cells of a part in which marker genes are looked for


def get_cluster_tree(model: ModelOf[HasClusters], markers: int = 0) -> pd.DataFrame:
    """Return the tree of clusters, one row for each division of a cluster in two, from the root.

    The index is the number of clusters that there are after the division. The columns:

    - ``divided``, ``larger``, ``smaller``: name of the cluster, and of its two parts.
    - ``larger_cells``, ``smaller_cells``: expected numbers of the model's cells in the parts.
    - ``apart``: share of the votes of several methods that put the parts apart at this number of clusters.
      They vote in the latent space and, if nothing is removed, in principal components.
    - ``overlap``: expected share of the smaller part's cells that look like cells of the larger one.
    - ``gain``: nats per held-out cell by which two Gaussians describe the cells better than one, along the
      line between the parts.
    - ``agreement``: mean adjusted Rand index between the methods at this number of clusters.
    - ``larger_markers``, ``smaller_markers``: genes that are higher than in the other part, if asked for.

    Parameters
    ----------
    markers
        Number of marker genes of each part, by a t-test of log-normalised counts; 0 looks for none.

    Examples
    --------
    >>> tree = model.get_cluster_tree()
    >>> list(tree.columns[:3])
    ['divided', 'larger', 'smaller']
    """
    if markers:
        whole(markers=markers)
    found, prior = divisions(model), model.module.prior
    evidence, agreement = prior.evidence.cpu().numpy(), prior.agreement.cpu().numpy()
    size, moments = _read(model, expression=markers > 0)
    genes, rows = model.reader.var_names.astype(str), list[list[Any]]()
    for division in found:
        n, parts = len(division.cut.names), division.parts
        row: list[Any] = [division.divided, division.larger, division.smaller]
        row += [*(float(size[part].sum()) for part in parts), *map(float, evidence[len(found) + 1 - n])]
        row.append(float(agreement[n]))
        rows.append(row + (_markers(genes, moments, parts, markers) if moments is not None else []))
    columns = [*COLUMNS, *(MARKERS if markers else [])]
    return pd.DataFrame(rows, pd.RangeIndex(2, len(found) + 2, name="n_clusters"), columns)


@dataclass(frozen=True)
class Division:
    """Division of a cluster in two.

    Attributes
    ----------
    divided, larger, smaller
        Names of the cluster and of its parts.
    parts
        Leaves of the larger and of the smaller part.
    cut
        Clusters that there are after the division.
    """

    divided: str
    larger: str
    smaller: str
    parts: tuple[list[int], list[int]]
    cut: Cut


def divisions(model: ModelOf[HasClusters]) -> list[Division]:
    """Return the divisions of the tree of clusters, from the root; no cell is read.

    Parameters
    ----------
    model
        Model with clusters.
    """
    merges, used = merges_of(model), model.module.prior.used
    before, out = cut_at(model, 1), list[Division]()
    for first, second in merges[::-1]:
        after = cut_at(model, len(before.names) + 1)
        parts = leaves_below(merges, int(first)), leaves_below(merges, int(second))
        of = after.cluster_of[used].tolist()
        larger, smaller = (of[part[0]] for part in parts)
        out.append(Division(before.names[larger], after.names[larger], after.names[smaller], parts, after))
        before = after
    return out


@torch.no_grad()
def clusters_after(model: ModelOf[HasClusters]) -> Iterator[tuple[Division, np.ndarray]]:
    """Yield each division, and the names of the cells' clusters after it; each cell is encoded once.

    Parameters
    ----------
    model
        Model with clusters.
    """
    prior, found = model.module.prior, divisions(model)
    if not found:
        return
    r = torch.cat([model.module.assignment(batch) for batch in model.reader.batches()])
    for division in found:
        of = prior.of_clusters(r, division.cut.cluster_of).argmax(-1).cpu().numpy()
        yield division, np.array(division.cut.names)[of]


@torch.no_grad()
def _read(model: ModelOf[HasClusters], *, expression: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the expected number of cells of each leaf, and moments of their expression if asked for.

    Moments are numbers of cells, sums and sums of squares, ``(3, leaves, genes)``.
    """
    module: Any = model.module
    size: Any = 0.0
    moments: Any = 0.0
    used = module.prior.used
    for batch in model.reader.batches():
        r = module.assignment(batch)[:, used]
        size = size + r.sum(0).double().cpu().numpy()
        if expression:
            own = torch.nn.functional.one_hot(r.argmax(-1), r.shape[-1]).double().T
            x = module.likelihood.observed(batch.x).double()
            parts = [own.sum(1, keepdim=True).expand(-1, x.shape[1]), own @ x, own @ x.square()]
            moments = moments + torch.stack(parts).cpu().numpy()
    return np.asarray(size), np.asarray(moments) if expression else None


def _markers(genes: pd.Index, moments: np.ndarray, parts: Sequence[list[int]], n: int) -> list[str]:
    """Return the names of the ``n`` genes that are higher in each of two parts, by Welch's test."""
    stats: list[np.ndarray] = []
    for part in parts:
        cells, total, squares = moments[:, part].sum(1)
        if cells[0] < LEAST:
            return ["", ""]
        mean = total / cells
        variance = np.maximum(squares - cells * mean**2, 0) / (cells - 1)
        stats += [mean, np.sqrt(variance), cells]
    with np.errstate(divide="ignore", invalid="ignore"):  # genes that vary in neither part
        t = np.nan_to_num(ttest_ind_from_stats(*stats, equal_var=False).statistic, posinf=0.0, neginf=0.0)
    return [", ".join(genes[g] for g in np.argsort(-s, kind="stable")[:n] if s[g] > 0) for s in (t, -t)]
