"""Classifier two-sample test: whether generated cells can be told from real ones.

Lopez-Paz & Oquab, "Revisiting classifier two-sample tests", ICLR 2017. Two random forests learn to tell real
from generated cells: one from the variables, which sees a variable with the wrong mean, variance or share of
zeros, and one from principal components, which sees variables that do not go together as they should. They
are judged on cells that neither has seen.
"""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from scalloy._arguments import whole
from scalloy._by_name import Table, by_name
from scalloy.metrics._given import numbers

FOLDS, LEAF = 5, 3


@by_name(real="real_cells variables", generated="generated_cells variables")
def two_sample(
    real: Table, generated: Table, *, n_trees: int = 100, n_components: int = 50, seed: int = 0
) -> dict[str, float]:
    """Area under the curve and accuracy of a classifier that tells real from generated cells.

    Both are 0.5 if it cannot tell (on average; with few cells, they scatter around 0.5) and 1 if it always
    can. ``real`` must be cells that the generating model has not seen, because a copy of a cell is not a new
    one. Compare with what real cells get against other real cells, and with simple ways of making cells.

    Parameters
    ----------
    real, generated
        Real and generated cells, cells x variables, on the same scale: log-normalised expression, say, or
        several modalities side by side. Their numbers may differ.
    n_trees
        Number of trees of each of the two forests.
    n_components
        Maximum number of principal components, which are found without the cells that are judged.
    seed
        Random seed of the folds and of the forests.

    Returns
    -------
    ``"auc"``, the mean area under the ROC curve over five folds, and ``"accuracy"``, the mean of the shares
    of real and of generated cells that are told right.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> real, alike, shifted = rng.normal(0, 1, (3, 200, 5)) + np.array([0, 0, 3])[:, None, None]
    >>> told = sa.metrics.two_sample(real, alike, n_trees=20)
    >>> 0.4 < told["auc"] < 0.6
    True
    >>> sa.metrics.two_sample(real, shifted, n_trees=20)["auc"] > 0.99
    True
    """
    whole(n_trees=n_trees, n_components=n_components)
    real, generated = numbers(2, fit="columns", least=2 * FOLDS, real=real, generated=generated)
    values, is_real = np.concatenate([real, generated]), np.arange(len(real) + len(generated)) < len(real)
    auc, accuracy = [], []
    for seen, unseen in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(values, is_real):
        views = [(values[seen], values[unseen])]
        most = min(n_components, len(seen) - 1, values.shape[1])
        if most > 1:  # a single component of a single variable would be that variable
            components = PCA(most, random_state=seed).fit(values[seen])
            views.append((components.transform(values[seen]), components.transform(values[unseen])))
        told = np.mean([_told(*view, is_real[seen], n_trees, seed) for view in views], axis=0)
        auc.append(roc_auc_score(is_real[unseen], told))
        accuracy.append(balanced_accuracy_score(is_real[unseen], told > 0.5))
    return {"auc": float(np.mean(auc)), "accuracy": float(np.mean(accuracy))}


def _told(seen: np.ndarray, unseen: np.ndarray, is_real: np.ndarray, n_trees: int, seed: int) -> np.ndarray:
    """Return the probability that each unseen cell is real, from a forest that learned from seen ones."""
    forest = RandomForestClassifier(
        n_trees, min_samples_leaf=LEAF, class_weight="balanced", random_state=seed
    )
    return forest.fit(seen, is_real).predict_proba(unseen)[:, 1]
