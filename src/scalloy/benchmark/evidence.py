"""Held-out evidence of our VAE and of ``scvi.model.SCVI`` by one and the same function.

Both give the parameters of the same densities; log-likelihood, KL and importance weights are computed
here, from dense counts, and by neither package's own getters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scvi
import torch
from scvi.dataloaders import AnnDataLoader
from scvi.model import SCVI
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from scalloy._seeds import seeded
from scalloy.blocks import distributions as dist
from scalloy.vae.base import Batch


class Cell(NamedTuple):
    """Some cells within a model: counts, posterior of the code, and a decoder to the density of counts."""

    x: Tensor
    q_z: Normal
    decode: Any


def cells_of(model: Any, indices: np.ndarray, batch_size: int = 256) -> Iterator[Cell]:
    """The given cells as the model sees them."""
    model.module.eval()
    device = next(model.module.parameters()).device
    for given in AnnDataLoader(model.adata_manager, indices=indices, batch_size=batch_size):
        tensors = {k: v.to(device) for k, v in given.items()}
        yield _scvi(model.module, tensors) if isinstance(model, SCVI) else _ours(model.module, tensors)


def _ours(module: Any, tensors: dict[str, Tensor]) -> Cell:
    batch = Batch.of(tensors)

    def decode(z: Tensor) -> Any:
        return module.decode(batch, {"z": z})["x"]

    return Cell(tensors["X"], module.encode(batch)["z"].base_dist, decode)


def _scvi(module: Any, tensors: dict[str, Tensor]) -> Cell:
    out = module.inference(**module._get_inference_input(tensors))

    def decode(z: Tensor) -> Any:
        inputs = module._get_generative_input(tensors, {**out, "z": z})
        p_x = module.generative(**inputs)["px"]
        base = dist.NegativeBinomial(dist.Rate(p_x.mu.log(), None), p_x.theta.log())
        gate = getattr(p_x, "zi_logits", None)
        return base if gate is None else dist.ZeroInflated(base, gate)

    return Cell(tensors["X"], out["qz"], decode)


@torch.inference_mode()
def evidence(model: Any, indices: np.ndarray, *, n_mc_samples: int = 50, seed: int = 0) -> dict[str, float]:
    """Mean nats per cell: reconstruction, KL, ELBO, and importance-weighted marginal log-likelihood.

    Parameters
    ----------
    model
        A trained VAE of ours or ``SCVI``, both NB or ZINB with observed library size.
    indices
        Held-out rows of the model's cells.
    n_mc_samples
        Samples of the importance-weighted estimate; 0 leaves it out.
    seed
        Of the samples; torch's own state is left as it was.
    """
    rows: list[Tensor] = []
    with seeded(seed):
        for x, q_z, decode in cells_of(model, indices):
            prior = Normal(torch.zeros_like(q_z.loc), torch.ones_like(q_z.loc))
            kl = kl_divergence(q_z, prior).sum(-1)
            z = q_z.sample()
            recon = -decode(z).log_prob(x)
            total = torch.full_like(kl, -torch.inf)
            for _ in range(n_mc_samples):
                z = q_z.sample()
                weight = decode(z).log_prob(x) + (prior.log_prob(z) - q_z.log_prob(z)).sum(-1)
                total = torch.logaddexp(total, weight)
            marginal = total - np.log(max(1, n_mc_samples))
            rows.append(torch.stack([recon, kl, -(recon + kl), marginal], -1))
    means = torch.cat(rows).double().mean(0).tolist()
    names = ("reconstruction", "kl", "elbo", "marginal_ll")
    return dict(zip(names, means, strict=True))


def three_parts(n: int, seed: int) -> list[np.ndarray]:
    """The same 80 % to train, 10 % to validate and 10 % to score on for both models."""
    score, validate, train = np.split(np.random.default_rng(seed).permutation(n), [n // 10, n // 5])
    return [train, validate, score]


@contextmanager
def keeps_seed() -> Iterator[None]:
    """Around a benchmark, which sets scvi-tools' seed: afterwards it is what it was."""
    before = scvi.settings.seed
    try:
        yield
    finally:
        scvi.settings.seed = before


def spread(frame: pd.DataFrame, by: list[str], columns: list[str], digits: int = 2) -> pd.DataFrame:
    """Mean and standard deviation over seeds."""
    return frame.groupby(by, sort=False)[columns].agg(["mean", "std"]).round(digits)
