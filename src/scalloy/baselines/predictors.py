"""Baselines that are used like models: made from an AnnData, trained, and asked to ``transfer(cells, to)``.

    method                  prediction for a cell x (log-normalised) of a type that was not seen treated
    "no change"             x
    "treated mean"          mean of all treated cells, whatever the type
    "pooled shift"          x + mean of all treated - mean of all control cells of the same types
    those of SHIFTS         x + shift of its type, predicted from the controls and shifts of the other types
    "partial pooling"       x + shift by a Gaussian process that accounts for the noise of each other type
    "learned pooling"       partial pooling + a correction learned from all genes, leaving out types in turn
    "multiplicative"        log1p of: expm1(x) times the geometric mean of the other types' ratios
    "add and thin"          from counts: Poisson-gamma counts are added where a gene rises, and counts are
                            thinned binomially where it falls, so that zeros need not stay zero

"Treated" and "control" cells are those of the other types that were seen under both conditions. Means are
over cells of log1p of counts scaled to 10,000 (or ``target_sum``); types have equal weights unless their
cells are pooled. No predicted value is below 0. Shifted cells are cut off there, which raises the mean a
little, as is usual for these baselines; the two pooling methods scale genes that fall instead.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scalloy import _keys
from scalloy._arguments import category, totals
from scalloy._registry import check_function
from scalloy.baselines.shifts import SHIFTS, Shift, tuned
from scalloy.data import checks
from scalloy.data.genes import aligned
from scalloy.perturbation.boosted_pooling import learned_pooling
from scalloy.perturbation.pooling import partial_pooling
from scalloy.perturbation.redraw_counts import thinned_or_added
from scalloy.perturbation.similarity import closeness

OTHERS = ("no change", "treated mean", "pooled shift", "multiplicative", "add and thin")
POOLED = {"partial pooling": partial_pooling, "learned pooling": learned_pooling}
#: Names of all methods, in the order of the table above; those that users add to SHIFTS appear here too.
METHODS: Mapping[str, Any] = ChainMap(SHIFTS, POOLED, dict.fromkeys(OTHERS))
Moments = dict[tuple[str, str], tuple[np.ndarray, np.ndarray, np.ndarray, int]]
SCALE, EPSILON = 1e4, {"multiplicative": 0.02, "add and thin": 0.05}


@dataclass
class Seen:
    """Moments of the types seen under both conditions, types x genes, and their numbers of cells.

    Means (``control``, ``treated``) and variances are of log-normalised expression, fractions are means per
    10,000 counts.
    """

    control: np.ndarray
    treated: np.ndarray
    fraction_control: np.ndarray
    fraction_treated: np.ndarray
    variance_control: np.ndarray
    variance_treated: np.ndarray
    n_control: np.ndarray
    n_treated: np.ndarray

    @property
    def shift(self) -> np.ndarray:
        """Change of the mean of each type."""
        return self.treated - self.control

    @property
    def noise(self) -> dict[str, np.ndarray]:
        """Variance between the cells of a type, and inverse sizes, as the pooling methods take them."""
        within = np.concatenate([self.variance_control, self.variance_treated]).mean(0)
        return {"within": within, "inverse_size": 1 / self.n_control + 1 / self.n_treated}


class Baseline:
    """Simple prediction under another condition, called in the same way as a model.

    Parameters
    ----------
    adata
        Cells to learn from, with raw counts.
    method
        One of the methods in the table of :mod:`scalloy.baselines.predictors`.
    condition_key, labels_key
        Columns of ``.obs`` with conditions and cell types.
    layer
        Layer with the counts; ``None`` uses ``.X``.
    tune
        Whether to choose the settings of the method by leaving out each type in turn.

    Examples
    --------
    >>> simple = sa.baselines.Baseline(adata, condition_key="condition", labels_key="cluster")
    >>> simple.train()
    >>> treated = simple.transfer(adata[adata.obs["condition"] == "control"].copy(), to="treated_1")
    """

    def __init__(
        self,
        adata: AnnData,
        method: str = "kernel ridge",
        *,
        condition_key: str,
        labels_key: str,
        layer: str | None = None,
        tune: bool = True,
    ) -> None:
        checks.check_object(adata)
        checks.check_keys(adata, {"condition_key": condition_key, "labels_key": labels_key})
        checks.check_counts(adata, layer, allow_non_counts=False)
        self.adata, self.method, self.tune = adata, SHIFTS.one_of("method", method, METHODS), tune
        self.condition_key, self.labels_key, self.layer = condition_key, labels_key, layer
        self._moments: dict[float, Moments] = {}

    def train(self, **_: Any) -> None:
        """Compute the moments of each type under each condition; arguments for models are ignored.

        Examples
        --------
        >>> simple = sa.baselines.Baseline(adata, condition_key="condition", labels_key="cluster")
        >>> simple.train()
        """
        self._moments_at(SCALE)

    def _moments_at(self, target_sum: float) -> Moments:
        """Return mean, mean fraction, variance and number of cells of each type under each condition."""
        if target_sum not in self._moments:
            obs = self.adata.obs[[self.labels_key, self.condition_key]].astype(str)
            found = self._moments[target_sum] = {}
            for pair, rows in obs.groupby([self.labels_key, self.condition_key]).indices.items():
                fractions = normalised(self._counts(self.adata[rows]))
                x = log_scaled(fractions, target_sum)
                found[pair] = (x.mean(0), fractions.mean(0), x.var(0), len(rows))
        return self._moments[target_sum]

    def transfer(
        self, cells: AnnData, to: str, *, seed: int = 0, target_sum: float = SCALE, **_: Any
    ) -> AnnData:
        """Predict cells as they would look under another condition.

        Parameters
        ----------
        cells
            Cells with the genes of ``adata``, of one or more types and conditions.
        to
            Condition to predict.
        seed
            Random seed of sampled counts (``"add and thin"``).
        target_sum
            Total count to which each cell is scaled before the logarithm.
        **_
            Further arguments of the ``transfer`` of models, which are ignored.

        Returns
        -------
        AnnData with expected log-normalised expression in ``.X``. ``"add and thin"`` also puts its counts
        into ``.layers["counts"]``, and the two pooling methods put the standard deviation of their predicted
        means into ``.uns["transfer"]["sd"]``.

        Examples
        --------
        >>> keys = {"condition_key": "condition", "labels_key": "cluster"}
        >>> simple = sa.baselines.Baseline(adata, "mean shift", **keys)
        >>> simple.train()
        >>> treated = simple.transfer(adata[adata.obs["condition"] == "control"].copy(), to="treated_1")
        """
        totals(target_sum=target_sum)
        moments = self._moments_at(float(target_sum))
        cells = aligned(checks.check_type(cells), list(self.adata.var_names))
        to = category("to", to, sorted({c for _, c in moments}))
        checks.check_keys(cells, {"condition_key": self.condition_key, "labels_key": self.labels_key})
        checks.check_counts(cells, self.layer, genes=False)
        obs = cells.obs[[self.labels_key, self.condition_key]].astype(str)
        counts, rng = self._counts(cells), np.random.default_rng(seed)
        x = log_scaled(normalised(counts), target_sum)
        drawn = np.zeros(x.shape, dtype=np.float32) if self.method == "add and thin" else None
        sd = {}
        for (name, source), rows in obs.groupby([self.labels_key, self.condition_key]).indices.items():
            seen, fraction = _others(moments, name, source, to), normalised(counts[rows]).mean(0)
            if drawn is not None:
                drawn[rows] = added_and_thinned(counts[rows], fraction, seen, x[rows].mean(0), rng)
                x[rows] = log_scaled(normalised(drawn[rows]), target_sum)
            elif self.method in POOLED:
                found = POOLED[self.method](seen.control, seen.shift, x[rows].mean(0), **seen.noise)
                sd[_keys.safe(f"{name} from {source}")] = found.sd_of_mean(x[rows])
                x[rows] = with_mean_shift(x[rows], found.mean)
            else:
                x[rows] = self._predicted(seen, x[rows])
        out = AnnData(x.astype(np.float32), obs=cells.obs.copy(), var=cells.var[[]].copy())
        out.obs[self.condition_key] = pd.Categorical([to] * out.n_obs)
        out.uns["transfer"] = {"model": f"Baseline: {self.method}", "to": to}
        if sd:
            out.uns["transfer"]["sd"] = pd.DataFrame(sd, index=[str(v) for v in out.var_names])
        if drawn is not None:
            out.layers["counts"] = sp.csr_matrix(drawn)
        return out

    def _counts(self, cells: AnnData) -> np.ndarray:
        """Return the counts of cells as a dense array."""
        return dense(cells.X if self.layer is None else cells.layers[self.layer])

    def _predicted(self, seen: Seen, x: np.ndarray) -> np.ndarray:
        """Predict the cells ``x`` of one type by a method that needs neither counts nor pooling."""
        if self.method == "no change":
            return x
        if self.method == "treated mean":
            return np.tile(np.average(seen.treated, axis=0, weights=seen.n_treated), (len(x), 1))
        if self.method == "pooled shift":
            before = np.average(seen.control, axis=0, weights=seen.n_control)
            return (x + np.average(seen.treated, axis=0, weights=seen.n_treated) - before).clip(0)
        if self.method == "multiplicative":
            e = EPSILON[self.method]
            ratio = np.log((seen.fraction_treated + e) / (seen.fraction_control + e)).mean(0)
            return np.log1p(np.expm1(x) * np.exp(ratio))
        settings = tuned(self.method, seen.control, seen.shift) if self.tune else {}
        return (x + SHIFTS[self.method][0](seen.control, seen.shift, x.mean(0), **settings)).clip(0)


def register(name: str, function: Shift, **settings: Sequence[Any]) -> None:
    """Register a method that predicts the change of a group from the changes of other groups.

    It is then a ``method`` of :class:`Baseline`, and a row in :func:`scalloy.benchmark.transfer` and in
    reports.

    Parameters
    ----------
    name
        Name of the method.
    function
        Function of ``control`` and ``shift`` (mean log-normalised expression of the controls of the other
        groups and its change, groups x genes) and ``to`` (the same mean of the group to predict, by gene).
        It returns the change of that group, by gene.
    **settings
        Further arguments of the function, each with the values from which :func:`tuned` chooses.

    Examples
    --------
    >>> def half(control, shift, to):
    ...     return 0.5 * shift.mean(0)
    >>> sa.baselines.register("half the mean shift", half)
    >>> del sa.baselines.SHIFTS["half the mean shift"]
    """
    check_function("function", function, ("control", "shift", "to"), by_name=settings)
    SHIFTS.add(name, (function, {k: tuple(v) for k, v in settings.items()}), taken=METHODS)


def _others(moments: Moments, name: str, source: str, to: str) -> Seen:
    """Collect the moments of the other types that were seen under both conditions."""
    types = seen_under_both(moments, source, to, name)
    pairs = [[moments[t, c] for t in types] for c in (source, to)]
    log, fraction, variance, n = ([np.stack([m[i] for m in of]) for of in pairs] for i in range(4))
    return Seen(*log, *fraction, *variance, *n)


def seen_under_both(pairs: Iterable[tuple[str, str]], source: str, to: str, name: str) -> list[str]:
    """List the types that were seen under both conditions, without the one to predict.

    Parameters
    ----------
    pairs
        Pairs of type and condition that were seen.
    source, to
        Conditions from which and to which to predict.
    name
        Type to predict.
    """
    of = {c: {t for t, condition in pairs if condition == c} for c in (source, to)}
    if types := sorted((of[source] & of[to]) - {name}):
        return types
    msg = f"No type other than {name!r} was seen under both {source!r} and {to!r}."
    raise ValueError(msg)


def added_and_thinned(
    counts: np.ndarray, fraction: np.ndarray, seen: Seen, control: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Add to and thin the counts of cells until genes have the mean fractions that other types suggest.

    These are the geometric mean of what the types' differences and what their ratios predict, weighted by the
    similarity of the controls.

    Parameters
    ----------
    counts
        Counts of the cells to predict, cells x genes.
    fraction
        Mean fractions of these cells per 10,000 counts, by gene.
    seen
        Moments of the other types.
    control
        Mean log-normalised expression of the cells to predict, by gene.
    rng
        Source of the draws.
    """
    e, weight = EPSILON["add and thin"], closeness(seen.control, control)
    before, after = seen.fraction_control, seen.fraction_treated
    added = (fraction + weight @ (after - before)).clip(0)
    multiplied = ((fraction + e) * np.exp(weight @ np.log((after + e) / (before + e))) - e).clip(0)
    wanted = np.sqrt(added * multiplied)
    drawn = thinned_or_added(sp.csr_matrix(counts), fraction / SCALE, wanted / SCALE, rng)
    return drawn.toarray()


def with_mean_shift(x: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Shift the mean of cells without values below 0: add where a gene rises, scale where it falls.

    Parameters
    ----------
    x
        Log-normalised expression, cells x genes, not below 0.
    shift
        Change of the mean, by gene.
    """
    keep = 1 + np.minimum(shift, 0) / np.maximum(x.mean(0), 1e-12)
    return x * keep.clip(0) + np.maximum(shift, 0)


def dense(counts: np.ndarray | sp.spmatrix) -> np.ndarray:
    """Return counts as a dense array."""
    return np.asarray(counts.todense() if sp.issparse(counts) else counts, dtype=np.float32)


def log_scaled(fractions: np.ndarray, target_sum: float) -> np.ndarray:
    """Scale fractions per 10,000 to another total and take ``log1p``."""
    return np.log1p(fractions * (target_sum / SCALE))


def normalised(counts: np.ndarray) -> np.ndarray:
    """Scale the counts of each cell to a total of 10,000."""
    return SCALE * counts / np.maximum(counts.sum(1, keepdims=True), 1e-12)
