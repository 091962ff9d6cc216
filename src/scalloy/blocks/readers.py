"""Labels read from a vector by multinomial logistic regression, fitted when all else is trained.

A mixture tells labels well where its components are what the labels name; a regression draws the boundary
where the labelled cells have it, in the code or in the expression. They err differently, so what is reported
is their mean, in which code and expression have one say each.

With few labelled cells the default penalty of a regression on a handful of latents is far too strong, and its
probabilities too modest: there it is chosen by cross-validation.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from torch import Tensor, nn

from scalloy.blocks.priors import NEVER

N_PCS = 30
MOST = 500  # cells of each label that are read
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)  # inverse penalties
FEW, FOLDS = 1000, 5  # labelled cells up to which one is chosen, and how
UNLABELLED, ENTRIES = 3000, 6_000_000  # cells without label, and at most so many values of these


class LabelReader(nn.Module):
    """Probabilities of the labels, ``(n, n_in)`` to ``(n, n_labels)``.

    Parameters
    ----------
    n_in, n_labels
        Sizes. Above ``N_PCS`` dimensions principal components are read, and else each dimension in units of
        its standard deviation.
    """

    weight: Tensor
    bias: Tensor
    fitted: Tensor

    def __init__(self, n_in: int, n_labels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(n_in, n_labels))
        self.register_buffer("bias", torch.zeros(n_labels))
        self.register_buffer("fitted", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x @ self.weight + self.bias, -1)

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor, sizes: Tensor) -> None:
        """Learn from cells with labels ``y``; those with none of them (``n_labels``) shape the components.

        Parameters
        ----------
        x
            Cells x dimensions.
        y
            Codes of their labels.
        sizes
            Numbers of cells of each label that these stand for.
        """
        values, codes = x.cpu().numpy(), y.cpu().numpy()
        known = codes < len(self.bias)
        classes = np.unique(codes[known])
        if len(classes) == 0:
            return
        middle, axes = self._axes(values)
        weight, bias = np.zeros((len(axes), len(classes))), np.zeros(len(classes))
        if len(classes) > 1:
            stands_for = sizes.cpu().numpy()[codes[known]] / np.bincount(codes[known])[codes[known]]
            read, weights = (values[known] - middle) @ axes.T, stands_for / stands_for.mean()
            few = known.sum() <= FEW and values.shape[1] <= N_PCS
            strength = chosen_strength(read, codes[known], weights) if few else 1.0
            fitted = LogisticRegression(C=strength, max_iter=3000).fit(read, codes[known], weights)
            weight, bias = fitted.coef_.T, fitted.intercept_
            if len(classes) == 2:  # scikit-learn has one column for two
                weight, bias = np.c_[-weight / 2, weight / 2], np.r_[-bias / 2, bias / 2]
        weight = axes.T @ weight
        self.weight.zero_()
        self.bias.fill_(NEVER)
        self.weight[:, classes] = torch.from_numpy(weight).to(self.weight)
        self.bias[classes] = torch.from_numpy(bias - middle @ weight).to(self.bias)
        self.fitted.fill_(True)

    def _axes(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Middle of the cells, and the directions that are read, directions x dimensions."""
        if min(values.shape) > N_PCS:
            pca = PCA(N_PCS, random_state=0).fit(values)
            return pca.mean_, pca.components_
        return values.mean(0), np.diag(1 / np.maximum(values.std(0), 1e-6))


def chosen_strength(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Inverse penalty with the lowest cross-validated log loss, on labels that two cells have; 1 if none do.

    Parameters
    ----------
    x
        Cells x dimensions.
    y
        Codes of their labels.
    weights
        Of the cells.
    """
    of = np.bincount(y)[y] >= 2
    x, y, weights = x[of], y[of], weights[of]
    if len(classes := np.unique(y)) < 2:
        return 1.0
    folds = StratifiedKFold(int(min(FOLDS, np.bincount(y)[classes].min())), shuffle=True, random_state=0)
    tried = {"C": STRENGTHS}
    search = GridSearchCV(
        LogisticRegression(max_iter=3000), tried, scoring="neg_log_loss", cv=folds, refit=False
    )
    return float(search.fit(x, y, sample_weight=weights).best_params_["C"])


class Some:
    """Chooses at most ``MOST`` cells of each label, and more of those without, as they come by.

    Parameters
    ----------
    n_labels
        Number of labels; the code after the last one is none of them.
    n_vars
        Values of each cell. Principal components are those of the cells without label, so several thousand of
        these are read if memory allows.
    """

    def __init__(self, n_labels: int, n_vars: int) -> None:
        self.sizes = torch.zeros(n_labels + 1, dtype=torch.long)
        self.most = torch.full_like(self.sizes, MOST)
        self.most[-1] = max(MOST, min(UNLABELLED, ENTRIES // n_vars))

    def of(self, y: Tensor) -> Tensor:
        """Mask of the cells with codes ``y`` that are chosen."""
        each = nn.functional.one_hot(y, len(self.sizes)).cumsum(0).cpu()
        rank = (self.sizes + each).gather(-1, y.cpu().unsqueeze(-1)).squeeze(-1)
        self.sizes += each[-1]
        return (rank <= self.most[y.cpu()]).to(y.device)


class Readers(nn.Module):
    """Reads labels from the code of a cell, and from its expression if that is given.

    Parameters
    ----------
    n_latent, n_vars, n_labels
        Sizes.
    """

    def __init__(self, n_latent: int, n_vars: int, n_labels: int) -> None:
        super().__init__()
        self.n_labels = n_labels
        self.of_z, self.of_x = LabelReader(n_latent, n_labels), LabelReader(n_vars, n_labels)

    def vote(self, p: Tensor, z: Tensor, x: Tensor | None) -> Tensor:
        """Probabilities of the labels: those of the mixture, ``p``, and of the readers that were fitted."""
        p = (p + self.of_z(z)) / 2 if self.of_z.fitted else p
        return (p + self.of_x(x)) / 2 if x is not None and self.of_x.fitted else p

    def fit(self, cells: Iterable[tuple[Tensor, Tensor | None, Tensor]]) -> None:
        """Learn from codes, expression (or none) and labels of cells, which come in pieces."""
        some, read = Some(self.n_labels, len(self.of_x.weight)), []
        for z, x, y in cells:
            chosen = some.of(y)
            read.append((z[chosen], None if x is None else x[chosen], y[chosen]))
        z, y = (torch.cat([row[i] for row in read]) for i in (0, 2))  # type: ignore[arg-type]
        self.of_z.fit(z, y, some.sizes)
        if read[0][1] is not None:
            self.of_x.fit(torch.cat([x for _, x, _ in read if x is not None]), y, some.sizes)
