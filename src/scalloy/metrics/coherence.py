"""Coherence of cells that were generated with several modalities: do all of them show the same cell?

For each modality a classifier learns the cell types from real cells. Coherent cells have the same type in the
eyes of all classifiers. As classifiers err, the agreement is compared with that in real cells which they have
not seen. A model that generates cells of a single type would agree with itself, so the composition by type is
compared, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from scalloy._arguments import few
from scalloy._by_name import Table, Values, in_one_order
from scalloy.metrics import _given

N_PCS, N_FOLDS = 50, 5
Modalities = Mapping[str, Table]
Arrays = dict[str, np.ndarray]


def coherence(
    real: Modalities,
    labels: Values,
    made: Modalities,
    held_out: Modalities | None = None,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Compare how often the modalities of generated cells, and of real ones, show the same cell type.

    In each modality, types are recognised by logistic regression on (at most 50) principal components of
    standardised values, so pass log-normalised counts. Frames are matched by the names of their cells and
    variables, arrays by position.

    Parameters
    ----------
    real
        Values of real cells by the name of the modality (two or more), cells x variables, the same cells in
        each.
    labels
        Cell type of each real cell.
    made
        Values of generated cells in the same modalities.
    held_out
        Values of further real cells, with which the generated ones are compared. ``None`` compares with the
        cells in ``real``, each of them classified by what was learned from four fifths of the others.
    seed
        Random seed of the folds.

    Returns
    -------
    ``made`` and ``real``, the share of cells of whom two modalities show the same type, averaged over pairs
    of modalities; their ``ratio``; and ``composition``, the distance in total variation, from 0 to 1, between
    the shares of the types in generated and in real cells, averaged over modalities.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> kind = np.repeat([0, 1], 50)
    >>> real = {m: 5 * kind[:, None] + rng.normal(size=(100, 3)) for m in ("rna", "prot")}
    >>> sa.metrics.coherence(real, kind, made=real)["ratio"]
    1.0
    >>> apart = {"rna": real["rna"], "prot": real["prot"][::-1]}
    >>> sa.metrics.coherence(real, kind, made=apart)["ratio"]
    0.0
    """
    known, types, new, further = _matched(real, labels, made, held_out)
    fitted = {name: classifier(x, types) for name, x in known.items()}
    seen = {name: fitted[name].predict(x) for name, x in new.items()}
    if further:
        expected = {name: fitted[name].predict(x) for name, x in further.items()}
    else:
        expected = {name: _out_of_fold(x, types, seed) for name, x in known.items()}
    share, of_real = _agreement(seen), _agreement(expected)
    return {
        "made": share,
        "real": of_real,
        "ratio": share / of_real if of_real else float("nan"),
        "composition": _composition(seen, expected),
    }


def classifier(x: np.ndarray, types: np.ndarray) -> Pipeline:
    """Learn types from values of one modality."""
    pcs = PCA(min(N_PCS, *x.shape), random_state=0)
    return make_pipeline(StandardScaler(), pcs, LogisticRegression(max_iter=2000)).fit(x, types)


def _out_of_fold(x: np.ndarray, types: np.ndarray, seed: int) -> np.ndarray:
    """Classify each cell by what was learned from the other folds."""
    fewest = int(np.unique(types, return_counts=True)[1].min())
    if fewest < 2:
        msg = "A type has one cell, so that it cannot be both learned and held out. Pass `held_out=` cells."
        raise ValueError(msg)
    out = np.empty_like(types)
    folds = StratifiedKFold(min(N_FOLDS, fewest), shuffle=True, random_state=seed)
    for train, test in folds.split(x, types):
        out[test] = classifier(x[train], types[train]).predict(x[test])
    return out


def _agreement(seen: Arrays) -> float:
    return float(np.mean([(a == b).mean() for a, b in combinations(seen.values(), 2)]))


def _composition(seen: Arrays, expected: Arrays) -> float:
    """Return the distance in total variation between the shares of types, averaged over modalities."""
    each = []
    for name, of_made in seen.items():
        types = np.union1d(of_made, expected[name])
        shares = [(v[:, None] == types).mean(0) for v in (of_made, expected[name])]
        each.append(np.abs(shares[0] - shares[1]).sum() / 2)
    return float(np.mean(each))


def _matched(
    real: Modalities, labels: Values, made: Modalities, held_out: Modalities | None
) -> tuple[Arrays, np.ndarray, Arrays, Arrays]:
    """Check modalities and types, match cells and variables by name, and return arrays."""
    sets = {"real": real, "made": made} | ({} if held_out is None else {"held_out": held_out})
    for argument, given in sets.items():
        _check_modalities(argument, given, real)
    names = {(a, m): f"{a}[{m!r}]" for a in sets for m in real}
    axes = {name: (f"cells of {a}", f"variables of {m}") for (a, m), name in names.items()}
    flat: dict[str, Any] = {name: sets[a][m] for (a, m), name in names.items()}
    found = in_one_order({**flat, "labels": labels}, {**axes, "labels": ("cells of real",)})
    for m in real:
        _given.numbers(2, fit="columns", **{names[a, m]: found[names[a, m]] for a in sets})
    out: dict[str, Arrays] = {}
    for a in sets:
        parts = _given.numbers(2, fit="rows", least=2, **{names[a, m]: found[names[a, m]] for m in real})
        out[a] = dict(zip(real, parts, strict=True))
    return out["real"], _types(found["labels"], out["real"]), out["made"], out.get("held_out", {})


def _check_modalities(argument: str, given: Any, real: Any) -> None:
    """Raise an error unless there are two modalities or more, the same ones as in ``real``."""
    if not isinstance(given, Mapping) or len(given) < 2 or set(given) != set(real):
        said = few(given) if isinstance(given, Mapping) else type(given).__name__
        msg = (
            f"`{argument}` has the modalities: {said}. Expected a dict of two or more, the same ones as in "
            "`real`, such as {'rna': ..., 'prot': ...}."
        )
        raise ValueError(msg)


def _types(labels: Any, real: Arrays) -> np.ndarray:
    """Check that there is a type for each cell, and two types or more."""
    (types,) = _given.labels(labels=labels)
    n, n_types = len(next(iter(real.values()))), len(np.unique(types))
    if len(types) != n or n_types < 2:
        msg = (
            f"`labels` has {len(types)} values of {n_types} type(s) for {n} cells. Pass one for each cell in "
            "`real`, of two types or more."
        )
        raise ValueError(msg)
    return types
