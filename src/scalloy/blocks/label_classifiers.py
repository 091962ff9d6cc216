"""Multinomial logistic regressions that read labels from a vector, fitted when all else is trained.

A mixture predicts labels well if its components are what the labels name; a regression draws the boundary
where the labelled cells have it, in the code or in the expression. They make different errors, so their mean
is reported, in which code and expression have equal weight.

Boundaries may be curved, so there are two regressions: a "straight" one on the vector, and a "bent" one on
its similarity to some of the labelled cells (Williams and Seeger, "Using the Nystroem method to speed up
kernel machines", NIPS 2000). Cross-validation decides whether one of them is used or both. Where labelled
cells are few, it also chooses the strength of the penalties, except for straight boundaries between principal
components: the default penalty is far too strong for a handful of latents.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GridSearchCV, PredefinedSplit, StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline
from torch import Tensor, nn

from scalloy.blocks.mixture_prior import NEVER

N_PCS = 30
STRAIGHT, BENT = (0.1, 1.0, 10.0, 100.0, 1000.0), (100.0, 10.0)  # inverse penalties to choose from
SHARES, TELL = (0.0, 0.5, 1.0), 200  # of the bent boundaries, to choose from; labelled cells needed
FEW, FOLDS = 1000, 5  # most labelled cells used for these choices, and folds; with more, penalties are fixed
SPOTS, SIMILAR = 300, 2000  # labelled cells that others are compared to; labelled cells to learn from
DIFFER = 1e-4  # directions with a smaller share of the largest eigenvalue of the similarities are dropped


class LabelReader(nn.Module):
    """Probabilities of the labels from a vector, ``(n, n_in)`` to ``(n, n_labels)``.

        straight    softmax(W' x + b)
        bent        softmax(V' k + a),    k_j = exp(-gamma |A' (x - m) - t_j|^2),    t_j some labelled cells
        said        (1 - share) straight + share bent

    Parameters
    ----------
    n_in, n_labels
        Numbers of dimensions and of labels. With more than ``N_PCS`` dimensions, principal components are
        read; otherwise each dimension is read in units of its standard deviation.
    """

    weight: Tensor
    bias: Tensor
    middle: Tensor
    axes: Tensor
    spots: Tensor
    gamma: Tensor
    bent_weight: Tensor
    bent_bias: Tensor
    share: Tensor
    fitted: Tensor

    def __init__(self, n_in: int, n_labels: int) -> None:
        super().__init__()
        d = min(n_in, N_PCS)
        self.register_buffer("weight", torch.zeros(n_in, n_labels))
        self.register_buffer("bias", torch.zeros(n_labels))
        self.register_buffer("middle", torch.zeros(n_in))
        self.register_buffer("axes", torch.zeros(n_in, d))
        self.register_buffer("spots", torch.zeros(SPOTS, d))
        self.register_buffer("gamma", torch.tensor(0.0))
        self.register_buffer("bent_weight", torch.zeros(SPOTS, n_labels))
        self.register_buffer("bent_bias", torch.zeros(n_labels))
        self.register_buffer("share", torch.tensor(0.0))
        self.register_buffer("fitted", torch.tensor(False))
        self.chosen: list[tuple[float, Pipeline]] = []  # shares and regressions of the last fit

    def forward(self, x: Tensor) -> Tensor:
        straight = torch.softmax(x @ self.weight + self.bias, -1)
        if not self.share:
            return straight
        apart = torch.cdist((x - self.middle) @ self.axes, self.spots)
        similar = torch.exp(-self.gamma * apart.square())
        bent = torch.softmax(similar @ self.bent_weight + self.bent_bias, -1)
        return torch.lerp(straight, bent, self.share)

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor, sizes: Tensor) -> None:
        """Fit to cells with labels ``y``; unlabelled ones (``n_labels``) only shape the directions to read.

        Parameters
        ----------
        x
            Cells x dimensions.
        y
            Code of the label of each cell.
        sizes
            Number of cells of each label that these cells stand for.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The number of unique classes")  # few cells per label are fine
            self._fit(x.cpu().numpy(), y.cpu().numpy(), sizes.cpu().numpy())

    def _fit(self, values: np.ndarray, codes: np.ndarray, sizes: np.ndarray) -> None:
        known, self.chosen = codes < len(self.bias), []
        classes, codes = np.unique(codes[known], return_inverse=True)
        if len(classes) == 0:
            return
        self._clear(classes)
        if len(classes) == 1:
            return
        middle, axes = directions(values)
        cells = Labelled((values[known] - middle) @ axes, codes, sizes[classes])
        few, gamma = len(codes) <= FEW, 0.5 / max(float(cells.x.var(0).sum()), 1e-12)
        some, choose = cells.some(FEW), few and values.shape[1] <= N_PCS
        straight = regression(some.strength(regression(), STRAIGHT) if choose else 1.0)
        weight, bias = cells.boundary(straight)
        self.weight[:, classes] = torch.from_numpy(axes @ weight).to(self.weight)
        self.bias[classes] = torch.from_numpy(bias - middle @ axes @ weight).to(self.bias)
        self._look_along(middle, axes)
        self.chosen = [(1.0, straight)]
        if len(codes) < TELL:
            return
        bent = regression(some.strength(regression(gamma=gamma), BENT) if few else BENT[0], gamma)
        self.share.fill_(share := some.share(straight, bent))
        self.chosen = [pair for pair in ((1 - share, straight), (share, bent)) if pair[0]]
        self._bend(bent, cells.some(max(SIMILAR, len(classes))), classes)

    def _look_along(self, middle: np.ndarray, axes: np.ndarray) -> None:
        """Set the origin and the directions along which cells are read."""
        self.middle.copy_(torch.from_numpy(middle))
        self.axes[:, : axes.shape[1]] = torch.from_numpy(axes).to(self.axes)

    def _bend(self, bent: Pipeline, cells: Labelled, classes: np.ndarray) -> None:
        """Fit the bent boundaries to cells whose labels are numbered by their places in ``classes``."""
        weight, bias = cells.boundary(bent)
        spots = bent["see"].spots_
        self.gamma.fill_(bent["see"].gamma)
        self.spots[: len(spots), : spots.shape[1]] = torch.from_numpy(spots).to(self.spots)
        self.bent_weight[: len(spots), classes] = torch.from_numpy(weight).to(self.weight)
        self.bent_bias[classes] = torch.from_numpy(bias).to(self.bias)

    def bend(
        self, bent: Pipeline, cells: Labelled, classes: np.ndarray, middle: np.ndarray, axes: np.ndarray
    ) -> None:
        """Fit bent boundaries alone, to cells along directions ``axes`` from the ``middle``.

        Parameters
        ----------
        bent
            Regression on similarities, see :func:`regression`.
        cells
            Cells whose labels are numbered by their places in ``classes``.
        classes
            Codes of the labels that occur.
        middle, axes
            Origin and directions of the cells, as :func:`directions` returns them.
        """
        self._clear(classes)
        self._look_along(middle, axes)
        self._bend(bent, cells, classes)
        self.share.fill_(1.0)
        self.chosen = [(1.0, bent)]

    def crossed(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the probabilities of some cells, if labelled, by regressions that were fitted without them.

        The regressions are those of the last fit, in five folds. Cells that are alone with their label have
        NaN.
        """
        p, known = self(x), (y < len(self.bias)).cpu().numpy()
        classes, codes, n = np.unique(y.cpu().numpy()[known], return_inverse=True, return_counts=True)
        if not self.chosen or (n > 1).sum() < 2:
            return p
        values = ((x - self.middle) @ self.axes).double().cpu().numpy()[known]
        shuffled = np.random.default_rng(0).permutation(len(codes))
        fold = np.empty(len(codes), dtype=int)  # those of a label differ, however few cells it has
        order = shuffled[np.argsort(codes[shuffled], kind="stable")]
        fold[order] = np.arange(len(codes)) % min(FOLDS, len(codes))
        out = np.zeros((len(codes), len(classes)))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The (number of unique|least populated) class")
            warnings.filterwarnings("ignore", "Number of classes in training fold")
            for share, model in self.chosen:
                out += share * cross_val_predict(
                    model, values, codes, cv=PredefinedSplit(fold), method="predict_proba"
                )
        out[n[codes] == 1] = np.nan
        rows = torch.from_numpy(np.flatnonzero(known)).to(p.device)
        p[rows] = 0
        p[rows[:, None], torch.from_numpy(classes).to(p.device)] = torch.from_numpy(out).to(p)
        return p

    def _clear(self, classes: np.ndarray) -> None:
        """Reset all buffers; labels other than ``classes`` are made impossible."""
        for buffer in self.buffers():
            buffer.zero_()
        for bias in (self.bias, self.bent_bias):
            bias.fill_(NEVER)
            bias[classes] = 0
        self.fitted.fill_(True)


def directions(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of the cells, and the directions that are read, dimensions x directions."""
    if values.shape[1] > N_PCS:
        pca = PCA(min(N_PCS, len(values)), random_state=0).fit(values)
        return pca.mean_, pca.components_.T
    return values.mean(0), np.diag(1 / np.maximum(values.std(0), 1e-6))


def regression(strength: float = 1.0, gamma: float = 0.0) -> Pipeline:
    """Build a regression of labels on a vector or, with ``gamma``, on its similarity to some cells."""
    see = Similarity(gamma) if gamma else "passthrough"
    return Pipeline([("see", see), ("read", LogisticRegression(C=strength, max_iter=3000))])


class Similarity(TransformerMixin, BaseEstimator):
    """Coordinates of cells in the space that ``exp(-gamma * squared distance)`` to some of them spans.

    As :class:`sklearn.kernel_approximation.Nystroem`, but without directions in which these cells hardly
    differ: weights in single precision would be useless there.
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def fit(self, x: np.ndarray, y: np.ndarray | None = None) -> Similarity:
        self.spots_ = x[np.random.default_rng(0).permutation(len(x))[:SPOTS]]
        values, vectors = np.linalg.eigh(rbf_kernel(self.spots_, gamma=self.gamma).astype(np.float64))
        kept = values > DIFFER * values[-1]
        self.root_ = vectors[:, kept] / np.sqrt(values[kept])
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        return rbf_kernel(x, self.spots_, gamma=self.gamma) @ self.root_


@dataclass
class Labelled:
    """Cells ``x`` with codes ``y`` of their labels, and the number of cells that each label stands for."""

    x: np.ndarray
    y: np.ndarray
    sizes: np.ndarray

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """Weights of the cells in a regression."""
        each = (self.sizes / np.maximum(np.bincount(self.y, minlength=len(self.sizes)), 1))[self.y]
        return {"read__sample_weight": each / each.mean()}

    def some(self, n: int) -> Labelled:
        """Select at most ``n`` cells, evenly from all labels as far as these have enough."""
        order = np.random.default_rng(0).permutation(len(self.y))
        rank = np.empty(len(order), dtype=np.int64)
        for label in range(len(self.sizes)):
            own = order[self.y[order] == label]
            rank[own] = np.arange(len(own))
        chosen = np.sort(order[np.argsort(rank[order], kind="stable")[:n]])
        return Labelled(self.x[chosen], self.y[chosen], self.sizes)

    def _in_folds(self) -> tuple[Labelled, StratifiedKFold] | None:
        """Return the cells of labels with two cells or more, and folds; ``None`` without two such labels."""
        of = np.bincount(self.y)[self.y] >= 2
        classes, y = np.unique(self.y[of], return_inverse=True)
        if len(classes) < 2:
            return None
        folds = StratifiedKFold(int(min(FOLDS, np.bincount(y).min())), shuffle=True, random_state=0)
        return Labelled(self.x[of], y, self.sizes[classes]), folds

    def strength(self, model: Pipeline, strengths: tuple[float, ...]) -> float:
        """Return the inverse penalty with the lowest cross-validated log loss; 1 with too few cells."""
        if (divided := self._in_folds()) is None:
            return 1.0
        cells, folds = divided
        tried = {"read__C": strengths}
        search = GridSearchCV(model, tried, scoring="neg_log_loss", cv=folds, refit=False)
        return float(search.fit(cells.x, cells.y, **cells.weights).best_params_["read__C"])

    def share(self, straight: Pipeline, bent: Pipeline) -> float:
        """Return the share of ``bent`` with the lowest cross-validated log loss; 0 with too few cells."""
        if (divided := self._in_folds()) is None:
            return SHARES[0]
        cells, folds = divided
        settings = {"cv": folds, "method": "predict_proba", "params": cells.weights}
        a, b = (
            cross_val_predict(model, cells.x, cells.y, **settings)[np.arange(len(cells.y)), cells.y]
            for model in (straight, bent)
        )
        weights = cells.weights["read__sample_weight"]
        loss = [-np.average(np.log(a + share * (b - a) + 1e-12), weights=weights) for share in SHARES]
        return SHARES[int(np.argmin(loss))]

    def boundary(self, model: Pipeline) -> tuple[np.ndarray, np.ndarray]:
        """Fit a model; return weights and intercepts of each label, for the vector or the similarities."""
        model.fit(self.x, self.y, **self.weights)
        weight, bias, see = model["read"].coef_.T, model["read"].intercept_, model["see"]
        if weight.shape[1] == 1:  # scikit-learn returns one column for two labels
            weight, bias = np.c_[-weight / 2, weight / 2], np.r_[-bias / 2, bias / 2]
        if see != "passthrough":
            weight = see.root_ @ weight
        return weight, bias
