"""Change of each group of cells between two conditions, found from a context and kept.

    group o, from c to c'    d_o     shift of the mean of its log-normalised expression (:mod:`scalloy.shown`)
    a cell i of it           x_i     = middle_i factor_o        so that the context's mean shifts by d_o
                             counts  thinned or added to by r'_o / r_o (:mod:`scalloy.perturbation`)

``middle`` is the mean of what is decoded before and after the change. The context is the model's own cells,
or others that are given; what is found is the same for every cell that is predicted.

The noise of a sampled code is a function of the name of the cell and the seed: so a cell is decoded alike
alone and among others, in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.special import ndtri

from scalloy.blocks.sparse import dense
from scalloy.perturbation.fold_changes import rates_after
from scalloy.perturbation.redraw_counts import rates
from scalloy.shown import Shift, Shown
from scalloy.vae.base import Batch

UNGROUPED = "cells"  # group of cells of which a model knows no groups
MOST_CELLS = 2000  # of a group, from which its change is found


@dataclass(frozen=True)
class How:
    """Route, number of samples of the code that a mean is over, total that counts are scaled to, and seed."""

    route: str
    n_samples: int
    target_sum: float
    seed: int = 0


@dataclass
class Decoded:
    """Expression of each cell, cells x genes: observed, and expected before and after the change.

    ``counts`` are those that were observed, ``share`` and ``share_before`` those of each gene in what a cell
    is expected to have after the change and before; data that are no counts have none of them.
    """

    observed: np.ndarray
    before: np.ndarray
    after: np.ndarray
    counts: sp.csr_matrix | None = None
    share_before: np.ndarray | None = None
    share: np.ndarray | None = None

    @property
    def middle(self) -> np.ndarray:
        """Mean of what is expected before and after."""
        return (self.before + self.after) / 2


@dataclass
class Change:
    """What becomes of the cells of one group: found from the context, and the same for every cell.

    A cell of which the decoder expects ``middle`` is expected to have ``middle * factor + offset``. Rates are
    the shares of genes in the counts before and after, and ``pattern`` is the mean of the decoder's share, by
    which what it says of a cell is divided.
    """

    shift: Shift
    factor: np.ndarray
    offset: np.ndarray
    before: np.ndarray | None = None
    after: np.ndarray | None = None
    pattern: np.ndarray | None = None


@dataclass
class Changes:
    """Changes of groups, found when they are asked for and kept."""

    model: Any
    how: How
    seen: Shown
    context: AnnData | None = None
    known: dict[tuple[str, str, str], Change | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cells = self.model.adata if self.context is None else self.context
        self.groups = self.model._groups(self.context)
        self.under = cells.obs[self.model.condition_key].astype(str).to_numpy()

    def of(self, group: str, source: str, to: str) -> Change | None:
        """Change of a group from one condition to another; ``None`` if the context has no such cells."""
        key = (group, source, to)
        if key not in self.known:
            rows = np.flatnonzero((self.groups == group) & (self.under == source))
            rows = np.random.default_rng(self.how.seed).permutation(rows)[:MOST_CELLS]
            ungrouped = group == UNGROUPED and group not in self.model.labels
            lacks = ungrouped or not len(rows)
            self.known[key] = None if lacks else self._find(*key, np.sort(rows))
        return self.known[key]

    def _find(self, group: str, source: str, to: str, rows: np.ndarray) -> Change:
        made = decode(self.model, self.context, self.model.conditions.index(to), self.how, rows)
        own = made.after.mean(0) - made.before.mean(0)
        shift = self.seen.shift(own, made.observed, group, source, to)
        middle, wanted = made.middle.mean(0), made.observed.mean(0) + shift.mean
        factor, offset = np.ones_like(middle), wanted - middle
        if (made.observed >= 0).all():
            factor = np.where(middle > 0, wanted.clip(0) / np.maximum(middle, 1e-12), 1.0)
            offset = np.zeros_like(middle)
        if made.counts is None or made.share is None:
            return Change(shift, factor, offset)
        ell = np.asarray(made.counts.sum(axis=1), dtype=np.float64)
        pattern = np.maximum((ell * made.share).sum(0) / max(ell.sum(), 1e-12), 1e-12)
        before = rates(made.counts)
        after = self.seen.seen_rates(group, source, to, before) if shift.seen else None
        if after is None:
            asked = (made.counts, wanted.clip(0) - made.observed.mean(0), self.how.target_sum)
            before, after = rates_after(*asked, made.share / pattern)
        return Change(shift, factor, offset, before, after, pattern)


def changes_of(model: Any, how: How, context: AnnData | None = None) -> Changes:
    """What is known of changes before any cell is looked at, for all that is predicted."""
    if context is not None:
        context = model._fitting(context, model.registry)
    return Changes(model, how, shown(model, how.target_sum), None if context is model.adata else context)


def decode(model: Any, cells: AnnData | None, code: int, how: How, rows: np.ndarray | None = None) -> Decoded:
    """Observed expression, and the mean over samples of that expected before and after the change."""
    parts: list[list[np.ndarray]] = []
    likelihood, counts = model.module.likelihood, list[sp.csr_matrix]()
    draws_counts = likelihood.draws_counts
    for batch, names in batches(model, cells, rows):
        q, changed = model.module.encode(batch), replace(batch, c=torch.full_like(batch.b, code))
        sums: list[Any] = [0.0] * (4 if draws_counts else 2)
        for s in range(how.n_samples):
            latents = drawn(q, names, how.seed, s)
            new = moved(model.module, batch, code, q, latents, how.route)
            ps = [model.module.decode(*given)["x"] for given in ((batch, latents), (changed, new))]
            each = [likelihood.mean_observed(p, how.target_sum) for p in ps]
            each += [p.fraction for p in ps] if draws_counts else []
            sums = [a + b for a, b in zip(sums, each, strict=True)]
        seen = likelihood.observed(batch.x, how.target_sum)
        parts.append([t.cpu().numpy() for t in (seen, *(v / how.n_samples for v in sums))])
        if draws_counts:
            counts.append(sp.csr_matrix(dense(batch.x).cpu().numpy()))
    observed, before, after, *shares = (np.concatenate(of) for of in zip(*parts, strict=True))
    if not draws_counts:
        return Decoded(observed, before, after)
    return Decoded(observed, before, after, sp.vstack(counts, format="csr"), *shares)


def drawn(q: Any, names: np.ndarray, seed: int, sample: int) -> dict[str, torch.Tensor]:
    """One sample of each latent; the noise of a cell depends on its name, and on no other cell."""
    out = {}
    for i, (letter, of) in enumerate(q.items()):
        noise = _noise(names, of.mean.shape[-1], (seed, sample, i))
        out[letter] = of.mean + of.stddev * torch.as_tensor(noise).to(of.mean)
    return out


def _noise(names: np.ndarray, n: int, key: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers, cells x ``n``, by hashing each name with the key and the column."""
    salt = pd.util.hash_array(np.array([f"{key}, {j}" for j in range(n)], dtype=object))
    mixed = pd.util.hash_array((pd.util.hash_array(names)[:, None] ^ salt).ravel())
    return ndtri(((mixed >> np.uint64(12)) + 0.5) / 2.0**52).reshape(len(names), n)


def moved(module: Any, batch: Batch, code: int, q: Any, latents: Any, route: str) -> dict[str, torch.Tensor]:
    """Return the latents of cells under the condition ``code``, by the given route.

    ``w`` is carried from p(w | c) to p(w | c'), so the components are where they are for c' and w' there; a
    known label leaves to ``r`` its own components. The component of the route ``"style"`` is the most
    probable one at the means of the posteriors, whatever sample of them is given.
    """
    if route in {"auto", "decoder"}:
        return latents
    c, to, new = batch.condition, torch.full_like(batch.condition, code), dict(latents)
    z, w = (q["z"].mean, q["w"].mean) if route == "style" else (latents["z"], latents.get("w"))
    if w is not None:
        new["w"] = module.style.carried(w, c, to)
    here, there = module.prior(c, w), module.prior(to, new.get("w"))
    r = module.known(module.log_assignment(here, z, c), batch.y)[0].exp()
    if route == "style":
        return {**new, "z": there.of_component(r.argmax(-1))[0]}
    residual = (z.unsqueeze(-2) - here.loc) / here.scale
    return {**new, "z": (r.unsqueeze(-1) * (there.loc + there.scale * residual)).sum(-2)}


def batches(
    model: Any, cells: AnnData | None, rows: np.ndarray | None = None
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Batches of cells, and their names."""
    names, begin = np.asarray(model._names(cells, rows), dtype=object), 0
    for tensors in model._read(cells, rows, None, decodes=True):
        batch = Batch.of(tensors)
        yield batch, names[begin : begin + len(batch.b)]
        begin += len(batch.b)


def shown(model: Any, target_sum: float) -> Shown:
    """What the groups of the model's cells have shown, for all that is predicted."""
    return Shown.by(model, (batch for batch, _ in batches(model, None)), target_sum)
