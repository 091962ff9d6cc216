"""Held-out evidence of our VAE and of ``scvi.model.SCVI``, computed by the same function.

Both models supply the parameters of the same densities. Log-likelihood, KL and importance weights are
computed here from dense counts, not by the getters of either package.
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
    """Mini-batch of cells: counts, posterior of the code, and decoder from a code to their density."""

    x: Tensor
    q_z: Normal
    decode: Any


def cells_of(model: Any, indices: np.ndarray, batch_size: int = 256) -> Iterator[Cell]:
    """Yield the given cells in mini-batches, encoded by the model."""
    model.module.eval()
    device = next(model.module.parameters()).device
    for given in AnnDataLoader(model.adata_manager, indices=indices, batch_size=batch_size):
        tensors = {k: v.to(device) for k, v in given.items()}
        yield _scvi(model.module, tensors) if isinstance(model, SCVI) else _ours(model.module, tensors)


def _ours(module: Any, tensors: dict[str, Tensor]) -> Cell:
    """Encode a mini-batch with one of our modules."""
    batch = Batch.of(tensors)

    def decode(z: Tensor) -> Any:
        return module.decode(batch, {"z": z})["x"]

    return Cell(tensors["X"], module.encode(batch)["z"].base_dist, decode)


def _scvi(module: Any, tensors: dict[str, Tensor]) -> Cell:
    """Encode a mini-batch with the module of SCVI."""
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
    """Return reconstruction error, KL, ELBO and marginal log-likelihood, as means in nats per cell.

    Parameters
    ----------
    model
        A trained VAE of ours, or ``SCVI``, with an NB or ZINB likelihood and observed library size.
    indices
        Held-out rows of the model's cells.
    n_mc_samples
        Number of samples of the importance-weighted estimate of the marginal log-likelihood; with 0,
        ``marginal_ll`` is minus infinity.
    seed
        Random seed of the samples; torch's random state is restored afterwards.
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
    """Split ``n`` cells at random: 80 % to train, 10 % to validate and 10 % to score on."""
    score, validate, train = np.split(np.random.default_rng(seed).permutation(n), [n // 10, n // 5])
    return [train, validate, score]


@contextmanager
def keeps_seed() -> Iterator[None]:
    """Restore scvi-tools' global seed after a benchmark that sets it."""
    before = scvi.settings.seed
    try:
        yield
    finally:
        scvi.settings.seed = before


def spread(frame: pd.DataFrame, by: list[str], columns: list[str], digits: int = 2) -> pd.DataFrame:
    """Return mean and standard deviation of ``columns`` in each group of ``by``; a zero has no sign."""
    return frame.groupby(by, sort=False)[columns].agg(["mean", "std"]).round(digits) + 0.0
