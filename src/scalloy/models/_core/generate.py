"""Generation of new cells from a mixture prior; :func:`generate` is a method of :class:`scalloy.CGMDVAE`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

from scalloy._arguments import category, totals, whole
from scalloy._seeds import seeded
from scalloy.data.chunks import occurring
from scalloy.models._core.clusters import cluster_names, get_clusters
from scalloy.models._core.protocols import Conditioned
from scalloy.vae.base import Batch, Latents
from scalloy.vae.cgmdvae import CGMDVAE


def generate(
    model: Conditioned[CGMDVAE],
    n: int,
    *,
    cluster: str | None = None,
    condition: str | None = None,
    library_size: float | None = None,
    noise: bool = True,
    seed: int = 0,
) -> AnnData:
    """Generate new cells from the prior of ``z``.

    Batch, covariates and library size of each new cell are those of a template: one of the model's own cells,
    of the given cluster if there is one.

    Parameters
    ----------
    n
        Number of cells.
    cluster
        Name of the cluster of all cells; ``None`` draws clusters by the weights of the mixture.
    condition
        Condition of the cells; ``None`` uses that of their templates.
    library_size
        Total count of each cell; ``None`` uses that of its template.
    noise
        Whether to draw observations from the likelihood; ``False`` returns their means, which vary less.
    seed
        Random seed.

    Returns
    -------
    AnnData with batch, categorical covariates, condition and cluster in ``.obs``. ``.X`` has what the
    likelihood describes: counts; for ``"gaussian"`` and ``"mse"`` log-normalised expression; for
    ``"bernoulli"`` whether each gene is detected; for ``"normal"`` and ``"bernoulli_given"`` values like the
    data.

    Examples
    --------
    >>> model.generate(50, condition="treated_1").shape
    (50, 40)
    """
    whole(n=n)
    totals(None, library_size=library_size)
    if model.adata is None:
        msg = (
            "Batches and library sizes are taken from the cells that the model was trained on, and it was "
            "loaded without them. Pass `adata=` to `load`."
        )
        raise ValueError(msg)
    names, prior = cluster_names(model), model.module.prior
    only = None if cluster is None else names.index(category("cluster", cluster, names))
    to = None if condition is None else category("condition", condition, model.reader.conditions)
    code = None if to is None else model.reader.conditions.index(to)
    clusters = np.asarray(get_clusters(model).cat.codes)
    rng = np.random.default_rng(seed)
    with torch.no_grad(), seeded(seed):
        rows = rng.choice(templates(clusters, only), n)
        parts, components = [], []
        for batch in model.reader.batches(None, rows, decodes=True):
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
    """Return the rows of the cells that can be templates; all of them if the cluster has no cells.

    Parameters
    ----------
    clusters
        Number of the cluster of each cell.
    only
        Number of the cluster to draw from; ``None`` is all clusters.
    """
    rows = np.arange(len(clusters)) if only is None else np.flatnonzero(clusters == only)
    return rows if len(rows) else np.arange(len(clusters))


def draw(module: CGMDVAE, batch: Batch, only: int | None) -> tuple[Latents, torch.Tensor]:
    """Draw latents from the prior, and the component of each cell with the weights ``E pi``.

    Parameters
    ----------
    module
        Module of the model.
    batch
        Templates of the cells, with the condition to draw under.
    only
        Number of the cluster to draw from; ``None`` is all clusters.
    """
    prior, c, latents = module.prior, batch.condition, Latents()
    if module.enc_w is not None:
        latents["w"] = module.style.at(c).sample()
    p_z = prior.density(c, latents.get("w"))
    log_pi = p_z.log_pi.expand(len(c), -1)
    if only is not None:
        log_pi = log_pi.masked_fill(prior.cluster_of != only, -torch.inf)
    k = torch.distributions.Categorical(logits=log_pi).sample()
    return {**latents, "z": torch.normal(*p_z.of_component(k))}, k


def _as_anndata(
    model: Conditioned[CGMDVAE], x: sp.csr_matrix, clusters: np.ndarray, rows: np.ndarray, to: str | None
) -> AnnData:
    """Return the new cells with the columns of their templates."""
    given = model.registry["setup_args"]
    keys = [given.get("batch_key"), given.get("donor_key"), *(given.get("categorical_covariate_keys") or ())]
    keys = [k for k in (*keys, model.condition_key) if k]
    obs = model.reader.cells().obs[keys].iloc[rows].copy()
    obs.index = [f"generated_{i}" for i in range(len(rows))]
    obs["cluster"] = pd.Categorical.from_codes(clusters, categories=cluster_names(model))
    if to is not None:
        obs[model.condition_key] = pd.Categorical([to] * len(obs), categories=model.reader.conditions)
    out = AnnData(x, obs=occurring(obs), var=pd.DataFrame(index=model.reader.var_names))
    out.uns["generated"] = {"model": type(model).__name__, "clusters": list(cluster_names(model))}
    return out
