"""Cells decoded before and after a change of their condition.

The noise in a sampled code of a cell is a function of the name of the cell and the seed. So the cell is
decoded in the same way whether it is alone or among others, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.special import ndtri

from scalloy.kernels.csr import dense
from scalloy.models._core.protocols import ModelOf
from scalloy.vae.base import Batch, Distributions, HasConditions, Latents
from scalloy.vae.routes import moved

EVERYTHING = frozenset({"observed", "before", "after", "middle", "share_before", "share"})
NOTHING = np.empty((0, 0), dtype=np.float32)  # in place of an array that was not asked for


@dataclass(frozen=True)
class How:
    """Settings of a prediction: route, samples of the code per cell, total to scale counts to, and seed.

    Without samples (``None``), the mean of the code is decoded.
    """

    route: str
    n_samples: int | None
    target_sum: float
    seed: int = 0


@dataclass
class Decoded:
    """Expression of each cell, cells x genes: observed, and expected before and after the change.

    ``middle`` is the mean of the last two. For count data there are also the observed ``counts``, and the
    expected share of each gene in the counts of the cell, ``share_before`` and ``share`` (after the change).
    Arrays that were not asked for are empty.
    """

    observed: np.ndarray
    before: np.ndarray
    after: np.ndarray
    middle: np.ndarray
    counts: sp.csr_matrix | None = None
    share_before: np.ndarray | None = None
    share: np.ndarray | None = None


def decode(
    model: ModelOf[HasConditions],
    cells: AnnData | None,
    code: int,
    how: How,
    rows: np.ndarray | None = None,
    scales: tuple[float, ...] = (),
    keep: frozenset[str] = EVERYTHING,
) -> list[Decoded]:
    """Return the observed expression, and the mean of the expected one before and after the change.

    Parameters
    ----------
    model
        A trained model with conditions.
    cells
        New cells with the genes of the model; ``None`` is the model's own.
    code
        Index of the condition after the change.
    how
        Settings of the prediction.
    rows
        Positions of the cells to decode; ``None`` is all.
    scales
        Further totals to which counts are scaled; there is one more result for each.
    keep
        Arrays of the result that are needed.
    """
    likelihood, scales = model.module.likelihood, (how.target_sum, *scales)
    parts: list[list[dict[str, np.ndarray]]] = [[] for _ in scales]
    counts, n = list[sp.csr_matrix](), how.n_samples or 1
    expected = {"before", "after"} if "middle" in keep else keep & {"before", "after"}
    shares = keep & {"share_before", "share"} if likelihood.draws_counts else frozenset()
    for batch, names in batches(model, cells, rows):
        q = model.module.encode(batch)

        def both(latents: Latents, batch: Batch = batch, q: Distributions = q) -> list[Any]:
            """Decode before and after the change."""
            new = moved(model.module, batch, code, q, latents, how.route)
            given = (batch, latents), (replace(batch, c=torch.full_like(batch.b, code)), new)
            return [model.module.decode(*each)["x"] for each in given]

        sums: list[dict[str, Any]] = [{} for _ in scales]
        for s in range(n):
            ps = both(drawn(q, names, how.seed, None if how.n_samples is None else s))
            of_both = {"before": ps[0], "after": ps[1]}
            for scale, of in zip(scales, sums, strict=True):
                _add(
                    of, {k: of_both[k] for k in expected}, partial(likelihood.mean_observed, target_sum=scale)
                )
            if shares:  # counts are draws, so without samples their shares are those of one
                ps = ps if how.n_samples is not None else both(drawn(q, names, how.seed, 0))
                of_both = {"share_before": ps[0], "share": ps[1]}
                _add(sums[0], {k: of_both[k] for k in shares}, likelihood.fraction)
        for scale, of, part in zip(scales, sums, parts, strict=True):
            found = {k: v / n if n > 1 else v for k, v in of.items()}
            if "middle" in keep:
                found["middle"] = torch.lerp(found["before"], found["after"], 0.5)
            if "observed" in keep:
                found["observed"] = likelihood.observed(batch.x, scale)
            part.append({k: v.cpu().numpy() for k, v in found.items() if k in keep})
        if likelihood.draws_counts:
            counts.append(sp.csr_matrix(dense(batch.x).cpu().numpy()))
    out = []
    for part in parts:
        joined = {k: np.concatenate([p[k] for p in part]) if len(part) > 1 else v for k, v in part[0].items()}
        empty = {k: NOTHING for k in ("observed", "before", "after", "middle") if k not in joined}
        out.append(Decoded(**joined, **empty))
    for made in out if counts else []:
        made.counts = out[0].counts if made is not out[0] else sp.vstack(counts, format="csr")
        made.share_before, made.share = out[0].share_before, out[0].share
    return out


def _add(sums: dict[str, Any], given: dict[str, Any], function: Callable[[Any], torch.Tensor]) -> None:
    """Add the values of a function of each distribution to the sums of the same name."""
    for name, p in given.items():
        value = function(p)
        sums[name] = sums[name] + value if name in sums else value


def drawn(q: Distributions, names: np.ndarray, seed: int, sample: int | None) -> Latents:
    """Draw a sample of each latent (``None``: its mean); the noise of a cell depends on its name alone."""
    if sample is None:
        return {letter: of.mean for letter, of in q.items()}
    out = {}
    for i, (letter, of) in enumerate(q.items()):
        noise = _noise(names, of.mean.shape[-1], (seed, sample, i))
        out[letter] = of.mean + of.stddev * torch.as_tensor(noise).to(of.mean)
    return out


def _noise(names: np.ndarray, n: int, key: tuple[int, ...]) -> np.ndarray:
    """Return standard normal numbers, cells x ``n``, by hashing each name with the key and the column."""
    salt = pd.util.hash_array(np.array([f"{key}, {j}" for j in range(n)], dtype=object))
    mixed = pd.util.hash_array((pd.util.hash_array(names)[:, None] ^ salt).ravel())
    return ndtri(((mixed >> np.uint64(12)) + 0.5) / 2.0**52).reshape(len(names), n)


def batches(
    model: ModelOf[HasConditions], cells: AnnData | None, rows: np.ndarray | None = None
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yield batches of cells with the names of the cells."""
    names, begin = np.asarray(model.reader.names(cells, rows), dtype=object), 0
    for batch in model.reader.batches(cells, rows, decodes=True):
        yield batch, names[begin : begin + len(batch.b)]
        begin += len(batch.b)
