r"""Effects of conditions, seen and not seen, by Gaussian processes over conditions and groups.

The change y_ig of gene g in context i (a group under a condition, against the control) is observed with
noise: that of its own cells, and that of the control cells, which contexts of a group share. With the
covariance C of :mod:`scalloy.perturbation.condition_kernel`,

    y_g  ~  N(0, s_g^2 C + N_g)        N_g = diag(v_ig) + (r_g of each set of control cells, shared)
    f_*  |  y   has mean   s_g^2 c_*' A^-1 y_g        and variance   s_g^2 (c_** - s_g^2 c_*' A^-1 c_*)

with A = s_g^2 C + N_g. If effects of parts are well known, that of their combination is their sum; a weak or
noisy one is drawn to what the others show; and a pair that was seen together has its own deviation from the
sum. For a part that was never seen, there is what all parts have in common, and what similar ones have shown.

The weights of the components of C maximise the marginal likelihood over many genes (gradient: Rasmussen and
Williams, Gaussian processes for machine learning, 2006, eq. 5.9). The size of the effects of each gene and of
each part come first, from the squares of the changes without noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.ndimage import median_filter
from scipy.optimize import minimize, nnls

from scalloy.perturbation.condition_kernel import Context, Kernel
from scalloy.perturbation.design import Content, Design

GENES, CONTEXTS = 64, 96  # largest numbers from which weights are learned, and of contexts for a prediction
CHUNK = 64  # genes at a time
DILUTIONS = (0.0, 0.15, 0.3, 0.5)
FEW_COMBINATIONS = 3  # smallest number of combinations from which the dilution is learned
STEPS, FURTHER_STEPS = 60, 15  # largest number of steps of the optimiser, at first and for further dilutions
MOST_KEPT = 1000  # largest number of contexts whose covariance is kept
LEAST, TINY = 1e-3, 1e-12
N_SIZES, ROUNDS = 14, 50  # sizes of effects that are weighed up, and rounds of the EM algorithm
MOST_BINS, GENES_PER_BIN = 4, 150  # bins of abundance that have shares of their own, and genes in each
PRIOR = 4.0  # number of contexts that the mean over genes is worth


@dataclass
class Observed:
    """Changes that were seen: contexts, and by context and gene the change and the variances of its noise.

    ``noise`` is that of the cells under the condition, ``shared`` that of the control cells, and ``control``
    the number of the set of control cells. ``abundance`` orders genes by their expression.
    """

    contexts: list[Context]
    change: np.ndarray
    noise: np.ndarray
    shared: np.ndarray
    control: np.ndarray
    abundance: np.ndarray

    def of(self, rows: np.ndarray) -> Observed:
        """Return these rows only."""
        parts = (self.change[rows], self.noise[rows], self.shared[rows], self.control[rows])
        return Observed([self.contexts[i] for i in rows], *parts, self.abundance)

    @property
    def variance(self) -> np.ndarray:
        """Variance of the noise of each change."""
        return self.noise + self.shared

    def covariance(self, genes: np.ndarray) -> np.ndarray:
        """Return the covariance of the noise, genes x contexts x contexts."""
        same = self.control[:, None] == self.control
        root = np.sqrt(self.shared[:, genes]).T
        out = root[:, :, None] * root[:, None, :] * same
        diagonal = np.arange(len(same))
        out[:, diagonal, diagonal] += self.noise[:, genes].T
        return out


@dataclass
class Predicted:
    """Predicted changes by gene: mean, standard deviation, and the weight of each context in the mean."""

    mean: np.ndarray
    sd: np.ndarray
    rows: np.ndarray
    weight: np.ndarray  # genes x rows


@dataclass
class ConditionEffects:
    """Gaussian process that was fitted to what was seen.

    Parameters
    ----------
    seen
        Changes that were seen.
    design
        Meaning of the conditions.
    """

    seen: Observed
    design: Design
    size: np.ndarray = field(init=False)  # s_g^2
    kernel: Kernel = field(init=False)
    weights: np.ndarray = field(init=False)
    _kept: np.ndarray | None = None

    def __post_init__(self) -> None:
        several = len({group for group, _ in self.seen.contexts}) > 1
        self.size, scale = sizes(self.seen, self.design)
        combined = sum(len(content.parts) > 1 for _, content in self.seen.contexts)
        tried = DILUTIONS if combined >= FEW_COMBINATIONS else DILUTIONS[:1]
        fits, start = [], None
        for a in tried:
            fits.append(self._fitted(Kernel(self.design, scale, a, several), start))
            start = fits[-1][2]
        _, self.kernel, self.weights = min(fits, key=lambda fit: fit[0])
        self.size = self._sizes_of_all()

    def _sizes_of_all(self) -> np.ndarray:
        """Return the size of the effects on each gene, which most genes may hardly have.

        With the eigenvalues ``l`` of ``N^-1/2 C N^-1/2`` and ``a`` the change in units of its noise, along
        the eigenvectors, the likelihood of a size ``s`` is that of ``a_j ~ N(0, 1 + s l_j)``.
        """
        rows = np.sort(np.random.default_rng(0).permutation(len(self.seen.contexts))[:CONTEXTS])
        seen, within = self.seen.of(rows), self._within(rows)
        noise = np.maximum(seen.variance.mean(0), TINY)
        top = 4 * max(float(self.size.max()), float(np.median(noise)))
        grid = np.array([0.0, *np.geomspace(1e-3 * float(np.median(noise)), top, N_SIZES)])
        found = np.zeros((len(self.size), len(grid)))
        for begin in range(0, len(found), CHUNK):
            genes = np.arange(begin, min(begin + CHUNK, len(found)))
            covariance = seen.covariance(genes) + (1e-6 * noise[genes])[:, None, None] * np.eye(len(rows))
            root = np.linalg.cholesky(covariance)
            half = np.linalg.solve(root, np.broadcast_to(within, root.shape))
            values, vectors = np.linalg.eigh(np.linalg.solve(root, half.transpose(0, 2, 1)))
            a = np.linalg.solve(root, seen.change[:, genes].T[:, :, None]).transpose(0, 2, 1) @ vectors
            spread = 1 + grid[:, None] * np.maximum(values, 0.0)[:, None, :]
            found[genes] = -0.5 * (np.square(a) / spread + np.log(spread)).sum(2)
        bins = max(1, min(MOST_BINS, len(found) // GENES_PER_BIN))
        order = np.array_split(np.argsort(seen.abundance, kind="stable"), bins)
        size = np.zeros(len(found))
        for genes in order:
            likelihood = np.exp(found[genes] - found[genes].max(1, keepdims=True))
            size[genes] = _posterior(likelihood) @ grid
        return np.maximum(size, TINY)

    def _fitted(self, kernel: Kernel, start: np.ndarray | None) -> tuple[float, Kernel, np.ndarray]:
        """Return the negative marginal likelihood, and the weights at which it is smallest."""
        rng = np.random.default_rng(0)
        seen = self.seen.of(np.sort(rng.permutation(len(self.seen.contexts))[:CONTEXTS]))
        clear = np.square(seen.change).mean(0) / np.maximum(seen.variance.mean(0), TINY)
        genes = np.sort(np.argsort(-clear, kind="stable")[:GENES])
        parts, noise = kernel.of(seen.contexts, seen.contexts), seen.covariance(genes)
        y, size = seen.change[:, genes].T, self.size[genes]
        begin = np.log(np.full(len(parts), 1.0 / len(parts)) if start is None else start)
        bounds = [(np.log(LEAST) - 7, np.log(30.0))] * len(parts)
        steps = STEPS if start is None else FURTHER_STEPS
        settings: dict[str, Any] = {
            "method": "L-BFGS-B",
            "bounds": bounds,
            "options": {"maxiter": steps, "ftol": 1e-6},
        }
        found = minimize(unlikelihood, begin, (parts, noise, y, size), jac=True, **settings)
        return float(found.fun), kernel, np.exp(found.x)

    # predictions --------------------------------------------------------------------------------

    def covariance(self, these: Sequence[Context], those: Sequence[Context]) -> np.ndarray:
        """Return the covariance of the effects of conditions in groups, in units of the size of a gene.

        Parameters
        ----------
        these, those
            Groups and conditions.
        """
        return np.tensordot(self.weights, self.kernel.of(these, those), 1)

    def _within(self, rows: np.ndarray) -> np.ndarray:
        """Return the covariance of contexts that were seen; that of all is kept, unless there are many."""
        if len(self.seen.contexts) > MOST_KEPT:
            contexts = [self.seen.contexts[i] for i in rows]
            return self.covariance(contexts, contexts)
        if self._kept is None:
            self._kept = self.covariance(self.seen.contexts, self.seen.contexts)
        return self._kept[np.ix_(rows, rows)]

    def predict(
        self,
        group: str,
        to: Content,
        source: Content | None = None,
        *,
        without: Sequence[Context] = (),
        genes: np.ndarray | None = None,
    ) -> Predicted:
        """Predict the change of a group under a condition.

        Parameters
        ----------
        group
            Name of the group.
        to
            Condition after the change.
        source
            Condition before it; ``None`` is the control.
        without
            Contexts that are left out.
        genes
            Positions of the genes; ``None`` is all.
        """
        every = np.arange(len(self.size)) if genes is None else genes
        ends = [(group, to)] if source is None else [(group, to), (group, source)]
        sign = np.array([1.0, -1.0])[: len(ends)]
        rows = np.array([i for i, c in enumerate(self.seen.contexts) if c not in without], dtype=int)
        prior = float(sign @ self.covariance(ends, ends) @ sign)
        if not len(rows):
            nothing = np.zeros(len(every))
            return Predicted(nothing, np.sqrt(self.size[every] * prior), rows, np.zeros((len(nothing), 0)))
        between = sign @ self.covariance(ends, self.seen.contexts)
        if len(rows) > CONTEXTS:
            rows = np.sort(rows[np.argsort(-np.abs(between[rows]), kind="stable")[:CONTEXTS]])
        seen, between = self.seen.of(rows), between[rows]
        within = self._within(rows)
        mean, variance = np.zeros(len(every)), np.zeros(len(every))
        weight = np.zeros((len(mean), len(rows)))
        for begin in range(0, len(mean), CHUNK):
            some, here = every[begin : begin + CHUNK], slice(begin, begin + CHUNK)
            size = self.size[some]
            total = size[:, None, None] * within + seen.covariance(some)
            total += TINY * np.eye(len(rows))
            right = size[:, None] * between
            weight[here] = np.linalg.solve(total, right[:, :, None])[:, :, 0]
            mean[here] = (weight[here] * seen.change[:, some].T).sum(1)
            variance[here] = size * prior - (weight[here] * right).sum(1)
        return Predicted(mean, np.sqrt(np.maximum(variance, 0.0)), rows, weight)

    def noise_of_error(self, found: Predicted, context: int, genes: np.ndarray | None = None) -> np.ndarray:
        """Return what noise adds to the squared error of a prediction, measured by a context left out.

        The noise of the controls is in the context, and by its weights in the prediction, too.

        Parameters
        ----------
        found
            Prediction without this context.
        context
            Position of the context.
        genes
            Positions of the genes; ``None`` is all.
        """
        every = np.arange(len(self.size)) if genes is None else genes
        same = self.seen.control[found.rows] == self.seen.control[context]
        root = np.sqrt(self.seen.shared[:, every])
        both = (found.weight[:, same] * root[found.rows[same]].T).sum(1) * root[context]
        return self.seen.variance[context, every] - 2 * both


def unlikelihood(
    log_weights: np.ndarray, parts: np.ndarray, noise: np.ndarray, y: np.ndarray, size: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return the mean negative log marginal likelihood of genes, but for a constant, and its gradient.

    Parameters
    ----------
    log_weights
        Logarithms of the weights of the components.
    parts
        Components of the covariance, components x contexts x contexts.
    noise
        Covariance of the noise, genes x contexts x contexts.
    y
        Changes that were seen, genes x contexts.
    size
        Mean square of the effects on each gene.
    """
    weights = np.exp(log_weights)
    covariance = np.tensordot(weights, parts, 1)
    total, pull = 0.0, np.zeros_like(covariance)
    for one, of_gene, s in zip(y, noise, size, strict=True):
        factor = cho_factor(s * covariance + of_gene + TINY * np.eye(len(of_gene)), lower=True)
        inverse = cho_solve(factor, np.eye(len(of_gene)))
        alpha = inverse @ one
        total += 0.5 * one @ alpha + np.log(np.diag(factor[0])).sum()
        pull += s * (inverse - np.outer(alpha, alpha))
    gradient = 0.5 * weights * np.tensordot(parts, pull, 2)
    return total / len(y), gradient / len(y)


def _posterior(likelihood: np.ndarray) -> np.ndarray:
    """Return the probability of each size of a gene, with the shares of sizes that fit all genes best."""
    share = np.full(likelihood.shape[1], 1 / likelihood.shape[1])
    for _ in range(ROUNDS):
        each = likelihood * share
        each /= each.sum(1, keepdims=True)
        share = (each.sum(0) + 1) / (len(each) + len(share))
    return each


def sizes(seen: Observed, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean square of the effects on each gene, and the size of the effects of each part.

    Squares are corrected for noise. Those of a gene are drawn to what genes of the same abundance have, as if
    that was worth a few contexts, and parts that were never seen have a typical size.

    Parameters
    ----------
    seen
        Changes that were seen.
    design
        Meaning of the conditions.
    """
    square = np.square(seen.change) - seen.variance
    n = len(square)
    usual = _trend(square.mean(0), seen.abundance)
    size = np.maximum((square.sum(0) + PRIOR * usual) / (n + PRIOR), np.maximum(LEAST * usual, TINY))
    strength = design.strengths([content for _, content in seen.contexts])
    trust = size / (size + seen.variance.mean(0) + TINY)
    of_context = np.maximum((trust * square / size).sum(1) / max(trust.sum(), TINY), 0.0)
    found, _ = nnls(np.square(strength), of_context) if strength.any() else (np.zeros(strength.shape[1]), 0.0)
    known = strength.any(0)
    typical = float(found[known].mean()) if known.any() and found[known].any() else 1.0
    found = np.where(known, np.maximum(found, 0.1 * typical), typical)
    return size, np.sqrt(found / typical)


def _trend(square: np.ndarray, abundance: np.ndarray) -> np.ndarray:
    """Return the running median of mean squares over genes in the order of their abundance."""
    order = np.argsort(abundance, kind="stable")
    width = 2 * max(5, len(order) // 20) + 1
    running = median_filter(square[order], size=min(width, 2 * (len(order) // 2) + 1), mode="nearest")
    out = np.empty_like(running)
    out[order] = running
    return np.maximum(out, 0.0)
