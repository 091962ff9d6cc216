r"""Distances between two groups for many ways of giving cells to them, from one pass over pairs of cells.

    T = mean k(a, a') + mean k(b, b') - 2 mean k(a, b)

over pairs of different units. With a Gaussian kernel this is the squared maximum mean discrepancy (Gretton et
al., JMLR 2012), with minus the Euclidean distance the energy distance (Székely & Rizzo, 2013; Sejdinovic et
al., Annals of Statistics 2013). Donors weigh alike, however many cells each has; since no unit is compared
with itself, T is zero on average where groups do not differ, also where donors do.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from scalloy.blocks.divergences import RandomFeatures, kernel, median_scales
from scalloy.compare.designs import Design

EXACT = 5_000  # cells up to which all pairs are compared
FEATURES = 1_024
ROWS = 1_024  # of the matrix of pairs at a time
AT_ONCE = 128  # permutations
FOLDS = 5
FEW = 64  # units


def differences(
    x: np.ndarray, design: Design, labels: np.ndarray, test: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """``T`` for each column of ``labels``, the mean kernel within groups, and that of a cell with itself.

    Beyond ``EXACT`` cells the Gaussian kernel is that of random features, which takes time and memory linear
    in the number of cells; the other one knows no such way, so :meth:`Design.thinned` comes before.
    """
    cells = np.flatnonzero(design.unit >= 0)
    z, unit = centred(np.asarray(x)[cells]), torch.as_tensor(design.unit[cells])
    n_units, scales = len(design.group), median_scales(z) if test == "mmd" else None
    b, apart = torch.as_tensor(labels), torch.as_tensor(np.unique(design.apart, return_inverse=True)[1])
    if scales is not None and len(cells) > EXACT:
        features = features_of(z, scales, rng)
        if n_units == len(cells):
            sums = _of_features(features, z, b)
        else:
            means = torch.zeros(n_units, features(z[:1]).shape[1], dtype=torch.float64)
            for part, of in zip(z.split(ROWS), unit.split(ROWS)):
                means.index_add_(0, of, features(part).double())
            means = means / torch.bincount(unit).unsqueeze(-1)
            sums = _of_matrix(means @ means.T, apart, b)
    else:
        sums = _of_matrix(_matrix(z, unit, n_units, scales), apart, b)
    aa, ab, bb = (s / n for s, n in zip(sums, _counts(design)))
    return (aa + bb - 2 * ab).numpy(), ((aa + bb) / 2).numpy(), 0.0 if scales is None else 1.0


def centred(x: np.ndarray) -> Tensor:
    """Cells around zero, so that single precision suffices."""
    x = np.asarray(x, dtype=float)
    return torch.as_tensor((x - x.mean(0)).astype(np.float32))


def features_of(z: Tensor, scales: Tensor, rng: np.random.Generator) -> RandomFeatures:
    """Random features of the kernel."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    return RandomFeatures(z.shape[1], scales, FEATURES, generator)


def _matrix(z: Tensor, unit: Tensor, n_units: int, scales: Tensor | None) -> Tensor:
    """Mean kernel over the cells of each two units."""
    each = n_units == len(z)
    exact = n_units <= FEW or not each  # where all labelings are gone through, ties must be ties
    total = torch.zeros(n_units, n_units, dtype=torch.float64 if exact else torch.float32)
    for rows, of in zip(z.split(ROWS), unit.split(ROWS)):
        if scales is None:
            block = -torch.cdist(rows, z, compute_mode="donot_use_mm_for_euclid_dist")
        else:
            block = kernel(rows, z, scales)
        if each:
            total[of[:, None], unit[None]] = block.to(total.dtype)
        else:
            by_unit = torch.zeros(len(rows), n_units, dtype=total.dtype)
            total.index_add_(0, of, by_unit.index_add_(1, unit, block.double()))
    size = torch.bincount(unit).to(total.dtype)
    total = total / size / size[:, None]
    return (total + total.T) / 2


def _of_matrix(k: Tensor, apart: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Sums of the kernel over pairs that are apart: of a and a, a and b, b and b."""
    k = k.masked_fill(apart[:, None] == apart, 0.0)
    out = []
    for some in b.to(k.dtype).split(AT_ONCE, dim=1):
        k_b = k @ some
        bb, all_b = (some * k_b).sum(0), k_b.sum(0)
        out.append(torch.stack([k.sum() - 2 * all_b + bb, all_b - bb, bb]).double())
    return torch.cat(out, 1).unbind()


def _of_features(features: RandomFeatures, z: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """The same where each cell is a unit, by its features; ``k(x, x) = 1`` is taken away."""
    total, of_b = torch.zeros(()), torch.zeros(())
    for part, rows in zip(z.split(ROWS), b.split(ROWS)):
        f = features(part)
        total, of_b = total + f.sum(0, dtype=torch.float64), of_b + (f.T @ rows.float()).double()
    of_a = total[:, None] - of_b
    n_b = int(b[:, 0].sum())
    aa, ab, bb = ((v * w).sum(0) for v, w in ((of_a, of_a), (of_a, of_b), (of_b, of_b)))
    return aa - (len(z) - n_b), ab, bb - n_b


def _counts(design: Design) -> tuple[int, int, int]:
    """Numbers of such pairs, which no permutation changes."""
    table = np.zeros((design.apart.max() + 1, 2), dtype=int)
    np.add.at(table, (design.apart, design.group), 1)
    (n_a, n_b), (a, b) = table.sum(0), table.T
    return int(n_a**2 - a @ a), int(n_a * n_b - a @ b), int(n_b**2 - b @ b)


def aurocs(x: np.ndarray, design: Design, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How well a classifier tells the groups apart on cells (of other donors) that it has not seen.

    Logistic regression of standardised values, five-fold; the mean area under the ROC curve for each column
    of ``labels``. Lopez-Paz & Oquab, "Revisiting classifier two-sample tests", ICLR 2017.
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
    """Of each unit: units that are not apart stay together, and each fold has both groups."""
    sets = [np.unique(design.apart[labels == k]) for k in (0, 1)]
    n, fold = min(FOLDS, *map(len, sets)), np.zeros(design.apart.max() + 1, dtype=int)
    for some in sets[:1] if set(sets[0]) == set(sets[1]) else sets:
        fold[rng.permutation(some)] = np.arange(len(some)) % n
    return fold[design.apart]
