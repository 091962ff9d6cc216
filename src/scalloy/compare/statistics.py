r"""Distances between two groups under many labelings at once, from one pass over the pairs of cells.

    T = mean k(a, a') + mean k(b, b') - 2 mean k(a, b)

over pairs of different units. With a Gaussian kernel this is the squared maximum mean discrepancy (Gretton et
al., JMLR 2012); with minus the Euclidean distance it is the energy distance (Székely & Rizzo, 2013;
Sejdinovic et al., Annals of Statistics 2013). Donors have equal weights, however many cells each has. Since
no unit is compared with itself, T is zero on average if the groups do not differ, even if donors do.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import one_hot

from scalloy.blocks.divergences import RandomFeatures, kernel, median_scales
from scalloy.compare.designs import Design

EXACT = 5_000  # cells up to which all pairs are compared
FEATURES = 1_024
ROWS = 1_024  # rows of the matrix of pairs that are computed at a time
AT_ONCE = 128  # permutations that are evaluated at a time
FOLDS = 5
FEW = 64  # units up to which sums are in double precision


def differences(
    x: np.ndarray, design: Design, labels: np.ndarray, test: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return ``T`` and the mean kernel within groups for each labeling, and the kernel of a cell with itself.

    With more than ``EXACT`` cells, the Gaussian kernel is approximated by random features, in time and memory
    linear in the number of cells. The energy distance has no such approximation, so the caller reduces the
    cells by :meth:`Design.thinned` first.
    """
    cells = np.flatnonzero(design.unit >= 0)
    z, unit = centred(np.asarray(x)[cells]), torch.as_tensor(design.unit[cells])
    n_units, scales = len(design.group), median_scales(z) if test == "mmd" else None
    b, apart = torch.as_tensor(labels), torch.as_tensor(np.unique(design.apart, return_inverse=True)[1])
    if scales is not None and len(cells) > EXACT and n_units == len(cells):
        sums = _of_features(features_of(z, scales, rng), z, b)
    else:
        sums = _of_matrix(mean_kernels(z, unit, n_units, scales, rng), apart, b)
    aa, ab, bb = (s / n for s, n in zip(sums, _counts(design)))
    return (aa + bb - 2 * ab).numpy(), ((aa + bb) / 2).numpy(), 0.0 if scales is None else 1.0


def centred(x: np.ndarray) -> Tensor:
    """Centre the cells at zero, so that single precision suffices."""
    x = np.asarray(x, dtype=float)
    return torch.as_tensor((x - x.mean(0)).astype(np.float32))


def features_of(z: Tensor, scales: Tensor, rng: np.random.Generator) -> RandomFeatures:
    """Draw random features of the Gaussian kernel."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    return RandomFeatures(z.shape[1], scales, FEATURES, generator)


def mean_kernels(
    z: Tensor, unit: Tensor, n_units: int, scales: Tensor | None, rng: np.random.Generator
) -> Tensor:
    """Return the mean kernel between the cells of any two units, pairs of a cell with itself included.

    With more than ``EXACT`` cells, the Gaussian kernel is approximated by random features.

    Parameters
    ----------
    z
        Cells x dimensions, centred.
    unit, n_units
        Code of the unit of each cell, and the number of units.
    scales
        Scales of the Gaussian kernels; ``None`` is minus the Euclidean distance.
    rng
        Generator of the random features.
    """
    if scales is None or len(z) <= EXACT:
        return _matrix(z, unit, n_units, scales)
    features = features_of(z, scales, rng)
    means = torch.zeros(n_units, features(z[:1]).shape[1], dtype=torch.float64)
    for part, of in zip(z.split(ROWS), unit.split(ROWS)):
        means.index_add_(0, of, features(part).double())
    means = means / torch.bincount(unit).unsqueeze(-1)
    return means @ means.T


def _matrix(z: Tensor, unit: Tensor, n_units: int, scales: Tensor | None) -> Tensor:
    """Mean kernel between the cells of any two units."""
    each = n_units == len(z)
    exact = n_units <= FEW or not each  # if all labelings are enumerated, ties must be exact
    total = torch.zeros(n_units, n_units, dtype=torch.float64 if exact else torch.float32)
    members = None if each else one_hot(unit, n_units).double()  # a product is faster than `index_add_`
    for rows, of in zip(z.split(ROWS), unit.split(ROWS)):
        if scales is None:
            block = -torch.cdist(rows, z, compute_mode="donot_use_mm_for_euclid_dist")
        else:
            block = kernel(rows, z, scales)
        if members is None:
            total[of[:, None], unit[None]] = block.to(total.dtype)
        else:
            total.index_add_(0, of, block.double() @ members)
    size = torch.bincount(unit).to(total.dtype)
    total = total / size / size[:, None]
    return (total + total.T) / 2


def _of_matrix(k: Tensor, apart: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Sum the kernel over pairs that may be compared: of a and a, of a and b, and of b and b."""
    k = k.masked_fill(apart[:, None] == apart, 0.0)
    out = []
    for some in b.to(k.dtype).split(AT_ONCE, dim=1):
        k_b = k @ some
        bb, all_b = (some * k_b).sum(0), k_b.sum(0)
        out.append(torch.stack([k.sum() - 2 * all_b + bb, all_b - bb, bb]).double())
    return torch.cat(out, 1).unbind()


def _of_features(features: RandomFeatures, z: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Sum the kernel as in :func:`_of_matrix`, from features of cells that are each a unit.

    The pairs of a cell with itself, ``k(x, x) = 1``, are subtracted.
    """
    total, of_b = torch.zeros(()), torch.zeros(())
    for part, rows in zip(z.split(ROWS), b.split(ROWS)):
        f = features(part)
        total, of_b = total + f.sum(0, dtype=torch.float64), of_b + (f.T @ rows.float()).double()
    of_a = total[:, None] - of_b
    n_b = int(b[:, 0].sum())
    aa, ab, bb = ((v * w).sum(0) for v, w in ((of_a, of_a), (of_a, of_b), (of_b, of_b)))
    return aa - (len(z) - n_b), ab, bb - n_b


def _counts(design: Design) -> tuple[int, int, int]:
    """Count the pairs that :func:`_of_matrix` sums over; no permutation changes their numbers."""
    table = np.zeros((design.apart.max() + 1, 2), dtype=int)
    np.add.at(table, (design.apart, design.group), 1)
    (n_a, n_b), (a, b) = table.sum(0), table.T
    return int(n_a**2 - a @ a), int(n_a * n_b - a @ b), int(n_b**2 - b @ b)


def aurocs(x: np.ndarray, design: Design, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return how well a classifier separates the groups on unseen cells (of other donors), per labeling.

    It is the mean area under the ROC curve of a logistic regression on standardised values, in five-fold
    cross-validation. Lopez-Paz & Oquab, "Revisiting classifier two-sample tests", ICLR 2017.
    """
    cells = np.flatnonzero(design.unit >= 0)
    unit, z = design.unit[cells], StandardScaler().fit_transform(np.asarray(x, dtype=float)[cells])
    made = LogisticRegression(class_weight="balanced")
    out = []
    for column in labels.T:
        fold, y = _folds(design, column, rng)[unit], column[unit]
        scores = []
        for k in range(fold.max() + 1):
            train, test = fold != k, fold == k
            p = made.fit(z[train], y[train]).decision_function(z[test])
            scores.append(roc_auc_score(y[test], p))
        out.append(np.mean(scores))
    return np.array(out)


def _folds(design: Design, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Assign units to folds that have both groups, keeping units together that may not be compared."""
    sets = [np.unique(design.apart[labels == k]) for k in (0, 1)]
    n, fold = min(FOLDS, *map(len, sets)), np.zeros(design.apart.max() + 1, dtype=int)
    for some in sets[:1] if set(sets[0]) == set(sets[1]) else sets:
        fold[rng.permutation(some)] = np.arange(len(some)) % n
    return fold[design.apart]
