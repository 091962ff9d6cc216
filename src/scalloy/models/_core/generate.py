"""Generation of new cells from the prior of a model, or from its aggregate posterior.

A model describes the counts of a cell given its batch, condition and library size, of which it has no
distribution. New cells have those of the model's own cells, their templates:

    prior        z ~ p(z | c), of a mixture within the cluster y ~ p(y | c); the template is one of the cells
                 of that cluster under that condition
    posterior    z ~ q(z | x) of the template, so that all z together follow the aggregate posterior
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS

from scalloy._arguments import category, one_of, totals, whole
from scalloy._keys import CONDITION_KEY
from scalloy._seeds import seeded
from scalloy.blocks.mixture_prior import MixturePrior
from scalloy.data.chunks import occurring
from scalloy.models._core.clusters import cluster_names, get_clusters
from scalloy.models._core.protocols import ModelOf
from scalloy.vae.base import Batch, VAEModule

SOURCES = ("prior", "posterior")


def generate(
    model: ModelOf[Any],
    n: int,
    *,
    from_: Literal["prior", "posterior"] | None = None,
    cluster: str | None = None,
    condition: str | None = None,
    batch: str | None = None,
    indices: Sequence[int] | None = None,
    library_size: float | None = None,
    noise: bool = True,
    seed: int = 0,
) -> AnnData:
    """Generate new cells.

    Batch, condition, covariates and library size of each new cell are those of a template, one of the model's
    own cells. Of these, only cells of the given cluster, condition and batch are templates, as far as there
    are any.

    Parameters
    ----------
    n
        Number of cells.
    from_
        Distribution of the latents. ``"prior"`` is that of the model. ``"posterior"`` is the aggregate
        posterior: the latents of each cell are drawn from the posterior of its template, so cells are new
        but near to one of the model's own. Where the prior is the same whatever the cells are (VAE, BetaVAE,
        TRVAE, and BetaVSC with ``prior="fixed"``), the posteriors do not fill it evenly, and what lies
        between them are no cells. So ``None`` is ``"prior"`` for models that learn their prior (GMVAE,
        CGMDVAE, and BetaVSC with ``prior="pseudo"``), and ``"posterior"`` for the others.
        ``.uns["generated"]`` says which it was.
    cluster
        Name of the cluster of all cells, for models with a mixture; ``None`` draws clusters by the weights of
        the mixture, or takes those of the templates.
    condition
        Condition of the cells; ``None`` uses that of their templates.
    batch
        Batch of the cells; ``None`` uses that of their templates.
    indices
        Row numbers or a mask of the cells that can be templates; ``None`` is all cells.
    library_size
        Total count of each cell; ``None`` uses that of its template, or if the model learns library sizes,
        one that it draws.
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
    if library_size is not None and model.init_params_["non_kwargs"].get("library") == "none":
        msg = f"`library_size={library_size}` has no meaning for a model with `library='none'`; leave it out."
        raise ValueError(msg)
    usual = "prior" if model.module.learns_prior else "posterior"
    source = usual if from_ is None else one_of("from_", from_, SOURCES)
    asked = Asked.of(model, {"cluster": cluster, "condition": condition, "batch": batch})
    allowed = model.reader.rows(None, indices)
    rng, own = np.random.default_rng(seed), Own.of(model)
    with torch.no_grad(), seeded(seed):
        rows = rng.choice(templates(own, asked, allowed, source), n)
        codes = own.clusters[rows] if own.clusters is not None else None
        if codes is not None and source == "prior":
            under = own.conditions[rows] if asked.condition is None else np.full(n, asked.condition)
            codes = (
                drawn_clusters(model.module, under, rng)
                if asked.cluster is None
                else codes * 0 + asked.cluster
            )
            rows = alike(own, rows, codes, allowed, rng)
        parts, begin = [], 0
        for cells in model.reader.batches(None, rows, decodes=True):
            some = None if codes is None else codes[begin : begin + len(cells.b)]
            begin += len(cells.b)
            parts.append(_observed(model.module, cells, asked, some, source, library_size, noise=noise))
    return _as_anndata(model, sp.vstack(parts, format="csr"), codes, rows, asked, source)


@dataclass(frozen=True)
class Asked:
    """Numbers of the cluster, condition and batch that all new cells are to have; ``None`` leaves them open.

    ``names`` has the names of condition and batch that were asked for, by the columns that they are in.
    """

    cluster: int | None
    condition: int | None
    batch: int | None
    names: Mapping[str, tuple[str, list[str]]]

    @classmethod
    def of(cls, model: ModelOf[Any], given: Mapping[str, str | None]) -> Asked:
        """Look up what was given among the names that the model knows."""
        setup, names = model.registry["setup_args"], dict[str, tuple[str, list[str]]]()
        codes: dict[str, int | None] = {}
        for what, known in _known(model).items():
            if (value := given[what]) is None:
                codes[what] = None
                continue
            if not known:
                hint = "Use GMVAE or CGMDVAE, or pass `indices=` of cells that the new ones are to be like."
                to_do = (
                    hint if what == "cluster" else f"Leave it out, or pass `{what}_key=` to `setup_anndata`."
                )
                msg = f"`{what}={value!r}`: the {type(model).__name__} knows no {what}. {to_do}"
                raise ValueError(msg)
            name = category(what, value, known)
            codes[what] = known.index(name)
            if what != "cluster":
                names[setup[f"{what}_key"]] = (name, known)
        return cls(**codes, names=names)


def _known(model: ModelOf[Any]) -> dict[str, list[str]]:
    """Return the clusters, conditions and batches that a model knows; none where it was set up without."""
    setup, fields = model.registry["setup_args"], model.registry["field_registries"]
    batches = fields[REGISTRY_KEYS.BATCH_KEY]["state_registry"]["categorical_mapping"]
    return {
        "cluster": cluster_names(model) if _has_clusters(model) else [],
        "condition": model.reader.conditions if setup.get("condition_key") is not None else [],
        "batch": [str(k) for k in batches] if setup.get("batch_key") is not None else [],
    }


def _has_clusters(model: ModelOf[Any]) -> bool:
    """Return whether the prior of a model is a mixture whose components make clusters."""
    return isinstance(getattr(model.module, "prior", None), MixturePrior)


@dataclass(frozen=True)
class Own:
    """Number of the cluster (``None``: there are none), condition and batch of each of the model's cells."""

    clusters: np.ndarray | None
    conditions: np.ndarray
    batches: np.ndarray

    @classmethod
    def of(cls, model: ModelOf[Any]) -> Own:
        """Read them from the cells of a model."""
        columns = model.reader.table().columns
        b = np.asarray(columns[REGISTRY_KEYS.BATCH_KEY]).ravel().astype(int)
        c = np.asarray(columns[CONDITION_KEY]).ravel().astype(int) if CONDITION_KEY in columns else 0 * b
        return cls(np.asarray(get_clusters(model).cat.codes) if _has_clusters(model) else None, c, b)


def templates(own: Own, asked: Asked, allowed: np.ndarray, source: str) -> np.ndarray:
    """Return the rows of the cells that can be templates.

    Those of the cluster come first, then as far as there are any of them those of the condition, and of the
    batch.

    Parameters
    ----------
    own
        Cluster, condition and batch of each of the model's cells.
    asked
        Those that the new cells are to have.
    allowed
        Rows of the cells to choose from.
    source
        ``"prior"`` or ``"posterior"``.
    """
    rows = allowed
    for what, codes, wanted in (
        ("cluster", own.clusters, asked.cluster),
        ("condition", own.conditions, asked.condition),
        ("batch", own.batches, asked.batch),
    ):
        if wanted is None or codes is None:
            continue
        fewer = rows[codes[rows] == wanted]
        if len(fewer) == 0 and what == "cluster" and source == "posterior":
            msg = "No cell is in that cluster, so there is no posterior to draw from. Pass `from_='prior'`."
            raise ValueError(msg)
        rows = fewer if len(fewer) else rows
    return rows


def drawn_clusters(module: Any, conditions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the cluster of each new cell by the weights of the mixture under its condition."""
    under = torch.as_tensor(np.unique(conditions), device=module.device)
    shares = module.prior.shares(under).double().cpu().numpy()
    shares = shares[np.searchsorted(np.unique(conditions), conditions)].cumsum(1)
    return (rng.random((len(shares), 1)) * shares[:, -1:] > shares).sum(1)


def alike(
    own: Own, rows: np.ndarray, clusters: np.ndarray, allowed: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Replace templates by cells of the cluster that was drawn, under the same condition in the same batch.

    A template stays where there is no such cell.
    """
    assert own.clusters is not None
    rows, beside = rows.copy(), np.stack([own.clusters, own.conditions, own.batches], 1)
    wanted = beside[rows]
    wanted[:, 0] = clusters
    for key in np.unique(wanted, axis=0):
        own_kind, there = (wanted == key).all(1), allowed[(beside[allowed] == key).all(1)]
        if len(there):
            rows[own_kind] = rng.choice(there, own_kind.sum())
    return rows


def _observed(
    module: VAEModule,
    cells: Batch,
    asked: Asked,
    clusters: np.ndarray | None,
    source: str,
    library_size: float | None,
    *,
    noise: bool,
) -> sp.csr_matrix:
    """Return observations of new cells whose templates are given."""
    q = module.encode(cells) if source == "posterior" else None
    c = cells.condition if asked.condition is None else torch.full_like(cells.b, asked.condition)
    b = cells.b if asked.batch is None else torch.full_like(cells.b, asked.batch)
    cells = replace(cells, b=b, c=c)
    if q is not None:
        latents = module.draw(q)
    else:
        k = None if clusters is None else torch.as_tensor(clusters, device=b.device)
        latents = module.from_prior(cells, k)
    if library_size is not None:
        log_ell = torch.full_like(cells.log_ell, float(np.log(library_size)))
        cells = replace(cells, log_ell=log_ell)
        latents |= {"ell": log_ell} if "ell" in latents else {}
    p = module.decode(cells, latents)["x"]
    return sp.csr_matrix((p.sample() if noise else p.mean).cpu().numpy())


def _as_anndata(
    model: ModelOf[Any],
    x: sp.csr_matrix,
    clusters: np.ndarray | None,
    rows: np.ndarray,
    asked: Asked,
    source: str,
) -> AnnData:
    """Return the new cells with the columns of their templates."""
    given = model.registry["setup_args"]
    keys = [given.get("batch_key"), given.get("donor_key"), *(given.get("categorical_covariate_keys") or ())]
    keys = list(dict.fromkeys(k for k in (*keys, given.get("condition_key")) if k))
    obs = model.reader.cells().obs[keys].iloc[rows].copy()
    obs.index = [f"generated_{i}" for i in range(len(rows))]
    about: dict[str, Any] = {"model": type(model).__name__, "from": source}
    if clusters is not None:
        about["clusters"] = list(cluster_names(model))
        obs["cluster"] = pd.Categorical.from_codes(clusters, categories=about["clusters"])
    for key, (name, known) in asked.names.items():
        obs[key] = pd.Categorical([name] * len(obs), categories=known)
    out = AnnData(x, obs=occurring(obs), var=pd.DataFrame(index=model.reader.var_names))
    out.uns["generated"] = about
    return out
