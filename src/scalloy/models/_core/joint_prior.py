"""Prior that couples the codes of several modalities: its weights, its normalisation, and samples of it.

Each public function is a method of :class:`scalloy.POISEVAE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

from scalloy import _keys
from scalloy._arguments import check_latent, one_of, whole
from scalloy._seeds import seeded
from scalloy.blocks import gibbs
from scalloy.blocks.coupled_prior import SecondOrder
from scalloy.blocks.joint_posteriors import Coupled
from scalloy.data.modalities import names_key
from scalloy.models._core.aggregate import Aggregate, companions
from scalloy.models._core.cross_modal import (
    Model,
    get_latent_representation,
    get_variables,
    held_sparse,
    modalities,
    number,
)
from scalloy.models._core.protocols import weights_now
from scalloy.models._core.traverse import span

FROM = ("mixture", "prior", "posterior")
N_OF_EACH = 3  # samples of the code of each cell, to which a mixture is fitted


def _coupled(model: Model) -> Coupled:
    """Return the joint prior, which must be one of private codes."""
    if not isinstance(model.module.joint, Coupled):
        msg = "The modalities share one code, which nothing couples. Train with `joint='poise'`."
        raise ValueError(msg)
    return model.module.joint


def other_than(model: Model, k: int, to: str | None) -> int:
    """Return the number of a modality; if it is not named, that of the first one that is not ``k``."""
    return int(k == 0) if to is None else number(model, "to", to)


@torch.inference_mode()
def get_coupling(model: Model, of: str | None = None, to: str | None = None) -> pd.DataFrame:
    """Return the matrix that couples two codes, powers of the one x powers of the other.

    Rows and columns are named such as ``rna_0`` and ``prot_3^2``; an entry is the weight of the product of
    the two in the logarithm of the prior density.

    Parameters
    ----------
    of, to
        Names of two modalities, of the rows and the columns; by default the first and the second.

    Examples
    --------
    >>> poisevae.get_coupling().shape
    (20, 20)
    """
    pairs = _coupled(model).coupling()
    a = 0 if of is None else number(model, "of", of)
    b = other_than(model, a, to)
    if a == b:
        name = modalities(model)[a]
        msg = f"`of` and `to` both name {name!r}. A code is coupled with that of another modality."
        raise ValueError(msg)
    g = gibbs.toward(pairs, a, b).cpu().numpy()
    names = [
        [f"{modalities(model)[k]}_{i}{power}" for power in ("", "^2") for i in range(n // 2)]
        for k, n in zip((a, b), g.shape, strict=True)
    ]
    return pd.DataFrame(g, index=names[0], columns=names[1])


@torch.inference_mode()
def get_log_partition(
    model: Model, n_chains: int = 4096, n_steps: int = 400, seed: int = 0
) -> tuple[float, float]:
    """Return ``log Z`` of the prior and its standard error, by which the ELBO of all cells may be off.

    It is estimated by annealed importance sampling; training and evaluation use 1,024 chains and 100 steps.
    With ``joint="gaussian"`` and ``"independent"`` it is exact.

    Parameters
    ----------
    n_chains
        Number of chains.
    n_steps
        Number of annealing steps of each chain.
    seed
        Random seed.

    Examples
    --------
    >>> value, se = poisevae.get_log_partition(n_chains=64, n_steps=10)
    """
    whole(n_chains=n_chains, n_steps=n_steps)
    coupling = _coupled(model).coupling
    if not isinstance(coupling, SecondOrder):
        return float(coupling.log_partition()), 0.0
    generator = torch.Generator(model.module.device).manual_seed(seed)
    value, se = gibbs.log_partition(coupling(), n_chains=n_chains, n_steps=n_steps, generator=generator)
    return float(value), float(se)


@torch.inference_mode()
def get_mixing(model: Model, n_sweeps: int = 200, n_chains: int = 64, seed: int = 0) -> pd.DataFrame:
    """Return how well Gibbs chains mix: R-hat of each latent, and its correlation from sweep to sweep.

    R-hat (Gelman & Rubin 1992) near 1 means that chains from different starting points agree. Above 1.1 the
    prior has modes between which they hardly move, for instance because there are distinct types of cells.
    That is why :meth:`get_log_partition` and :meth:`generate` use annealing.

    Parameters
    ----------
    n_sweeps
        Number of sweeps, of which the second half is evaluated.
    n_chains
        Number of chains.
    seed
        Random seed.

    Returns
    -------
    Columns ``r_hat`` and ``autocorrelation``; one row for each latent of all modalities.

    Examples
    --------
    >>> list(poisevae.get_mixing(n_sweeps=20, n_chains=8))
    ['r_hat', 'autocorrelation']
    """
    whole(n_sweeps=n_sweeps, n_chains=n_chains)
    pairs = _coupled(model).coupling()
    generator = torch.Generator(model.module.device).manual_seed(seed)
    state, kept = gibbs.start(pairs, n_chains, generator), []
    for _ in range(n_sweeps):
        state = gibbs.sweep(state, pairs, generator=generator)
        kept.append(torch.cat(state, -1))
    values = torch.stack(kept)[n_sweeps // 2 :].cpu().numpy()
    within, between = values.var(0, ddof=1).mean(0), values.mean(0).var(0, ddof=1)
    centred = values - values.mean((0, 1))
    lag = (centred[1:] * centred[:-1]).mean((0, 1)) / centred.var((0, 1))
    names = [
        f"{name}_{i}" for name, z in zip(modalities(model), state, strict=True) for i in range(z.shape[1])
    ]
    r_hat = np.sqrt(1 - 1 / len(values) + between / within)
    return pd.DataFrame({"r_hat": r_hat, "autocorrelation": lag}, index=names)


@torch.inference_mode()
def generate(
    model: Model,
    n: int = 100,
    *,
    from_: Literal["mixture", "prior", "posterior"] = "mixture",
    n_steps: int = 200,
    seed: int = 0,
) -> AnnData:
    """Generate new cells with all modalities.

    Batch, covariates and library size of each new cell are those of one of the model's own cells: of one of
    those whose codes are nearest to the new code.

    Parameters
    ----------
    n
        Number of cells.
    from_
        Distribution of the codes. ``"prior"`` is that of the model, which also fills gaps between types of
        cells. ``"mixture"`` is a mixture of Gaussians that is fitted to the codes of the model's own cells at
        the first call, with as many components as their held-out likelihood supports. ``"posterior"`` draws
        the codes of each cell from the posterior of one of the model's own cells.
    n_steps
        Number of annealing steps of the Gibbs chains, from standard normals to the prior; see
        :func:`scalloy.blocks.gibbs.sample`. Only for ``from_="prior"``.
    seed
        Random seed.

    Returns
    -------
    AnnData with samples of the first modality in ``.X`` and of the others in ``.obsm`` under their names:
    counts, or values that other likelihoods draw. The codes are in ``.obsm["X_poisevae"]``.

    Examples
    --------
    >>> made = poisevae.generate(50)
    >>> made.shape, made.obsm["prot"].shape
    ((50, 40), (50, 3))
    """
    whole(n=n, n_steps=n_steps)
    codes, rows = _new_codes(model, n, one_of("from_", from_, FROM), n_steps, seed)
    parts, begin, joint = [], 0, model.module.joint
    sparse = [k for k in range(1, len(modalities(model))) if held_sparse(model, k)]
    with seeded(seed):
        for batch in model.reader.batches(None, rows, None, decodes=True):
            drawn = torch.from_numpy(codes[begin : begin + len(batch.b)]).float().to(batch.b.device)
            begin += len(batch.b)
            p = model.module.decode(batch, joint.apart(drawn))
            arrays = [p[letter].sample().cpu().numpy() for letter in model.module.letters]
            parts.append([sp.csr_matrix(v) if k in sparse else v for k, v in enumerate(arrays)])
    x, *others = (sp.vstack(v, "csr") if sp.issparse(v[0]) else np.concatenate(v) for v in zip(*parts))
    first, *names = modalities(model)
    out = AnnData(x, var=pd.DataFrame(index=get_variables(model, first)))
    out.obs_names = [f"generated_{i}" for i in range(n)]
    for name, values in zip(names, others, strict=True):
        variables = get_variables(model, name)
        if sp.issparse(values):
            out.obsm[name], out.uns[names_key(name)] = values, np.asarray(variables)
        else:
            out.obsm[name] = pd.DataFrame(values, index=out.obs_names, columns=variables)
    out.obsm[_keys.latent(model.name)] = codes.astype(np.float32)
    out.uns["generated"] = {"model": type(model).__name__, "from": from_}
    return out


def _new_codes(model: Model, n: int, source: str, n_steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return new codes, and the row of the cell whose batch, covariates and library size each one takes."""
    rng, joint = np.random.default_rng(seed), model.module.joint
    if source == "posterior":
        rows = rng.integers(len(model.reader.names()), size=n)
        codes = get_latent_representation(model, indices=rows.tolist(), give_mean=False, seed=seed)
        return codes, rows
    if source == "prior":
        with seeded(seed):
            codes = joint.together(joint.prior(n, n_steps)).cpu().numpy()
    else:
        codes = _mixture(model).draw(n, rng)
    return codes, companions(codes, get_latent_representation(model), rng)


def _mixture(model: Model) -> Aggregate:
    """Return the mixture of the codes of the model's own cells, which is kept until the weights change."""
    key = ("mixture of codes", weights_now(model))
    if key not in model._kept:
        model._kept.clear()
        samples = [get_latent_representation(model, give_mean=False, seed=seed) for seed in range(N_OF_EACH)]
        model._kept[key] = Aggregate(np.stack(samples), seed=model.seed)
    return model._kept[key]


@torch.inference_mode()
def get_cross_traversal(
    model: Model,
    latent: int,
    of: str,
    to: str | None = None,
    values: Sequence[float] | None = None,
    *,
    n_steps: int = 7,
    n_samples: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Return mean expression in one modality along a latent of another, through the prior.

    The code of the one is drawn from the prior, given that of the other.

    Parameters
    ----------
    latent
        Number of the latent, from 0.
    of
        Modality of the latent.
    to
        Modality whose expression is returned; ``None`` is the first other one.
    values
        Values that the latent takes; ``None`` is ``n_steps`` values from low to high among the cells.
    n_steps
        Number of values.
    n_samples
        Largest number of cells to begin from; their other latents stay as they are.
    seed
        Random seed of the choice of cells and of the samples.

    Returns
    -------
    One row for each value (the index), one column for each variable: ``log1p`` of counts (those of genes
    scaled to 10,000), or other data as they are.

    Examples
    --------
    >>> poisevae.get_cross_traversal(0, of="prot", to="rna", n_steps=3).shape
    (3, 40)
    """
    whole(n_steps=n_steps, n_samples=n_samples)
    a = number(model, "of", of)
    b = other_than(model, a, to)
    coupled, codes = _coupled(model), get_latent_representation(model, which=of)
    check_latent(latent, codes.shape[1])
    at = np.linspace(*span(codes[:, latent]), n_steps) if values is None else np.asarray(values, float)
    rows = np.random.default_rng(seed).choice(len(codes), min(n_samples, len(codes)), replace=False)
    out = []
    for value in at:
        total = []
        with seeded(seed):  # the same draws for each value
            for batch in model.reader.batches(None, rows, None, decodes=True):
                z = model.module.encode(batch)[coupled.letters[a]].mean.clone()
                z[:, latent] = float(value)
                p = model.module.decode_one(b, batch, coupled.from_one(z, a))
                likelihood = model.module.likelihoods[b]
                logged = b > 0 and likelihood.depth != "total" and likelihood.has_log_scale
                total.append(p.mean.log1p() if logged else likelihood.predicted(p))
            out.append(torch.cat(total).mean(0).cpu().numpy())
    return pd.DataFrame(np.stack(out), index=at, columns=get_variables(model, modalities(model)[b]))
