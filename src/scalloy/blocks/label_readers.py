"""Readers of labels from the code and the expression of a cell, flat or along a tree, and their temperature.

Each reader is a pair of regressions (:mod:`scalloy.blocks.label_classifiers`); along a tree there is one for
each split. Here they are joined with the mixture, and the result is calibrated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from scalloy.blocks.hierarchy import ROOT, Hierarchy
from scalloy.blocks.label_classifiers import FEW, LabelReader

MOST = 500  # largest number of cells of each label that are read
TEMPERATURES = tuple(float(t) for t in np.geomspace(0.25, 4, 41))  # to choose from
LEAST = 1e-3  # probability below which a mistake counts no more
UNLABELLED, ENTRIES = 3000, 6_000_000  # unlabelled cells that are read, and limit of their values


class TreeReader(nn.Module):
    """Probabilities of the leaves of a tree from a vector: a product of what a reader at each split says.

        p(leaf) = product of p(child | node) over the nodes from the root to the leaf

    A cell is read at the splits above its label, whatever the depth of this. The directions that are read
    below a node are also learned from cells that are probably below it.

    Parameters
    ----------
    n_in
        Number of dimensions.
    tree
        Tree of the labels.
    """

    def __init__(self, n_in: int, tree: Hierarchy) -> None:
        super().__init__()
        self.tree, self.splits = tree, tree.splits()
        self.readers = nn.ModuleList(LabelReader(n_in, len(tree.children(node))) for node in self.splits)

    def _at_splits(self) -> Iterator[tuple[int, LabelReader]]:
        """Yield each node with several children and its reader."""
        for node, reader in zip(self.splits, self.readers, strict=True):
            assert isinstance(reader, LabelReader)
            yield node, reader

    @property
    def fitted(self) -> bool:
        """True if all readers are fitted that had cells."""
        return any(bool(reader.fitted) for reader in self.readers)

    def forward(self, x: Tensor) -> Tensor:
        return self.of_nodes(x)[..., : self.tree.n_leaves]

    def crossed(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the probabilities of some cells as :meth:`LabelReader.crossed` does, at each split."""
        said = {node: reader.crossed(x, self._child(node, y)) for node, reader in self._at_splits()}
        return self.of_nodes(x, said)[..., : self.tree.n_leaves]

    def of_nodes(self, x: Tensor, said: dict[int, Tensor] | None = None) -> Tensor:
        """Return the probability of each node, ``(n, nodes)``, from that of the children at each split."""
        if said is None:
            said = {node: reader(x) for node, reader in self._at_splits()}
        p: dict[int, Tensor] = {ROOT: x.new_ones(len(x))}
        for node in sorted(range(len(self.tree)), key=lambda node: self.tree.depth[node]):
            above = self.tree.parents[node]
            p[node] = p[above]
            if above in said:
                p[node] = p[above] * said[above][:, self.tree.children(above).index(node)]
        return torch.stack([p[node] for node in range(len(self.tree))], -1)

    def fit(self, x: Tensor, y: Tensor, sizes: Tensor) -> None:
        """Fit the readers, those at the root first; see :meth:`LabelReader.fit`."""
        for node, reader in self._at_splits():
            children = self.tree.children(node)
            of, kept = self._child(node, y), torch.ones_like(y, dtype=torch.bool)
            if node != ROOT:
                above = torch.tensor([*self.tree.path(node)[:-1], len(self.tree)], device=y.device)
                inside = self.of_nodes(x)[:, node] > 0.5
                kept = (of < len(children)) | (y == node) | (torch.isin(y, above) & inside)
            n = [int(sizes[self.tree.at_or_below(child)].sum()) for child in children]
            reader.fit(x[kept], of[kept], torch.tensor([*n, 0]))

    def _child(self, node: int, y: Tensor) -> Tensor:
        """Return the child of a node that each label is or is below; their number if it is none of them."""
        children = self.tree.children(node)
        out = torch.full((len(self.tree) + 1,), len(children), device=y.device)
        for i, child in enumerate(children):
            out[self.tree.at_or_below(child)] = i
        return out[y]


def reader_of(n_in: int, tree: Hierarchy) -> LabelReader | TreeReader:
    """Return a reader of the leaves of a tree from vectors with ``n_in`` dimensions."""
    return TreeReader(n_in, tree) if tree.n_inner else LabelReader(n_in, tree.n_leaves)


class Some:
    """Selection of at most ``MOST`` cells of each label, and of more unlabelled ones, as batches arrive.

    Parameters
    ----------
    n_labels
        Number of labels; the code after the last one means unlabelled.
    n_vars
        Number of values of each cell. Several thousand unlabelled cells are read if memory allows, since
        principal components are mostly learned from them.
    """

    def __init__(self, n_labels: int, n_vars: int) -> None:
        self.sizes = torch.zeros(n_labels + 1, dtype=torch.long)
        self.most = torch.full_like(self.sizes, MOST)
        self.most[-1] = max(MOST, min(UNLABELLED, ENTRIES // n_vars))

    def of(self, y: Tensor) -> Tensor:
        """Return a mask of those cells of a batch with codes ``y`` that are selected."""
        each = nn.functional.one_hot(y, len(self.sizes)).cumsum(0).cpu()
        rank = (self.sizes + each).gather(-1, y.cpu().unsqueeze(-1)).squeeze(-1)
        self.sizes += each[-1]
        return (rank <= self.most[y.cpu()]).to(y.device)


class Readers(nn.Module):
    """Readers of labels from the code of a cell and, if given, from its expression.

    Parameters
    ----------
    n_latent, n_vars, n_labels
        Numbers of latents, genes and labels.
    tree
        Tree of the labels, whose leaves are ``n_labels``; ``None`` if they have no hierarchy.
    """

    temperature: Tensor

    def __init__(self, n_latent: int, n_vars: int, n_labels: int, tree: Hierarchy | None = None) -> None:
        super().__init__()
        self.tree, self.n_vars = tree or Hierarchy(n_labels), n_vars
        self.of_z, self.of_x = (reader_of(n, self.tree) for n in (n_latent, n_vars))
        self.calibrates = tree is not None
        if tree is not None:
            self.register_buffer("temperature", torch.tensor(1.0))

    def vote(self, p: Tensor, z: Tensor, x: Tensor | None) -> Tensor:
        """Average the label probabilities ``p`` of the mixture with those of the readers that were fitted."""
        p = (p + self.of_z(z)) / 2 if self.of_z.fitted else p
        return (p + self.of_x(x)) / 2 if x is not None and self.of_x.fitted else p

    def fit(
        self, cells: Iterable[tuple[Tensor, Tensor | None, Tensor]]
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Fit to the codes, expression (or ``None``) and labels of cells, which come in batches.

        Returns the cells that were read in the same form, and the number of cells of each label.
        """
        some, read = Some(len(self.tree), self.n_vars), []
        for z, x, y in cells:
            y = y.clamp_max(len(self.tree))
            chosen = some.of(y)
            read.append((z[chosen], None if x is None else x[chosen], y[chosen]))
        z, y = torch.cat([z for z, _, _ in read]), torch.cat([y for _, _, y in read])
        self.of_z.fit(z, y, some.sizes)
        seen = None if read[0][1] is None else torch.cat([x for _, x, _ in read if x is not None])
        if seen is not None:
            self.of_x.fit(seen, y, some.sizes)
        if self.calibrates:
            self._calibrate(z, z if seen is None else seen, y)
        return z, seen, y, some.sizes

    def _calibrate(self, z: Tensor, x: Tensor, y: Tensor) -> None:
        """Choose the temperature with the lowest log loss of labelled cells that the readers have not seen.

        The loss counts all labels from the root to the known one. The mixture has no say, because it was
        trained with these labels.
        """
        tree, known = self.tree, torch.nonzero(y < len(self.tree))[:, 0]
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(known))[:FEW]).to(y.device)
        z, x, y = (v[known[order]] for v in (z, x, y))
        p = self.of_z.crossed(z, y)
        p = (p + self.of_x.crossed(x, y)) / 2 if self.of_x.fitted else p
        seen = ~p.isnan().any(-1)
        if not self.of_z.fitted or not seen.any():
            return
        above = torch.zeros(len(tree), len(tree), device=y.device)
        for node in range(len(tree)):
            above[node, tree.path(node)] = 1
        log_p, on_path = p[seen].clamp_min(1e-12).log(), above[y[seen]]
        tried = [tree.of_nodes(torch.softmax(log_p / t, -1)).clamp_min(LEAST).log() for t in TEMPERATURES]
        loss = [float((log_nodes * on_path).sum(-1).mean().neg()) for log_nodes in tried]
        self.temperature.fill_(TEMPERATURES[int(np.argmin(loss))])

    def calibrated(self, p: Tensor) -> Tensor:
        """Return probabilities of the leaves at the temperature that was found for labelled cells."""
        return torch.softmax(p.clamp_min(1e-12).log() / self.temperature, -1)
