"""Prediction under another condition: how cells would look, had they been treated.

    route         code under the new condition c'                               counts
    "decoder"     z ~ q(z | x, c)                                               p(x | z, c')
    "transport"   z' = sum_k r_k [m_k(w', c') + s_k(w') / s_k(w) (z - m_k(w, c))]   p(x | z', c')
    "style"       z' = m_y(w', c'), w = E q(w | x, c), y the component (Kolb)   p(x | z', c')
    "auto"        z, moved to the pooled shift of the cell's group              x itself, changed

The pooled shift of a group of cells is a mean of what the decoder says of them and of what other groups have
shown (:mod:`scalloy.shown`); the decoder's is that of the mean logarithm (:mod:`scalloy.blocks.expected`),
which the logarithm of its mean is far from. What a cell expresses beside its group is the mean of what is
decoded before and after: the one knows the genes of its type, the other those that the condition induces.

Counts of the route "auto" are those of the cells themselves, thinned where a gene falls and added to where
it rises (:mod:`scalloy.baselines.counts`): counts that a decoder draws anew have lost what is a cell's own.
Those of the other routes are drawn anew.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

from scalloy._seeds import seeded
from scalloy.baselines.counts import fractions_of, redrawn
from scalloy.blocks.sparse import dense
from scalloy.models import _options
from scalloy.shown import Shift, Shown
from scalloy.vae.base import Batch


@dataclass(frozen=True)
class How:
    """By which route, how many samples of the code a mean is over, to which total counts are scaled."""

    route: str
    n_samples: int
    target_sum: float


@dataclass
class Decoded:
    """Expression of each cell, cells x genes: observed, and expected before and after the change.

    ``counts`` are those that were observed, ``share`` is that of each gene in a cell's counts after the
    change; there are none of data that are no counts.
    """

    observed: np.ndarray
    before: np.ndarray
    after: np.ndarray
    counts: sp.csr_matrix | None = None
    share: np.ndarray | None = None

    @property
    def middle(self) -> np.ndarray:
        """Between the two."""
        return (self.before + self.after) / 2


def transfer(
    model: Any,
    cells: AnnData | None,
    to: str | None,
    *,
    route: str = "auto",
    n_samples: int = 3,
    library_size: float | None = None,
    seed: int = 0,
    target_sum: float = 1e4,
    seen: Shown | None = None,
) -> AnnData:
    """The body of ``transfer`` of every model with conditions; ``seen`` is :func:`shown` if known."""
    _options.one_of("route", route, model.ROUTES)
    to = _options.one_of("to", to, model.conditions)
    _options.positive(n_samples=n_samples, target_sum=target_sum)
    if route == "style" and model.module.enc_w is None:
        msg = "`route='style'` goes through `w`, and the model has none. Pass `n_w=` to the model."
        raise ValueError(msg)
    source = model.adata if cells is None else cells
    cells = None if cells is model.adata else cells
    code, draws_counts = model.conditions.index(to), model.module.likelihood.draws_counts
    how = How(route, n_samples, float(target_sum))
    with torch.no_grad(), seeded(seed):
        decoded = decode(model, cells, code, how)
        expected, counts = decoded.after, None
        about = pd.DataFrame({"group": model._groups(cells)}, index=source.obs_names)
        about["from"] = source.obs[model.condition_key].astype(str).to_numpy()
        about["pair"] = about["group"] + " from " + about["from"]
        shifts: dict[str, Shift] = {}
        if route == "auto":
            seen = seen or shown(model, how.target_sum)
            expected, shifts = _pooled(seen, decoded, about, to)
        if draws_counts and route == "auto":
            counts = _changed(decoded, about["pair"], shifts, how.target_sum, library_size, seed)
        elif draws_counts:
            counts = _sampled(model, cells, code, route, library_size)
    return _as_anndata(model, source, to, about, expected, counts, shifts, how)


def decode(model: Any, cells: AnnData | None, code: int, how: How) -> Decoded:
    """Observed expression, and the mean over samples of that expected before and after the change."""
    parts: list[list[np.ndarray]] = []
    likelihood, counts = model.module.likelihood, list[sp.csr_matrix]()
    draws_counts = likelihood.draws_counts
    for batch in _batches(model, cells):
        q, changed = model.module.encode(batch), replace(batch, c=torch.full_like(batch.b, code))
        before = after = share = torch.zeros(1, device=batch.b.device)
        for _ in range(how.n_samples):
            latents = model.module.draw(q)
            new = moved(model.module, batch, code, q, latents, how.route)
            p = model.module.decode(batch, latents)["x"]
            before = before + likelihood.mean_observed(p, how.target_sum)
            p = model.module.decode(changed, new)["x"]
            after = after + likelihood.mean_observed(p, how.target_sum)
            share = share + p.fraction if draws_counts else share
        sums = [before, after, share] if draws_counts else [before, after]
        seen = likelihood.observed(batch.x, how.target_sum)
        parts.append([t.cpu().numpy() for t in (seen, *(v / how.n_samples for v in sums))])
        if draws_counts:
            counts.append(sp.csr_matrix(dense(batch.x).cpu().numpy()))
    observed, *means = (np.concatenate(rows) for rows in zip(*parts, strict=True))
    if not draws_counts:
        return Decoded(observed, *means)
    return Decoded(observed, *means[:2], counts=sp.vstack(counts, format="csr"), share=means[2])


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


def _batches(model: Any, cells: AnnData | None) -> Any:
    for tensors in model._read(cells, None, None, decodes=True):
        yield Batch.of(tensors)


def _pooled(
    seen: Shown, decoded: Decoded, about: pd.DataFrame, to: str
) -> tuple[np.ndarray, dict[str, Shift]]:
    """Expected expression of each cell, so that the mean of its group has the pooled shift."""
    expected, shifts = decoded.middle, {}
    for (group, source, pair), rows in about.groupby(["group", "from", "pair"]).indices.items():
        cells, middle = decoded.observed[rows], expected[rows].mean(0)
        own = decoded.after[rows].mean(0) - decoded.before[rows].mean(0)
        shifts[pair] = shift = seen.shift(own, cells, group, source, to)
        wanted = cells.mean(0) + shift.mean
        if (decoded.observed >= 0).all():
            wanted = wanted.clip(0)
            expected[rows] *= np.where(middle > 0, wanted / np.maximum(middle, 1e-12), 1.0)
        else:
            expected[rows] += wanted - middle
    return expected, shifts


def shown(model: Any, target_sum: float) -> Shown:
    """What the groups of the model's cells have shown, for all that is predicted."""
    return Shown.by(model, _batches(model, None), target_sum)


def _changed(
    decoded: Decoded,
    pairs: pd.Series,
    shifts: dict[str, Shift],
    target_sum: float,
    library_size: float | None,
    seed: int,
) -> sp.csr_matrix:
    """Counts of the cells themselves, thinned or added to, so that the mean of a group has the pooled shift.

    Which cells of a group rise most is what the decoder says.
    """
    assert decoded.counts is not None
    assert decoded.share is not None
    rng, parts, order = np.random.default_rng(seed), [], []
    for pair, rows in pairs.groupby(pairs).indices.items():
        counts, share = decoded.counts[rows], decoded.share[rows]
        wanted = (decoded.observed[rows].mean(0) + shifts[pair].mean).clip(0)
        pattern = share / np.maximum(share.mean(0), 1e-12)
        depth = np.asarray(counts.sum(axis=1)).ravel()
        depth = depth if library_size is None else np.full_like(depth, library_size)
        after = fractions_of(wanted, counts, depth, target_sum, seed, pattern)
        parts.append(redrawn(counts, after, depth, rng, pattern))
        order.append(rows)
    return sp.vstack(parts, format="csr")[np.argsort(np.concatenate(order))]


def _sampled(
    model: Any, cells: AnnData | None, code: int, route: str, library_size: float | None
) -> sp.csr_matrix:
    """Counts that the decoder draws for the cells after the change."""
    parts = []
    for batch in _batches(model, cells):
        q = model.module.encode(batch)
        latents = moved(model.module, batch, code, q, model.module.draw(q), route)
        changed = replace(batch, c=torch.full_like(batch.b, code))
        if library_size is not None:
            changed = replace(changed, log_ell=torch.full_like(batch.log_ell, float(np.log(library_size))))
        parts.append(sp.csr_matrix(model.module.decode(changed, latents)["x"].sample().cpu().numpy()))
    return sp.vstack(parts, format="csr")


def _as_anndata(
    model: Any,
    source: AnnData,
    to: str,
    about: pd.DataFrame,
    expected: np.ndarray,
    counts: Any,
    shifts: dict[str, Shift],
    how: How,
) -> AnnData:
    out = AnnData(expected.astype(np.float32), obs=source.obs.copy(), var=source.var[[]].copy())
    if counts is not None:
        out.layers["counts"] = counts
    out.obs = out.obs[[c for c in out.obs if not str(c).startswith("_scvi")]]
    out.obs[model.condition_key] = pd.Categorical([to] * out.n_obs, categories=model.conditions)
    out.obs["transfer_from"] = pd.Categorical(about["from"])
    out.obs["transfer_group"] = pd.Categorical(about["group"])
    said: dict[str, Any] = {"model": type(model).__name__, "to": to, "route": how.route}
    said["target_sum"] = how.target_sum
    if shifts:
        out.obs["transfer_far"] = [shifts[pair].far for pair in about["pair"]]
        names = [str(v) for v in out.var_names]
        safe = {k.replace("/", "|"): s for k, s in shifts.items()}  # as keys of an h5ad file
        said["shift"] = pd.DataFrame({k: s.mean for k, s in safe.items()}, index=names)
        said["sd"] = pd.DataFrame({k: s.sd for k, s in safe.items()}, index=names)
        said["learned_from"] = {k: s.others for k, s in safe.items()}
        if far := [k for k, s in shifts.items() if s.far]:
            warnings.warn(
                f"Far from what was seen under {to!r}: {', '.join(far)}. `.obs['transfer_far']` marks these "
                "cells; do not rely on what is predicted for them.",
                stacklevel=4,
            )
    out.uns["transfer"] = said
    return out
