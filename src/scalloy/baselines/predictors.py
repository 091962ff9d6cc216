"""The baselines as models: made of an AnnData, trained, and asked with ``transfer(cells, to=...)``.

    method                  prediction for a cell x (log-normalised) of a type that was not seen treated
    "no change"             x
    "treated mean"          mean of all treated cells, whatever the type
    "pooled shift"          x + mean of all treated - mean of all control cells of the same types
    those of SHIFTS         x + shift of its type, from controls and shifts of the others
    "partial pooling"       the same by a Gaussian process that knows how noisy each of them is
    "learned pooling"       corrected by what was missed of types left out in turn, learned from all genes
    "multiplicative"        expm1(x) times the geometric mean of the other types' ratios
    "add and thin"          counts: Poisson-gamma ones are added where a gene rises, binomial thinning where
                            it falls, so that zeros need not stay zero

Means are over cells of log1p of counts scaled to 10,000 (or ``target_sum``); types weigh equally unless cells
are pooled. No value is below 0: shifted cells are cut off there, which raises the mean a little, as these
baselines are commonly defined; the two of pooling scale genes that fall.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scalloy import _keys
from scalloy.baselines.learned import learned_pooling
from scalloy.baselines.pooling import partial_pooling
from scalloy.baselines.shifts import SHIFTS, closeness, tuned
from scalloy.data import checks
from scalloy.data.align import aligned
from scalloy.models import _options
from scalloy.perturbation.redraw_counts import thinned_or_added

OTHERS = ("no change", "treated mean", "pooled shift", "multiplicative", "add and thin")
POOLED = {"partial pooling": partial_pooling, "learned pooling": learned_pooling}
METHODS = (*OTHERS, *POOLED, *SHIFTS)
Moments = dict[tuple[str, str], tuple[np.ndarray, np.ndarray, np.ndarray, int]]
SCALE, EPSILON = 1e4, {"multiplicative": 0.02, "add and thin": 0.05}


@dataclass
class Seen:
    """Types seen under both conditions, types x genes: log means and variances, mean fractions per 10,000."""

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
        """Change of each type."""
        return self.treated - self.control

    @property
    def noise(self) -> dict[str, np.ndarray]:
        """How much the cells of a type differ, and of how many the means are."""
        within = np.concatenate([self.variance_control, self.variance_treated]).mean(0)
        return {"within": within, "inverse_size": 1 / self.n_control + 1 / self.n_treated}


class Baseline:
    """A simple prediction under another condition, called as a model is.

    Parameters
    ----------
    adata
        Raw counts of all cells that may be learned from.
    method
        See the head of this file.
    condition_key, labels_key
        Columns of ``.obs`` with conditions and cell types.
    layer
        Layer with the counts; ``None`` is ``.X``.
    tune
        Whether settings of the method are chosen by leaving out each type in turn.

    Examples
    --------
    >>> adata = sa.datasets.kang()
    >>> simple = sa.baselines.Baseline(adata, condition_key="condition", labels_key="cell_type")
    >>> simple.train()
    >>> simple.transfer(adata[adata.obs["condition"] == "control"].copy(), to="stimulated")
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
        self.adata, self.method, self.tune = adata, _options.one_of("method", method, METHODS), tune
        self.condition_key, self.labels_key, self.layer = condition_key, labels_key, layer
        self._moments: dict[float, Moments] = {}

    def train(self, **_: Any) -> None:
        """Take the moments of each type under each condition; arguments of other models are ignored."""
        self._moments_at(SCALE)

    def _moments_at(self, target_sum: float) -> Moments:
        """Of log-normalised expression: mean, mean fraction, variance and number of cells by pair."""
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
        """The cells as they would look under another condition.

        Parameters
        ----------
        cells
            Cells with the genes of ``adata``, of one or more types and conditions.
        to
            The condition.
        seed
            Of sampled counts.
        target_sum
            Total to which counts are scaled before their logarithm.
        **_
            Further arguments of models' ``transfer`` are ignored.

        Returns
        -------
        AnnData with expected log-normalised expression in ``.X`` and, of ``"add and thin"``, counts in
        ``.layers["counts"]``; of ``"partial pooling"`` the standard deviation of means in
        ``.uns["transfer"]["sd"]``.
        """
        _options.totals(target_sum=target_sum)
        moments = self._moments_at(float(target_sum))
        cells = aligned(checks.check_type(cells), list(self.adata.var_names))
        to = _options.category("to", to, sorted({c for _, c in moments}))
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
        x = cells.X if self.layer is None else cells.layers[self.layer]
        return np.asarray(x.todense() if sp.issparse(x) else x, dtype=np.float32)

    def _predicted(self, seen: Seen, x: np.ndarray) -> np.ndarray:
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


def _others(moments: Moments, name: str, source: str, to: str) -> Seen:
    """What was seen of other types under both conditions."""
    types = seen_under_both(moments, source, to, name)
    pairs = [[moments[t, c] for t in types] for c in (source, to)]
    log, fraction, variance, n = ([np.stack([m[i] for m in of]) for of in pairs] for i in range(4))
    return Seen(*log, *fraction, *variance, *n)


def seen_under_both(pairs: Iterable[tuple[str, str]], source: str, to: str, name: str) -> list[str]:
    """Types that were seen under both conditions, other than the one that is predicted.

    Parameters
    ----------
    pairs
        Types and conditions that were seen.
    source, to
        The two conditions.
    name
        The type that is predicted.
    """
    of = {c: {t for t, condition in pairs if condition == c} for c in (source, to)}
    if types := sorted((of[source] & of[to]) - {name}):
        return types
    msg = f"No type other than {name!r} was seen under both {source!r} and {to!r}."
    raise ValueError(msg)


def added_and_thinned(
    counts: np.ndarray, fraction: np.ndarray, seen: Seen, control: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Counts of the cells with the mean fractions that types of similar controls suggest.

    Parameters
    ----------
    counts
        Cells x genes.
    fraction
        Their mean fractions per 10,000 counts.
    seen, control
        Other types, and the log mean of these cells.
    rng
        Of the draws.
    """
    e, weight = EPSILON["add and thin"], closeness(seen.control, control)
    before, after = seen.fraction_control, seen.fraction_treated
    added = (fraction + weight @ (after - before)).clip(0)
    multiplied = ((fraction + e) * np.exp(weight @ np.log((after + e) / (before + e))) - e).clip(0)
    wanted = np.sqrt(added * multiplied)
    drawn = thinned_or_added(sp.csr_matrix(counts), fraction / SCALE, wanted / SCALE, rng)
    return drawn.toarray()


def with_mean_shift(x: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Cells with another mean, none below 0: added to where it rises, scaled where it falls.

    Parameters
    ----------
    x
        Cells x genes, not below 0.
    shift
        By gene.
    """
    keep = 1 + np.minimum(shift, 0) / np.maximum(x.mean(0), 1e-12)
    return x * keep.clip(0) + np.maximum(shift, 0)


def log_scaled(fractions: np.ndarray, target_sum: float) -> np.ndarray:
    """``log1p`` of fractions per 10,000, scaled to another total."""
    return np.log1p(fractions * (target_sum / SCALE))


def normalised(counts: np.ndarray) -> np.ndarray:
    """Fractions per 10,000 counts of each cell."""
    return SCALE * counts / np.maximum(counts.sum(1, keepdims=True), 1e-12)
