"""Benchmarks of sparse codes with known truth: recovery of gene programs, and bias of the gates' gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scvi
import torch
from torch import Tensor

from scalloy import datasets, metrics
from scalloy.benchmark.evidence import keeps_seed
from scalloy.benchmark.fit import QUIET
from scalloy.blocks.spike_slab import SpikeSlab
from scalloy.models import AE, VAE, BetaVAE, BetaVSC
from scalloy.models._core.base import ScalloyModel

MODELS: dict[str, tuple[type[ScalloyModel], dict[str, Any]]] = {
    "BetaVSC": (BetaVSC, {}),
    "BetaVSC, mlp": (BetaVSC, {"decoder": "mlp"}),
    "BetaVSC, pseudo-inputs": (BetaVSC, {"prior": "pseudo"}),
    "BetaVAE 4, all latents": (BetaVAE, {"beta": 4.0}),
    "BetaVAE 4": (BetaVAE, {"beta": 4.0, "n_latent": 0}),
    "VAE": (VAE, {"n_latent": 0}),
    "AE": (AE, {"n_latent": 0, "gene_likelihood": "nb"}),
}
FOUND = 0.8  # correlation from which a factor counts as recovered


@keeps_seed()
def programs(
    *,
    seeds: Sequence[int] = (0, 1, 2),
    signed: Sequence[bool] = (False, True),
    n_programs: int = 8,
    n_latent: int = 30,
    max_epochs: int | None = None,
) -> pd.DataFrame:
    """Measure how well single latents recover the sparse factors of :func:`scalloy.datasets.programs`.

    Parameters
    ----------
    seeds
        Random seeds of the data, the weights and the training.
    signed
        Values of the argument ``signed`` of :func:`scalloy.datasets.programs`: whether activities have either
        sign.
    n_programs
        Number of true factors; the dense models have as many latents, and BetaVAE also runs with as many as
        BetaVSC.
    n_latent
        Number of latents of BetaVSC.
    max_epochs
        Maximum number of epochs; ``None`` uses the default.

    Returns
    -------
    One row per kind of activities, seed and model: ``correlation`` of factors with their matched latents
    (mean), ``lowest`` of these, and ``found`` (share of at least 0.8). For BetaVSC also ``recall`` and
    ``precision`` with which the matched latents tell which programs are on in a cell, and ``on`` (mean number
    of latents that are on in a cell).
    """
    rows: list[dict[str, Any]] = []
    for kind, seed in itertools.product(signed, seeds):
        adata = datasets.programs(n_programs=n_programs, signed=kind, seed=seed)
        truth = adata.obsm["programs"]
        for name, (cls, given) in MODELS.items():
            scvi.settings.seed = seed
            settings = {"n_latent": n_latent, **given}
            settings["n_latent"] = settings["n_latent"] or n_programs
            cls.setup_anndata(adata)
            made = cls(adata, **settings)
            made.train(max_epochs=max_epochs, **QUIET)
            code = made.get_latent_representation()
            r = metrics.matched_correlation(truth, code)
            row = {"activities": "signed" if kind else "switched on", "seed": seed, "model": name}
            row |= {"correlation": r.mean(), "lowest": r.min(), "found": (r >= FOUND).mean()}
            rows.append(row | (_gates(made, truth, code) if isinstance(made, BetaVSC) else {}))
    return pd.DataFrame(rows)


def _gates(made: BetaVSC, truth: np.ndarray, code: np.ndarray) -> dict[str, float]:
    """Score whether the matched latents are on in the cells where their programs are."""
    active, on = made.get_active().to_numpy(), truth != 0
    said = active[:, metrics.best_match(truth, code)] > 0.5
    right = float((said & on).sum())
    return {"recall": right / on.sum(), "precision": right / max(1, said.sum()), "on": active.sum(1).mean()}


def relaxation(
    *, temperatures: Sequence[float] = (0.1, 0.3, 0.5, 1.0, 2.0), n_samples: int = 20_000, seed: int = 0
) -> pd.DataFrame:
    """Measure bias and spread of the gates' gradient estimates against the exact gradient by enumeration.

    Two functions of five gates are differentiated, one linear and one curved (``"bends"``, the log-likelihood
    of a Poisson count with a log-linear rate), with probabilities of being on from 0.02 to 0.9. ``hard`` are
    our gates; ``paper`` is the relaxation of Tonolini et al. (soft gates
    ``sigmoid(c (noise - 1 + gamma))``). ``leak`` is the most that a latent lets through while it is off.

    Parameters
    ----------
    temperatures
        Temperatures of our gates.
    n_samples
        Number of samples of the gradient.
    seed
        Random seed of the noise.

    Returns
    -------
    One row per function and kind of gates: ``bias`` (norm of the mean minus the exact gradient, over the norm
    of the exact one), ``cosine`` of the two, and ``spread`` (root mean square deviation of a sample from the
    mean, over the same norm).
    """
    gamma = torch.tensor([0.02, 0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    logit = torch.logit(gamma)
    effect = torch.tensor([1.2, -0.8, 0.5, 1.0, -1.5], dtype=torch.float64)

    def bends(gate: Tensor) -> Tensor:
        eta = 0.5 + gate @ effect
        return 3.0 * eta - eta.exp()

    functions: dict[str, Callable[[Tensor], Tensor]] = {"linear": lambda gate: gate @ effect, "bends": bends}
    noise = torch.rand(n_samples, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rows = []
    for name, function in functions.items():
        exact = _exact(logit, function)
        for kind, setting in [*(("hard", t) for t in temperatures), ("paper", 50.0), ("paper", 200.0)]:
            leaf = logit.expand(n_samples, 5).clone().requires_grad_()
            if kind == "hard":
                one = torch.ones_like(leaf)
                gate = SpikeSlab(one, one, leaf, temperature=setting).gate(noise)
            else:
                gate = torch.sigmoid(setting * (noise - 1 + torch.sigmoid(leaf)))
            (grad,) = torch.autograd.grad(function(gate).sum(), leaf)
            mean, size = grad.mean(0), exact.norm()
            row = {"function": name, "gates": kind, "temperature or c": setting}
            row |= {"bias": float((mean - exact).norm() / size)}
            row |= {"cosine": float(torch.cosine_similarity(mean, exact, dim=0))}
            row |= {"spread": float((grad - mean).square().sum(1).mean().sqrt() / size)}
            rows.append(row | {"leak": 0.5 if kind == "paper" else 0.0})
    return pd.DataFrame(rows)


def _exact(logit: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the gradient of the expectation over all patterns of gates."""
    leaf = logit.clone().requires_grad_()
    gates = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(logit))), dtype=logit.dtype)
    p = torch.sigmoid(leaf)
    weight = (gates * p + (1 - gates) * (1 - p)).prod(-1)
    return torch.autograd.grad(weight @ function(gates), leaf)[0]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Average a table of :func:`programs` over seeds, with the standard deviation of the correlation."""
    by = frame.groupby(["activities", "model"], sort=False)
    out = by[["correlation", "lowest", "found", "recall", "precision", "on"]].mean()
    out.insert(1, "correlation_sd", by["correlation"].std())
    return out.round(3)
