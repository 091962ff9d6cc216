"""Benchmarks of the coupled prior on data whose truth is known.

``classes``      eight classes in 80 genes and 16 proteins: does one modality, generated from the other, have
                 the right class?
``sources``      codes drawn from a coupled prior: are they recovered, up to scale and order?
``starvation``   eight Gaussians on a circle paired with handwritten digits: is the small modality learned?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData

from scalloy import datasets, metrics
from scalloy._seeds import seeded
from scalloy.benchmark.evidence import keeps_seed
from scalloy.benchmark.fit import QUIET
from scalloy.blocks.coupled_prior import SecondOrder
from scalloy.models import POISEVAE

N_CLASSES = 8
KEY = "protein_counts"
NOISE = 0.2**0.5  # standard deviation of points around the centres on the circle


def eight_classes(n: int = 2500, seed: int = 0) -> AnnData:
    """Simulate NB counts of 80 genes (with private factors and depth) and 16 proteins in eight classes."""
    rng = np.random.default_rng(seed)
    k = rng.integers(N_CLASSES, size=n)
    own = 0.4 * rng.normal(size=(n, 3)) @ rng.normal(size=(3, 80))
    depth = rng.normal(0, 0.3, (n, 1))
    log_genes = rng.normal(0.5, 0.7, 80) + rng.normal(0, 0.8, (N_CLASSES, 80))[k] + own + depth
    log_proteins = rng.normal(2.5, 0.5, 16) + rng.normal(0, 1.0, (N_CLASSES, 16))[k]
    x, x2 = (rng.poisson(rng.gamma(4.0, np.exp(v) / 4.0)) for v in (log_genes, log_proteins))
    x[x.sum(1) == 0, 0] = 1
    obs = pd.DataFrame({"class": pd.Categorical(k.astype(str))}, index=[f"cell_{i}" for i in range(n)])
    adata = AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"gene_{i}" for i in range(80)]))
    adata.obsm[KEY] = pd.DataFrame(x2, index=obs.index, columns=[f"protein_{i}" for i in range(16)])
    return adata


@keeps_seed()
def classes(
    joints: Sequence[str] = ("poise", "gaussian", "independent", "product", "mixture"),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    max_epochs: int | None = None,
    **model: Any,
) -> pd.DataFrame:
    """Measure how often a modality predicted from the other one has the class of the cell.

    500 cells are held out. A prediction belongs to the class whose mean ``log1p`` profile among the 2,000
    training cells is nearest (counts of genes are scaled to 10,000 per cell first); chance is 1/8.

    Parameters
    ----------
    joints
        Values of the argument ``joint`` of :class:`~scalloy.POISEVAE`.
    seeds
        Random seeds of the data and the training.
    max_epochs
        Maximum number of epochs; ``None`` uses the default.
    **model
        Arguments of the model.
    """
    rows = []
    for seed in seeds:
        whole = eight_classes(seed=seed)
        train, test = whole[:2000].copy(), whole[2000:].copy()
        for joint in joints:
            scvi.settings.seed = seed
            POISEVAE.setup_anndata(train, protein_obsm_key=KEY)
            trained = POISEVAE(train, **{"joint": joint, "n_latent": 4, "n_hidden": 64, **model})
            trained.train(max_epochs, **QUIET)
            row: dict[str, Any] = {"joint": joint, "seed": seed}
            for name, from_ in (("prot", "rna"), ("rna", "prot")):
                predicted = trained.predict(name, from_=from_, adata=test, scale="log1p").to_numpy()
                row[f"{from_}_to_{name}"] = _right_class(predicted, _observed(train, name), train, test)
            rows.append(row)
    return pd.DataFrame(rows)


def _observed(cells: AnnData, name: str) -> np.ndarray:
    """Return ``log1p`` of the counts of a modality, of genes after scaling to 10,000 per cell."""
    if name == "prot":
        return np.log1p(cells.obsm[KEY].to_numpy(float))
    return np.log1p(1e4 * cells.X / cells.X.sum(1, keepdims=True))


def _right_class(predicted: np.ndarray, known: np.ndarray, train: AnnData, test: AnnData) -> float:
    """Return the share of test cells whose prediction is nearest to the mean of their own class."""
    codes, truth = (c.obs["class"].astype(int).to_numpy() for c in (train, test))
    profiles = np.stack([known[codes == k].mean(0) for k in range(N_CLASSES)])
    nearest = np.square(predicted[:, None] - profiles).sum(-1).argmin(1)
    return float((nearest == truth).mean())


def drawn_sources(n: int = 5000, d: int = 3, seed: int = 0) -> tuple[AnnData, np.ndarray, np.ndarray]:
    """Draw codes from a coupled prior and observe them through two random networks with little noise."""
    with seeded(seed), torch.no_grad():
        prior = SecondOrder((d, d), kappa=0.95)
        prior.pairs[0].g11.copy_(0.8 * torch.randn(d, d))
        prior.pairs[0].log_g22.fill_(-2.5)
        z, z2 = prior.sample(n, 500)
        seen = []
        for code in (z, z2):
            h = torch.nn.functional.leaky_relu(code @ torch.randn(d, 30) / d**0.5, 0.2)
            x = h @ torch.randn(30, 30) / 30**0.5
            seen.append((x + 0.1 * torch.randn_like(x)).numpy())
    adata = AnnData(seen[0], var=pd.DataFrame(index=[f"a_{i}" for i in range(30)]))
    adata.obsm["protein_b"] = pd.DataFrame(
        seen[1], index=adata.obs_names, columns=[f"b_{i}" for i in range(30)]
    )
    return adata, z.numpy(), z2.numpy()


@keeps_seed()
def sources(
    joints: Sequence[str] = ("poise", "gaussian", "independent"),
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    max_epochs: int | None = None,
) -> pd.DataFrame:
    """Measure the mean correlation of true sources with their one-to-one matched latents, per modality.

    Parameters
    ----------
    joints
        Values of the argument ``joint`` of :class:`~scalloy.POISEVAE`; all have the same networks.
    seeds
        Random seeds of the data and the training.
    max_epochs
        Maximum number of epochs; ``None`` uses the default.
    """
    rows = []
    for seed in seeds:
        adata, z, z2 = drawn_sources(seed=seed)
        POISEVAE.setup_anndata(adata, protein_obsm_key="protein_b", allow_non_counts=True)
        for joint in joints:
            scvi.settings.seed = seed
            settings: dict[str, Any] = {"gene_likelihood": "normal", "protein_likelihood": "normal"}
            model = POISEVAE(adata, joint=joint, n_latent=z.shape[1], hidden_rate=0.0, **settings)
            model.train(max_epochs, **QUIET)
            found = [model.get_latent_representation(which=k) for k in model.modalities]
            each = [metrics.matched_correlation(a, b).mean() for a, b in zip((z, z2), found, strict=True)]
            rows.append({"joint": joint, "seed": seed, "first": each[0], "second": each[1]})
    return pd.DataFrame(rows)


def circle_and_digits(radius: float, n: int = 6000, seed: int = 0) -> AnnData:
    """Pair images of the digits 1 to 8 with points of eight Gaussians (variance 1/5) on a circle."""
    images = datasets.digits(seed=seed)
    digit = images.obs["digit"].astype(int).to_numpy()
    rng = np.random.default_rng(seed)
    rows = rng.choice(np.flatnonzero((digit >= 1) & (digit <= 8)), n, replace=False)
    cells = images[rows].copy()
    angle = 2 * np.pi * (digit[rows] - 1) / 8
    points = radius * np.c_[np.cos(angle), np.sin(angle)] + rng.normal(0, NOISE, (n, 2))
    cells.obsm["protein_point"] = pd.DataFrame(points, index=cells.obs_names, columns=["x", "y"])
    return cells


@keeps_seed()
def starvation(
    joints: Sequence[str] = ("poise", "product", "mixture"),
    *,
    radii: Sequence[float] = (5.0, 3.0, 2.0),
    seeds: Sequence[int] = (0, 1, 2),
    max_epochs: int = 160,
) -> pd.DataFrame:
    """Measure whether points on a circle are learned beside images, which have far more dimensions.

    ``from_point``, ``from_image`` and ``from_both`` are the shares of cells whose point, when decoded from
    the point or the image alone or from both, lies nearest to the centre of its class. ``distance`` is the
    mean distance of generated points from the nearest centre, divided by that of real points, and
    ``distance_prior`` that of points generated from the prior. ``sigma`` is the learned standard
    deviation divided by the true one. Two models without clusters serve as references: one Gaussian, and a
    ring (:func:`references`).

    Parameters
    ----------
    joints
        Values of the argument ``joint`` of :class:`~scalloy.POISEVAE`.
    radii
        Radii of the circle.
    seeds
        Random seeds of the data and the training.
    max_epochs
        Maximum number of epochs.
    """
    rows = []
    for radius in radii:
        angle = 2 * np.pi * np.arange(8) / 8
        centres = radius * np.c_[np.cos(angle), np.sin(angle)]
        for seed in seeds:
            cells = circle_and_digits(radius, seed=seed)
            truth = cells.obs["digit"].astype(int).to_numpy() - 1
            POISEVAE.setup_anndata(cells, protein_obsm_key="protein_point", allow_non_counts=True)
            real, _ = _nearest(cells.obsm["protein_point"].to_numpy(), centres)
            for name, points in references(cells.obsm["protein_point"].to_numpy(), seed).items():
                away = _nearest(points, centres)[0].mean() / real.mean()
                rows.append({"radius": radius, "joint": name, "seed": seed, "distance": away})
            for joint in joints:
                scvi.settings.seed = seed
                settings: dict[str, Any] = {
                    "gene_likelihood": "bernoulli_given",
                    "protein_likelihood": "normal",
                }
                model = POISEVAE(cells, joint=joint, hidden_rate=0.0, **settings)
                model.train(max_epochs, **QUIET)
                row: dict[str, Any] = {"radius": radius, "joint": joint, "seed": seed}
                for name, from_ in (("point", "prot"), ("image", "rna"), ("both", None)):
                    _, k = _nearest(model.predict("prot", from_=from_).to_numpy(), centres)
                    row[f"from_{name}"] = float((k == truth).mean())
                for name, source in (("distance", "mixture"), ("distance_prior", "prior")):
                    made = model.generate(2000, from_=source, seed=seed).obsm["prot"].to_numpy()
                    row[name] = _nearest(made, centres)[0].mean() / real.mean()
                row["sigma"] = float(model.module.likelihoods[1].log_sigma.detach().exp().mean()) / NOISE
                rows.append(row)
    return pd.DataFrame(rows)


def references(points: np.ndarray, seed: int = 0, n: int = 20_000) -> dict[str, np.ndarray]:
    """Draw points from two models without clusters: a Gaussian, and a ring with the real distances from zero.

    Parameters
    ----------
    points
        Real points, to which both models are fitted.
    seed
        Random seed.
    n
        Number of points to draw from each.
    """
    rng = np.random.default_rng(seed)
    gaussian = rng.multivariate_normal(points.mean(0), np.cov(points.T), n)
    radius, angle = rng.choice(np.linalg.norm(points, axis=1), n), rng.uniform(0, 2 * np.pi, n)
    ring = radius[:, None] * np.c_[np.cos(angle), np.sin(angle)]
    return {"one Gaussian": gaussian, "ring without clusters": ring}


def _nearest(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each point from the nearest centre, and the index of that centre."""
    distance = np.sqrt(np.square(points[:, None] - centres).sum(-1))
    return distance.min(1), distance.argmin(1)
