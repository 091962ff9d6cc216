"""Knowledge of a trained model with a mixture about its labels: where they are, and which cells have none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from scalloy.vae.base import Batch, Distributions


@torch.no_grad()
def learn_labels(module: Any, cells: Callable[[], Iterable[Batch]]) -> None:
    """Fit the classifiers of labels and the signs of unknown types.

    Parameters
    ----------
    module
        Model with ``prior``, ``readers``, ``unknowns`` and ``expression``.
    cells
        Function that goes once through the cells that are trained on.
    """
    prior, found, latents = module.prior, list[tuple[Tensor, ...]](), list[dict[str, Tensor]]()
    for b in cells():
        q = module.encode(b)
        found.append((b.condition, b.label, module.assignment(b, q=q)))
        latents.append({k: v.mean for k, v in q.items()})
    c, y, r = (torch.cat(column) for column in zip(*found, strict=True))
    means = {k: torch.cat([row[k] for row in latents]) for k in latents[0]}
    prior.measure(prior(c, means.get("w")), means["z"], y)
    module.unknowns.look_for_labels(r, y < len(prior.hierarchy), prior.label_of < 0)
    read = ((module.encode(b)["z"].mean, module.expression(b), b.label) for b in cells())
    module.unknowns.fit(*module.readers.fit(read))


def told_labels(module: Any, batch: Batch, n_samples: int, q: Distributions) -> tuple[Tensor, Tensor]:
    """Return the probability of each label among the labels, and that of being of a known type.

    Parameters
    ----------
    module
        Model as for :func:`learn_labels`.
    batch
        Cells.
    n_samples
        Number of samples of the latents over which the probabilities of the components are averaged.
    q
        Posterior of the latents.
    """
    prior, z, x = module.prior, q["z"].mean, module.expression(batch)
    r = module.assignment(batch, n_samples, q=q)
    p = prior.of_labels(r)
    any_label = p.sum(-1, keepdim=True)
    p = module.readers.vote(p / any_label.clamp_min(1e-12), z, x)
    if module.unknowns.fitted:
        return p, module.unknowns.known(r, z, x, prior.covered(z))
    p_z = module.prior(batch.condition, q["w"].mean if "w" in q else None)
    return p, any_label[:, 0] * prior.typical(p_z, z)  # a model from file formats 1 to 4


def watched(module: Any, told: Tensor, r: Tensor, y: Tensor | None) -> dict[str, Tensor]:
    """Return what the history shows of validation cells: components and, with labels, whether they are right.

    Parameters
    ----------
    module
        Model with ``prior``; while it is trained, nothing is returned.
    told
        Log-probability of each component without the label.
    r
        Probability of each component.
    y
        Code of the label of each cell, in a tree of any depth; the number of labels stands for an unknown
        one. The label of an inner node is right if the most probable leaf is below it.
    """
    if module.training:
        return {}
    out = {"r": r}
    if y is not None and module.prior.n_labels:
        n, prior = len(module.prior.hierarchy), module.prior
        leaf = prior.of_labels(told.exp()).argmax(-1)
        out["labelled"] = y < n
        out["right"] = prior.fits[y.clamp_max(n), leaf] & out["labelled"]
    return out
