"""Cells that were never measured, drawn from the mixture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

from scalloy._seeds import seeded
from scalloy.data.pieces import occurring
from scalloy.models import _options
from scalloy.vae.base import Batch


def generate(
    model: Any,
    n: int,
    *,
    cluster: str | None,
    to: str | None,
    library_size: float | None,
    noise: bool,
    seed: int,
) -> AnnData:
    """The body of :meth:`scalloy.CGMDVAE.generate`.

    Batch, covariates and library size of each cell are those of a cell of the same cluster that the model was
    trained on: a template.
    """
    _options.whole(n=n)
    _options.totals(None, library_size=library_size)
    if model.adata is None:
        msg = (
            "Batches and library sizes are taken from the cells that the model was trained on, and it was "
            "loaded without them. Pass `adata=` to `load`."
        )
        raise ValueError(msg)
    names, prior = model.cluster_names, model.module.prior
    only = None if cluster is None else names.index(_options.category("cluster", cluster, names))
    to = None if to is None else _options.category("condition", to, model.conditions)
    code = None if to is None else model.conditions.index(to)
    clusters = np.asarray(model.get_clusters().cat.codes)
    rng = np.random.default_rng(seed)
    with torch.no_grad(), seeded(seed):
        rows = rng.choice(templates(clusters, only), n)
        parts, components = [], []
        for tensors in model._read(None, rows, None, decodes=True):
            batch = Batch.of(tensors)
            c = batch.condition if code is None else torch.full_like(batch.b, code)
            batch = replace(batch, c=c)
            if library_size is not None:
                batch = replace(batch, log_ell=torch.full_like(batch.log_ell, float(np.log(library_size))))
            latents, k = draw(model.module, batch, only)
            p = model.module.decode(batch, latents)["x"]
            x = p.sample() if noise else p.mean
            parts.append(sp.csr_matrix(x.cpu().numpy()))
            components.append(prior.cluster_of[k].cpu().numpy())
    return _as_anndata(model, sp.vstack(parts, format="csr"), np.concatenate(components), rows, to)


def templates(clusters: np.ndarray, only: int | None) -> np.ndarray:
    """Rows of the cells that may serve; all of them where the cluster has none."""
    rows = np.arange(len(clusters)) if only is None else np.flatnonzero(clusters == only)
    return rows if len(rows) else np.arange(len(clusters))


def draw(module: Any, batch: Batch, only: int | None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Draw latents from the prior, and the component of each cell with its weight ``E pi``."""
    prior, c, latents = module.prior, batch.condition, {}
    if module.enc_w is not None:
        latents["w"] = module.style.at(c).sample()
    p_z = prior.density(c, latents.get("w"))
    log_pi = p_z.log_pi.expand(len(c), -1)
    if only is not None:
        log_pi = log_pi.masked_fill(prior.cluster_of != only, -torch.inf)
    k = torch.distributions.Categorical(logits=log_pi).sample()
    return {**latents, "z": torch.normal(*p_z.of_component(k))}, k


def _as_anndata(model: Any, x: Any, clusters: np.ndarray, rows: np.ndarray, to: str | None) -> AnnData:
    given = model.registry["setup_args"]
    keys = [given.get("batch_key"), *(given.get("categorical_covariate_keys") or ())]
    keys = [k for k in (*keys, model.condition_key) if k]
    obs = model.adata.obs[keys].iloc[rows].copy()
    obs.index = [f"generated_{i}" for i in range(len(rows))]
    obs["cluster"] = pd.Categorical.from_codes(clusters, categories=model.cluster_names)
    if to is not None:
        obs[model.condition_key] = pd.Categorical([to] * len(obs), categories=model.conditions)
    out = AnnData(x, obs=occurring(obs), var=pd.DataFrame(index=model.get_var_names()))
    out.uns["generated"] = {"model": type(model).__name__, "clusters": list(model.cluster_names)}
    return out
