"""Codes of several modalities, reconstruction errors, and prediction of one modality from others.

The functions for users are methods of :class:`scalloy.POISEVAE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from scalloy import _keys
from scalloy._arguments import one_of, whole
from scalloy._seeds import seeded
from scalloy.blocks.distributions import CountDistribution
from scalloy.blocks.expected_log1p import mean_log1p
from scalloy.blocks.likelihoods import Likelihood
from scalloy.kernels.csr import log_normalise, map_values
from scalloy.models._core.evidence import or_held_out
from scalloy.models._core.modality_layout import SPARSE
from scalloy.models._core.protocols import ModelOf
from scalloy.vae.base import Batch, Distributions, is_sparse
from scalloy.vae.poisevae import POISEVAE

Frames = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


class Model(ModelOf[POISEVAE], Protocol):
    """A model of several modalities, with the name of the likelihood of each."""

    likelihoods: dict[str, str]


N_SAMPLES = 50  # samples of the codes over which a prediction is averaged


def modalities(model: Model) -> tuple[str, ...]:
    """Names of the modalities.

    Examples
    --------
    >>> poisevae.modalities
    ('rna', 'prot')
    """
    return tuple(model.reader.set_up_with["modalities"])


def number(model: Model, argument: str, name: str) -> int:
    """Return the number of a modality, from 0."""
    return modalities(model).index(one_of(argument, name, modalities(model)))


def get_variables(model: Model, modality: str) -> list[str]:
    """Return the names of the variables of a modality, such as genes or proteins.

    Parameters
    ----------
    modality
        Name of the modality.

    Examples
    --------
    >>> poisevae.get_variables("prot")
    ['protein_0', 'protein_1', 'protein_2']
    """
    k, fields = number(model, "modality", modality), model.registry["field_registries"]
    first = k == 0
    names = model.reader.var_names if first else _state(fields, k)["column_names"]
    return [str(name) for name in names]


def _state(fields: dict[str, Any], k: int) -> dict[str, Any]:
    """Return what the registry knows of a modality in ``.obsm``."""
    return fields[_keys.OTHER_KEYS[k - 1]]["state_registry"]


def held_sparse(model: Model, k: int) -> bool:
    """Return whether a modality in ``.obsm`` is sparse, so that a row of zeros was not measured."""
    return bool(_state(model.registry["field_registries"], k).get(SPARSE))


# codes --------------------------------------------------------------------------------------


@torch.inference_mode()
def get_latent_representation(
    model: Model,
    adata: Any = None,
    indices: Sequence[int] | None = None,
    give_mean: bool = True,
    batch_size: int | None = None,
    return_dist: bool = False,
    which: str = "joint",
    seed: int | None = None,
) -> Any:
    """Return the code of each cell, given everything that was measured of it.

    Parameters
    ----------
    adata
        New cells, AnnData or MuData, which may lack a modality; ``None`` is the model's own.
    indices
        Row numbers or a mask; ``None`` is all cells.
    give_mean
        Whether to return the posterior mean rather than a sample.
    batch_size
        Number of cells that are encoded at a time.
    return_dist
        Whether to return the mean and the variance of the posterior.
    which
        ``"joint"`` returns the codes of all modalities side by side (or the shared code, if there is one);
        the name of a modality returns its code.
    seed
        Random seed of the sample; ``None`` is that of the model.

    Examples
    --------
    >>> poisevae.get_latent_representation().shape
    (200, 20)
    >>> poisevae.get_latent_representation(which="prot").shape
    (200, 10)
    """
    letters = model.module.joint.letters
    which = one_of("which", which, ("joint", *modalities(model), *letters))
    latent = dict(zip(modalities(model), letters, strict=True)).get(which, which)
    out: list[tuple[torch.Tensor, ...]] = []
    with seeded(seed, model.seed):
        for batch in model.reader.batches(adata, indices, batch_size):
            q = model.module.encode(batch)
            if give_mean or return_dist:
                joint = model.module.joint
                known = joint.code(q) if latent == "joint" else joint.codes(q)[latent]
                out.append(known if return_dist else known[:1])
            else:
                drawn = model.module.draw(q)
                out.append((model.module.joint.together(drawn) if latent == "joint" else drawn[latent],))
    arrays = tuple(torch.cat(part).cpu().numpy() for part in zip(*out, strict=True))
    return arrays if return_dist else arrays[0]


def get_reconstruction_error(
    model: Model,
    adata: Any = None,
    indices: Sequence[int] | None = None,
    batch_size: int | None = None,
    return_mean: bool = True,
    seed: int | None = None,
) -> dict[str, float | np.ndarray]:
    """Return ``-log p(x | latents)`` in nats per cell, of all modalities and of each; lower is better.

    Parameters
    ----------
    adata
        New cells, AnnData or MuData, which may lack a modality; ``None`` is the model's own.
    indices
        Row numbers or a mask. With neither ``adata`` nor ``indices``, the cells that training left out are
        used (:meth:`held_out`).
    batch_size
        Number of cells that are decoded at a time.
    return_mean
        Whether to average over cells.
    seed
        Random seed; ``None`` is that of the model.

    Examples
    --------
    >>> list(poisevae.get_reconstruction_error())
    ['reconstruction_loss', 'rna', 'prot']
    """

    def recon(batch: Batch) -> torch.Tensor:
        p = model.module.decode(batch, model.module.draw(model.module.encode(batch)))
        return -torch.stack(model.module.log_likelihoods(batch, p), -1)

    rows = or_held_out(model, adata, indices)
    each = model.reader.per_cell(recon, adata, rows, batch_size, seed).astype(np.float64)
    values = {"reconstruction_loss": each.sum(-1), **dict(zip(modalities(model), each.T, strict=True))}
    return {k: float(v.mean()) for k, v in values.items()} if return_mean else values


# from some to another -----------------------------------------------------------------------


@torch.inference_mode()
def predict(
    model: Model,
    modality: str,
    from_: str | Sequence[str] | None = None,
    adata: Any = None,
    indices: Sequence[int] | None = None,
    *,
    scale: str = "counts",
    n_samples: int = N_SAMPLES,
    interval: float | None = None,
    transform_batch: Any = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> pd.DataFrame | Frames:
    """Predict a modality of each cell, from others or from everything that was measured.

    Parameters
    ----------
    modality
        Name of the modality to predict, such as ``"prot"``.
    from_
        Name or names of the modalities to predict from. ``None`` uses everything that was measured of each
        cell: it completes cells that lack a modality, and removes noise from the others.
    adata
        New cells, AnnData or MuData, which may lack a modality; ``None`` is the model's own.
    indices
        Row numbers or a mask; ``None`` is all cells.
    scale
        ``"counts"`` returns expected counts (with the mean total in cells of which it is not used), or other
        data as they are. ``"log1p"`` returns the expected ``log1p`` of counts; those of the first modality,
        and of others whose rates are shares of a total, are scaled to 10,000 per cell.
    n_samples
        Number of samples of the codes over which the mean is taken.
    interval
        Probability with which a value lies within an interval, such as 0.9; ``None`` returns no interval.
    transform_batch
        Batch in which the cells are decoded; ``None`` is their own.
    batch_size
        Number of cells that are decoded at a time.
    seed
        Random seed.

    Returns
    -------
    Mean for each cell and variable. With ``interval``, ``(mean, low, high)``: the bounds are quantiles of the
    samples on the same scale, for which ``n_samples`` should be 200 or more.

    Examples
    --------
    >>> rna_only = adata[:20].copy()
    >>> del rna_only.obsm["protein_counts"]
    >>> poisevae.predict("prot", from_="rna", adata=rna_only).shape
    (20, 3)
    """
    side, names = number(model, "modality", modality), [from_] if isinstance(from_, str) else from_
    seen = None if names is None else [number(model, "from_", name) for name in names]
    _check_scale(model, scale, side)
    whole(n_samples=n_samples)
    if interval is not None and not 0 < interval < 1:
        msg = f"`interval={interval}` is a probability: pass a number between 0 and 1."
        raise ValueError(msg)
    code, parts = model.reader.batch_code(transform_batch), []
    with seeded(seed):
        for batch in model.reader.batches(adata, indices, batch_size, decodes=True):
            batch = only(batch, seen)
            batch = batch if code is None else replace(batch, b=torch.full_like(batch.b, code))
            parts.append(predicted(model, batch, side, scale, n_samples, interval))
    names, columns = model.reader.names(adata, indices), get_variables(model, modality)
    frames = [
        pd.DataFrame(torch.cat(v).cpu().numpy(), index=names, columns=columns)
        for v in zip(*parts, strict=True)
    ]
    return frames[0] if interval is None else tuple(frames)


def _check_scale(model: Model, scale: str, side: int) -> None:
    """Raise an error if the values of a modality do not have this scale."""
    likelihood, name = model.module.likelihoods[side], modalities(model)[side]
    if one_of("scale", scale, ("counts", "log1p")) == "log1p" and not likelihood.has_log_scale:
        msg = (
            f"`scale='log1p'` has no meaning for {name!r}, whose likelihood {model.likelihoods[name]!r} "
            "is not for counts. Pass `scale='counts'` for the values as they are."
        )
        raise ValueError(msg)


def predicted(
    model: Model,
    batch: Batch,
    side: int,
    scale: str = "counts",
    n_samples: int = N_SAMPLES,
    interval: float | None = None,
    q: Distributions | None = None,
) -> tuple[torch.Tensor, ...]:
    """Return the predicted mean of a modality for a batch of cells, and the bounds of the interval if any.

    Parameters
    ----------
    model
        A trained model.
    batch
        Cells, as the encoders are to see them.
    side
        Number of the modality to predict.
    scale, n_samples, interval
        As in :meth:`~scalloy.POISEVAE.predict`.
    q
        Posterior of the cells; ``None`` encodes them.
    """
    q, total, drawn = q or model.module.encode(batch), torch.zeros(()), []
    likelihood, log_ell = model.module.likelihoods[side], model.module.log_total(side, batch)
    shares = side == 0 or likelihood.depth == "total"
    for _ in range(n_samples):
        p = model.module.decode_one(side, batch, model.module.draw(q))
        if interval is not None:
            x, logs = p.sample(), scale == "log1p"
            drawn.append(_logged(likelihood, x, shares) if logs else likelihood.unlogged(x, log_ell))
        if scale == "counts":
            total = total + likelihood.expected(p, log_ell)
        elif shares:
            total = total + likelihood.mean_observed(p)
        else:
            assert isinstance(p, CountDistribution)
            total = total + mean_log1p(p)
    mean = total / n_samples
    if interval is None:
        return (mean,)
    values = torch.stack(drawn)
    return mean, *(values.quantile(k, 0) for k in (0.5 - interval / 2, 0.5 + interval / 2))


def _logged(likelihood: Likelihood, x: torch.Tensor, shares: bool) -> torch.Tensor:
    """Return samples as ``log1p``, scaled if they are shares, unless the likelihood draws them so already."""
    logged = log_normalise if shares else torch.log1p
    return logged(x) if likelihood.draws_counts else x


def only(batch: Batch, sides: Sequence[int] | None) -> Batch:
    """Return the cells with only some modalities; the others then count as not measured.

    Parameters
    ----------
    batch
        Cells.
    sides
        Numbers of the modalities to keep; ``None`` keeps all.
    """
    if sides is None:
        return batch
    x = batch.x if 0 in sides else map_values(batch.x, torch.zeros_like)
    return replace(
        batch, x=x, others=tuple(v if k in sides else _hidden(v) for k, v in enumerate(batch.others, 1))
    )


def _hidden(x: torch.Tensor) -> torch.Tensor:
    return map_values(x, torch.zeros_like) if is_sparse(x) else torch.full_like(x, torch.nan)
