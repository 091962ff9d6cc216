r"""Partial pooling of changes whose noise is known for each gene in each group.

    d_og = f_g(c_o) + e_og       e_og ~ N(0, v_og)
    f_g  ~ GP(0, a_g K)          K as in :mod:`scalloy.perturbation.pooling`
    a_g  ~ pi_0 delta_0 + sum_j pi_j delta_j

It differs from :mod:`scalloy.perturbation.pooling` in that a gene may be measured well in one group and
hardly at all in another, as counts are, and in that genes may not change at all (``a_g = 0``), with a
probability ``pi_0`` that is learned from all genes. As in Stephens (Biostatistics 2017), ten genes without a
change are added to those that were observed, so that noise is not taken for a change.

For each gene, the kernel is rotated to a basis in which the groups are independent. This takes one
eigendecomposition of a small matrix per gene, whatever the number of sizes ``a``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalloy.perturbation.pooling import (
    N_SIZES,
    NO_VARIANCE,
    SHARED,
    SMALLEST,
    WIDTHS,
    Pooled,
    candidates,
    fitted_shares,
    kernel,
)
from scalloy.perturbation.similarity import squared_distances, typical_distance

NULL_GENES = 10.0
MOST_GENES = 1000  # genes from which the settings of the kernel are chosen


class NoisyPooling:
    """Pooling of changes with their own noise, to predict the change of other groups.

    Parameters
    ----------
    control, shift
        Profile of the control cells of each group, and its change under the condition, groups x genes.
    noise
        Variance of the error of ``shift``, groups x genes.
    shared, widths
        Candidates for the settings of the kernel; the pair with the highest evidence is used.
    """

    def __init__(
        self,
        control: np.ndarray,
        shift: np.ndarray,
        noise: np.ndarray,
        *,
        shared: tuple[float, ...] = SHARED,
        widths: tuple[float, ...] = WIDTHS,
    ) -> None:
        self.control, self._scale = control, typical_distance(control)
        noise = np.maximum(noise, NO_VARIANCE)
        largest = max(float(np.square(shift).max()), NO_VARIANCE)
        sizes = np.concatenate([[0.0], np.geomspace(SMALLEST, 1.0, N_SIZES) * largest])
        between = squared_distances(control, control) / (self._scale or 1.0)
        pairs = candidates(len(control), shared, widths)
        self.shared, self.width = pairs[0]
        if len(pairs) > 1:
            some = np.sort(np.random.default_rng(0).permutation(shift.shape[1])[:MOST_GENES])
            few = shift[:, some], noise[:, some], sizes
            fits = ((RotatedByGene.of(kernel(*pair, between), *few).evidence, pair) for pair in pairs)
            self.shared, self.width = max(fits, key=lambda fit: fit[0])[1]
        self._found = RotatedByGene.of(kernel(self.shared, self.width, between), shift, noise, sizes)

    def predict(self, to: np.ndarray) -> Pooled:
        """Predict the change of a group.

        Parameters
        ----------
        to
            Profile of the control cells of the group, by gene.
        """
        distance = squared_distances(to[None], self.control)[0]
        near = kernel(self.shared, self.width, distance / (self._scale or float(distance.mean()) or 1.0))
        mean, variance = self._found.predicted(near)
        return Pooled(mean, np.sqrt(variance), self.shared, self.width)


@dataclass
class RotatedByGene:
    """Changes of each gene in its own basis, in which they are independent with noise of variance one.

    With ``w = v^-1/2`` and ``w K w = U diag(lam) U'`` the covariance of ``y = U' (w d)`` is
    ``a diag(lam) + 1``.
    """

    basis: np.ndarray  # genes x groups x components, including the weights w
    y: np.ndarray  # genes x components
    variance: np.ndarray  # sizes x genes x components
    sizes: np.ndarray
    share: np.ndarray  # posterior probability of each size, sizes x genes
    evidence: float

    @classmethod
    def of(cls, like: np.ndarray, shift: np.ndarray, noise: np.ndarray, sizes: np.ndarray) -> RotatedByGene:
        w = 1 / np.sqrt(noise.T)
        lam, u = np.linalg.eigh(w[:, :, None] * like * w[:, None, :])
        basis = w[:, :, None] * u
        y = np.einsum("goi,og->gi", basis, shift)
        variance = 1 + sizes[:, None, None] * lam.clip(0)
        log_density = -0.5 * (np.square(y) / variance + np.log(variance)).sum(2)
        share, evidence = fitted_shares(log_density, null=NULL_GENES)
        return cls(basis, y, variance, sizes, share, evidence)

    def predicted(self, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance, by gene, of a group's change; ``near`` is its kernel with the others."""
        k = np.einsum("goi,o->gi", self.basis, near)
        each = self.sizes[:, None] * (k * self.y / self.variance).sum(2)
        left = self.sizes[:, None] - np.square(self.sizes)[:, None] * (np.square(k) / self.variance).sum(2)
        mean = (self.share * each).sum(0)
        variance = (self.share * (left.clip(0) + np.square(each))).sum(0) - np.square(mean)
        return mean, variance.clip(0)
