"""Mixture of Gaussians that is fitted to the codes of the training cells, from which new codes are drawn.

The prior of a model and the codes of its cells taken together (the aggregate posterior) differ where the
prior fills gaps between cell types. A mixture that is fitted to samples of the codes does not. Its number of
components is the least with a likelihood of the codes of left-out cells that is within a standard error of
the highest one.

What a new cell has beside its code, such as library size and batch, depends on its type. So it is taken from
one of the cells whose codes are nearest to the new code, its companion.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree
from sklearn.mixture import GaussianMixture

LARGEST, HELD_OUT, N_NEAREST = 64, 0.2, 5
LEAST_VARIANCE = 1e-3  # of a component, relative to that of the codes


class Aggregate:
    """Mixture of Gaussians of the codes of cells.

    Parameters
    ----------
    codes
        Samples of the posterior codes, samples x cells x dimensions; several samples of each cell say how
        uncertain its code is.
    seed
        Random seed of the cells that are left out and of the mixture.

    Attributes
    ----------
    n_components
        Number of components that was chosen.
    held_out
        Mean log-likelihood of the codes (in standard deviations) of left-out cells, by number of components.
    """

    def __init__(self, codes: np.ndarray, *, seed: int = 0) -> None:
        self.centre, self.scale = codes.mean((0, 1)), np.maximum(codes.std((0, 1)), 1e-12)
        scaled = (codes - self.centre) / self.scale
        scores = _held_out(scaled, seed)
        self.n_components = _fewest(scores)
        self.held_out = {k: float(each.mean()) for k, each in scores.items()}
        self.mixture = _fitted(scaled, self.n_components, seed)

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw new codes, ``n`` x dimensions."""
        k = rng.choice(self.n_components, n, p=self.mixture.weights_)
        root = np.linalg.cholesky(self.mixture.covariances_)[k]
        noise = rng.normal(size=(n, len(self.centre), 1))
        return self.centre + self.scale * (self.mixture.means_[k] + (root @ noise)[..., 0])

    def log_prob(self, codes: np.ndarray) -> np.ndarray:
        """Return the log density of codes, cells x dimensions."""
        scaled = (codes - self.centre) / self.scale
        return self.mixture.score_samples(scaled) - np.log(self.scale).sum()


def _fitted(codes: np.ndarray, n_components: int, seed: int) -> GaussianMixture:
    """Fit a mixture to all samples of all cells."""
    mixture = GaussianMixture(n_components, reg_covar=LEAST_VARIANCE, random_state=seed, max_iter=200)
    return mixture.fit(codes.reshape(-1, codes.shape[-1]))


def _held_out(codes: np.ndarray, seed: int) -> dict[int, np.ndarray]:
    """Score 1, 2, 4, ... components on each cell that was left out, until more of them are no better."""
    n_cells = codes.shape[1]
    out = np.random.default_rng(seed).permutation(n_cells) < max(1, int(HELD_OUT * n_cells))
    left, scores, k = codes[:, out], {}, 1
    while k == 1 or (k <= LARGEST and 2 * k <= (~out).sum()):
        found = _fitted(codes[:, ~out], k, seed).score_samples(left.reshape(-1, codes.shape[-1]))
        scores[k] = found.reshape(left.shape[:2]).mean(0)
        if scores[k].mean() < max(v.mean() for v in scores.values()):
            break
        k *= 2
    return scores


def _fewest(scores: dict[int, np.ndarray]) -> int:
    """Return the least number of components that is worse than the best by no more than a standard error."""
    best = max(scores.values(), key=np.mean)
    worse = {k: best - each for k, each in scores.items()}
    return min(k for k, v in worse.items() if v.mean() <= v.std() / max(1, len(v) - 1) ** 0.5)


def companions(
    codes: np.ndarray, known: np.ndarray, rng: np.random.Generator, n_nearest: int = N_NEAREST
) -> np.ndarray:
    """Choose for each new code a cell at random among those whose codes are nearest to it.

    Parameters
    ----------
    codes
        New codes, n x dimensions.
    known
        Codes of the cells.
    rng
        Random number generator.
    n_nearest
        Number of cells among which the choice is made, or all if there are fewer.

    Returns
    -------
    Row number of the cell that is chosen for each new code.
    """
    k = min(n_nearest, len(known))
    near = cKDTree(known).query(codes, k=k)[1].reshape(len(codes), k)
    return near[np.arange(len(codes)), rng.integers(k, size=len(codes))]
