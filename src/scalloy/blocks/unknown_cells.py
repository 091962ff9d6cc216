"""Signs that a cell is of none of the known types, fitted when all else is trained.

A cell is taken for one of a known type if nothing speaks against it:

    known    (1 - free) * covered * (1 - far)

    free     probability of the free components, each as far as labels are missing among its cells
    covered  how often cells like this one are labelled, relative to labelled cells of the types it looks like
             (geometric mean of what code and expression say)
    far      probability that it lies apart from the labelled cells, in the code and in the expression

The first two need unlabelled cells among those that the model is trained on: where cells without labels are
as frequent as elsewhere, they are of a known type (learning from positive and unlabelled cells; Elkan and
Noto, "Learning classifiers from only positive and unlabeled data", KDD 2008). Without unlabelled cells both
say nothing, and ``far`` decides alone.

How far a cell lies apart is its mean distance to the nearest labelled cells, relative to the same distance of
these (the local outlier factor; Breunig et al., SIGMOD 2000), so that dense and loose types count alike. Its
rank ``p`` among the labelled cells themselves is uniform for a cell of a known type. With a density
``SHAPE * p ** (SHAPE - 1)`` for other cells (Sellke et al., Am. Stat. 2001) and a share ``SHARE`` of these, a
probability follows by Bayes: a half where a cell lies farther out than some 96 % of the labelled cells.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from scalloy.blocks.label_classifiers import N_PCS, Labelled, LabelReader, directions, regression

NEIGHBOURS, SPOTS = 15, 1000  # labelled cells that are compared with, of so many
SHAPE, SHARE = 0.3, 0.25
MOST = 3000  # cells from which it is learned where labels are
DOUBT = 5.0  # labels, found and expected alike, that are added to the counts of each component


class Surroundings(nn.Module):
    """Log-odds by which the distance of a cell to labelled ones speaks for an unknown type.

    Parameters
    ----------
    n_in
        Number of dimensions.
    """

    spots: Tensor
    reach: Tensor
    usual: Tensor
    n: Tensor

    def __init__(self, n_in: int) -> None:
        super().__init__()
        self.register_buffer("spots", torch.zeros(SPOTS, n_in))
        self.register_buffer("reach", torch.zeros(SPOTS))
        self.register_buffer("usual", torch.zeros(SPOTS))
        self.register_buffer("n", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        n = int(self.n)
        if n == 0:
            return x.new_zeros(len(x))
        apart = torch.cdist(x, self.spots[:n], compute_mode="donot_use_mm_for_euclid_dist")
        log_p = self._log_rank(self._outlying(apart), n)
        return math.log(SHAPE) - (1 - SHAPE) * log_p

    def _outlying(self, apart: Tensor) -> Tensor:
        """Return the logarithm of the local outlier factor, given the distances to all labelled cells."""
        distance, near = apart.topk(min(NEIGHBOURS, apart.shape[1] - 1), largest=False)
        return _log(distance.mean(-1)) - self.reach[near].mean(-1)

    def _log_rank(self, outlying: Tensor, n: int) -> Tensor:
        """Return the log share of labelled cells that lie farther out, with an exponential tail.

        It is interpolated between labelled cells, so that rounding errors cannot change it much.
        """
        usual = self.usual[:n].contiguous()
        log_p = torch.log(torch.arange(n, 0, -1, device=usual.device, dtype=usual.dtype) / (n + 1))
        above = torch.searchsorted(usual, outlying.contiguous()).clamp(1, n - 1)
        low, high = usual[above - 1], usual[above]
        between = ((outlying - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
        tail = ((usual[-1] - usual[n // 2]) / math.log(max(n / 2, 2))).clamp_min(1e-3)
        return (
            torch.lerp(log_p[above - 1], log_p[above], between) - (outlying - usual[-1]).clamp_min(0) / tail
        )

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Fit to labelled cells, at most ``SPOTS``; fewer than three say nothing."""
        n = len(x) if len(x) > 2 else 0
        self.n.fill_(n)
        if n == 0:
            return
        apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
        self.spots[:n] = x
        self.reach[:n] = _log(apart.topk(min(NEIGHBOURS, n - 1), largest=False).values.mean(-1))
        self.usual[:n] = self._outlying(apart).sort().values


class UnknownCells(nn.Module):
    """Probability that a cell is of a known type, as written at the top of this file.

    Parameters
    ----------
    n_latent, n_vars, n_labels, n_components
        Numbers of latents, genes, labels (in a tree, of all nodes) and components of the mixture.
    """

    middle: Tensor
    axes: Tensor
    scale: Tensor
    expected: Tensor
    without_labels: Tensor
    fitted: Tensor

    def __init__(self, n_latent: int, n_vars: int, n_labels: int, n_components: int) -> None:
        super().__init__()
        d = min(n_vars, N_PCS)
        self.of_z, self.of_x = Surroundings(n_latent), Surroundings(d)
        self.labelled = LabelReader(d, n_labels + 1)  # the last class is "unlabelled"
        self.register_buffer("middle", torch.zeros(n_vars))
        self.register_buffer("axes", torch.zeros(n_vars, d))
        self.register_buffer("scale", torch.ones(n_latent))
        self.register_buffer("expected", torch.ones(n_labels))
        self.register_buffer("without_labels", torch.zeros(n_components))
        self.register_buffer("fitted", torch.tensor(False))

    def known(self, r: Tensor, z: Tensor, x: Tensor | None, covered: Tensor) -> Tensor:
        """Return the probability that each cell is of a known type.

        Parameters
        ----------
        r
            Probability of each component, found without the label.
        z, x
            Code and, if given, expression.
        covered
            Share of the expected labels around each cell in the code.
        """
        known, signs = 1 - r @ self.without_labels, [self.of_z(z / self.scale)]
        if x is not None and self.of_x.n:
            x = (x - self.middle) @ self.axes
            signs.append(self.of_x(x))
            covered = (covered * self._covered(x)).sqrt() if self.labelled.fitted else covered
        odds = torch.stack(signs).mean(0) + math.log(SHARE / (1 - SHARE))
        return known * covered * torch.sigmoid(-odds)

    def _covered(self, x: Tensor) -> Tensor:
        """Return how often cells like these are labelled, relative to labelled cells of their types."""
        p = self.labelled(x)[:, :-1]
        labelled = p.sum(-1)
        return (labelled / ((p / labelled.clamp_min(1e-9).unsqueeze(-1)) @ self.expected)).clamp(0, 1)

    @torch.no_grad()
    def fit(self, z: Tensor, x: Tensor | None, y: Tensor, sizes: Tensor) -> None:
        """Fit to codes, expression (or ``None``) and labels of cells.

        Parameters
        ----------
        z, x
            Cells x latents, and cells x genes.
        y
            Code of the label of each cell; the number of labels stands for an unlabelled one.
        sizes
            Number of cells of each label, and of unlabelled ones, that these cells stand for.
        """
        codes, values, n = y.cpu().numpy(), z.cpu().numpy(), np.asarray(sizes.cpu())
        known = codes < len(self.expected)
        self.fitted.fill_(True)
        self.scale.copy_(torch.from_numpy(np.maximum(values.std(0), 1e-6)))
        self.of_z.fit(self._spots(values / self.scale.cpu().numpy(), codes, n))
        if x is None:
            return
        seen = x.cpu().numpy()
        middle, axes = directions(seen)
        self.middle.copy_(torch.from_numpy(middle))
        self.axes[:, : axes.shape[1]] = torch.from_numpy(axes).to(self.axes)
        pcs = (seen - self.middle.cpu().numpy()) @ self.axes.cpu().numpy()
        self.of_x.fit(self._spots(pcs, codes, n))
        if known.any() and not known.all():
            self._learn_cover(pcs, codes, n)

    def _spots(self, values: np.ndarray, codes: np.ndarray, sizes: np.ndarray) -> Tensor:
        known = codes < len(self.expected)
        some = Labelled(values[known], codes[known], sizes[:-1]).some(SPOTS)
        return torch.from_numpy(some.x).to(self.scale)

    def _learn_cover(self, pcs: np.ndarray, codes: np.ndarray, sizes: np.ndarray) -> None:
        """Fit the probability of each label and of none, and how often labelled cells seem labelled."""
        classes, y = np.unique(codes, return_inverse=True)
        cells = Labelled(pcs, y, sizes[classes]).some(MOST)
        bent = regression(1.0, 0.5 / max(float(pcs.var(0).sum()), 1e-12))
        self.labelled.bend(bent, cells, classes, np.zeros(pcs.shape[1]), np.eye(pcs.shape[1]))
        p = self.labelled(torch.from_numpy(pcs).to(self.axes))[:, :-1].sum(-1).cpu().numpy()
        for label in classes[:-1]:
            self.expected[label] = float(p[codes == label].mean())

    @torch.no_grad()
    def look_for_labels(self, r: Tensor, known: Tensor, free: Tensor) -> None:
        """Measure how far labels are missing among the cells of each free component.

        Parameters
        ----------
        r
            Probability of each component for all cells that were trained on, found without labels.
        known
            Mask of the cells with a label.
        free
            Mask of the free components.
        """
        labelled, cells = r[known].sum(0), r.sum(0)
        cover = (labelled + DOUBT) / (cells * known.to(r.dtype).mean() + DOUBT)
        self.without_labels.copy_((1 - cover).clamp_min(0) * free)


def _log(distance: Tensor) -> Tensor:
    return distance.clamp_min(1e-12).log()
