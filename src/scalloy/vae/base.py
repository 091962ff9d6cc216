"""Contract that every model fulfils; read this first.

A model is a :class:`VAEModule` with four methods, in the order in which a cell passes through them:

    encode(batch)                  q: the posterior of each latent, by its letter
    draw(q)                        latents: a sample of each posterior
    decode(batch, latents)         p: the prior of each latent, and ``p["x"]``
    terms(batch, q, latents, p)    Terms: the parts of the objective, cell by cell

The methods ``inference``, ``generative``, ``loss`` and ``sample`` that scvi-tools expects are built on these
four, here and only here. The terms are weighted, warmed up and summed in :mod:`scalloy.train.plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor
from torch.distributions import Distribution, Independent

from scalloy._keys import CONDITION_KEY, OTHER_KEYS
from scalloy.blocks.composed import Categories, Rows
from scalloy.blocks.label_readers import Readers
from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.mixture_prior import MixturePrior
from scalloy.kernels.csr import cell_totals, map_values

Distributions = dict[str, Distribution]
Latents = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the data that the networks need to know."""

    n_vars: int
    n_batch: int = 1
    n_labels: int = 1
    n_conditions: int = 1
    n_cats: tuple[int, ...] = ()
    n_cont: int = 0
    n_others: tuple[int, ...] = ()
    rows: Rows | None = None

    @property
    def conditions(self) -> Categories:
        """Number of conditions or, if they are made of parts, the parts of each."""
        return self.n_conditions if self.rows is None else self.rows

    @property
    def n_all_vars(self) -> int:
        """Number of variables of all modalities."""
        return self.n_vars + sum(self.n_others)

    @property
    def removed(self) -> tuple[int, ...]:
        """Number of categories of the batch and of each further categorical covariate."""
        return (self.n_batch, *self.n_cats)

    @property
    def covariates(self) -> dict[str, Any]:
        """Sizes of what is removed, as the networks take them."""
        return {"n_cats": self.removed, "n_cont": self.n_cont}

    @property
    def known(self) -> dict[str, Any]:
        """Sizes of what is removed, and then of the condition."""
        return {"n_cats": (*self.removed, self.conditions), "n_cont": self.n_cont}


@dataclass(frozen=True)
class Batch:
    """Counts ``x`` of some cells (dense or sparse CSR), and the codes of what is known about each cell.

    ``others`` holds further modalities: dense, with NaN where they were not measured, or sparse CSR.
    """

    x: Tensor
    log_ell: Tensor
    b: Tensor
    c: Tensor | None = None
    y: Tensor | None = None
    cats: Tensor | None = None
    cont: Tensor | None = None
    others: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Batch:
        """Make a batch from the tensors that the loaders of scvi-tools (or ours) yield."""
        x, given = tensors[REGISTRY_KEYS.X_KEY], tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)
        ell = cell_totals(x).unsqueeze(-1) if given is None else given
        b = tensors.get(REGISTRY_KEYS.BATCH_KEY)
        return cls(
            x=x,
            log_ell=ell.clamp_min(1e-6).log(),
            b=torch.zeros(len(x), dtype=torch.long, device=x.device) if b is None else codes(b),
            c=codes(tensors.get(CONDITION_KEY)),
            y=codes(tensors.get(REGISTRY_KEYS.LABELS_KEY)),
            cats=tensors.get(REGISTRY_KEYS.CAT_COVS_KEY),
            cont=tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
            others=tuple(tensors[k] for k in OTHER_KEYS if k in tensors),
        )

    @cached_property
    def measured(self) -> Tensor:
        """Mask of the modalities that were measured in each cell, ``(n, M)`` of 0 and 1.

        ``x`` and sparse modalities count as measured unless they are all zeros, dense ones unless they are
        all NaN.
        """
        others = (_anything(x) if is_sparse(x) else ~x.isnan().all(-1) for x in self.others)
        each = [_anything(self.x), *others]
        return torch.stack(each, -1).to(self.log_ell)

    @property
    def modalities(self) -> tuple[Tensor, ...]:
        """All modalities: ``x`` and the others."""
        return (self.x, *self.others)

    @property
    def label(self) -> Tensor:
        """Code of each cell's label, which must be registered."""
        assert self.y is not None
        return self.y

    @property
    def condition(self) -> Tensor:
        """Code of each cell's condition; zero for all cells if no condition is registered."""
        return torch.zeros_like(self.b) if self.c is None else self.c

    @property
    def removed(self) -> tuple[Tensor, ...]:
        """Codes of the batch and of each further categorical covariate."""
        return (self.b,) if self.cats is None else (self.b, *self.cats.long().unbind(-1))


def is_sparse(x: Tensor) -> bool:
    """Return whether a modality is sparse CSR."""
    return x.layout == torch.sparse_csr


def _anything(x: Tensor) -> Tensor:
    return cell_totals(map_values(x, torch.abs)) > 0


def codes(column: Tensor | None) -> Any:
    """Convert an ``(n, 1)`` column of any type to ``(n,)`` integers."""
    return None if column is None else column.reshape(-1).long()


@dataclass
class Terms:
    """Terms of an objective, where ``-ELBO = recon + sum(kl) + sum(kl_global) / n_obs``.

    ``recon`` and each entry of ``kl`` hold one value per cell. ``kl_global`` holds scalars of the whole data
    set, such as the KL of a Dirichlet over mixture weights. ``penalty`` holds terms that are not part of the
    ELBO, each one value per cell or a scalar. ``watched`` is shown in the training history only
    (:mod:`scalloy.train.watched`).
    """

    recon: Tensor
    kl: dict[str, Tensor] = field(default_factory=dict)
    kl_global: dict[str, Tensor] = field(default_factory=dict)
    penalty: dict[str, Tensor] = field(default_factory=dict)
    watched: dict[str, Tensor] = field(default_factory=dict)

    def means(self) -> dict[str, Tensor]:
        """Return the mean of each term over cells, by its name in the training history."""
        out = {"reconstruction_loss": self.recon.mean()}
        out |= {f"kl_{k}": v.mean() for k, v in self.kl.items()}
        out |= {f"kl_global_{k}": v for k, v in self.kl_global.items()}
        return out | {f"penalty_{k}": v.mean() for k, v in self.penalty.items()}


class HasClusters(Protocol):
    """A module with a mixture, whose components make clusters."""

    prior: MixturePrior

    def assignment(self, batch: Batch, *, q: Distributions | None = None) -> Tensor:
        """Return the probability of each component, from the posterior ``q`` of the latents if given."""


class HasLabels(HasClusters, Protocol):
    """A module that learns from labels."""

    readers: Readers | None

    def label_probabilities(
        self, batch: Batch, n_samples: int, *, q: Distributions | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the probability of each label among the labels, and that of having any of them."""

    def encode(self, batch: Batch) -> Distributions: ...


class HasConditions(Protocol):
    """A module whose cells can be decoded under another condition."""

    likelihood: Likelihood

    def parameters(self) -> Iterator[Tensor]: ...
    def encode(self, batch: Batch) -> Distributions: ...
    def decode(self, batch: Batch, latents: Latents) -> Distributions: ...


class VAEModule(BaseModuleClass):
    """Base class of the mathematics of every model; only ``likelihood`` must be there in all."""

    likelihood: Likelihood
    recordable = True  # a step never waits for the device and is the same for all batches of a shape
    learns_prior = False  # whether the prior of z is fitted to the cells
    n_latent: int
    free: dict[str, Tensor] | None = None  # in a query: masks of the entries that are trained

    def encode(self, batch: Batch) -> Distributions:
        """Return the posterior of each latent, by its letter."""
        raise NotImplementedError

    def decode(self, batch: Batch, latents: Latents) -> Distributions:
        """Return the prior of each latent, by its letter, and the distribution of ``x``."""
        raise NotImplementedError

    def terms(self, batch: Batch, q: Distributions, latents: Latents, p: Distributions) -> Terms:
        """Return the terms of the objective, cell by cell."""
        raise NotImplementedError

    def draw(self, q: Distributions, sample_shape: tuple[int, ...] = ()) -> Latents:
        """Draw reparametrised samples of each latent, one unless ``sample_shape`` asks for more."""
        return {k: v.rsample(sample_shape) for k, v in q.items()}

    def from_prior(self, batch: Batch, cluster: Tensor | None = None) -> Latents:
        """Draw the latents of new cells from the prior, with batch and condition of the given ones.

        Parameters
        ----------
        batch
            Cells whose batch, condition and covariates the new ones have.
        cluster
            Number of the cluster of each new cell, for a prior that is a mixture.
        """
        return {"z": torch.randn(len(batch.b), self.n_latent, device=batch.b.device)}

    def nodes(self, q: Distributions, n: int) -> list[Latents]:
        """Return ``n`` samples of each Gaussian latent whose noise is the same for every cell and call.

        So what is averaged over them is a function of the cell alone, whatever cells are beside it.
        """
        rng = np.random.default_rng(0)

        def node(of: Distribution) -> Tensor:
            noise = rng.standard_normal(of.mean.shape[-1])
            return of.mean + of.stddev * torch.as_tensor(noise).to(of.mean)

        return [{k: node(of) for k, of in q.items()} for _ in range(n)]

    def objective(self, batch: Batch) -> Terms:
        """Return the terms of a batch, on which the training plan trains."""
        q = self.encode(batch)
        latents = self.draw(q)
        return self.terms(batch, q, latents, self.decode(batch, latents))

    def begin_epoch(self, end: float, cells: Callable[[], Iterable[Batch]]) -> bool:
        """Prepare for the next epoch, at the end of which the share ``end`` of training will be done.

        ``cells()`` goes once through the cells that are trained on. Returns whether the objective changes
        now, so that earlier losses cannot be compared with later ones.
        """
        return False

    def finish(self, cells: Callable[[], Iterable[Batch]]) -> None:
        """Complete the model once training has ended and the best weights are restored."""

    def settle(self) -> None:
        """Fix what was learned about the reference, when the model is extended to a query."""

    # interface of scvi-tools -------------------------------------------------------------------

    def _get_inference_input(self, tensors: Mapping[str, Tensor], **_: Any) -> dict[str, Any]:
        return {"batch": Batch.of(tensors)}

    def _get_generative_input(
        self, tensors: Mapping[str, Tensor], inference_outputs: dict[str, Any], **_: Any
    ) -> dict[str, Any]:
        return {"batch": inference_outputs["batch"], "latents": inference_outputs["latents"]}

    def inference(self, batch: Batch, n_samples: int = 1) -> dict[str, Any]:
        q = self.encode(batch)
        latents = self.draw(q, (n_samples,) if n_samples > 1 else ())
        q_z = q["z"].base_dist if isinstance(q["z"], Independent) else q["z"]
        log_ell = latents.get("ell", batch.log_ell)
        out = {"batch": batch, "q": q, "latents": latents, "z": latents["z"], "qz": q_z}
        return out | {"library": log_ell, "ql": q.get("ell")}

    def generative(
        self, batch: Batch, latents: Latents, transform_batch: int | None = None
    ) -> dict[str, Any]:
        if transform_batch is not None:
            batch = replace(batch, b=torch.full_like(batch.b, transform_batch))
        p = self.decode(batch, latents)
        return {"p": p, "px": p["x"], "pz": p.get("z"), "pl": p.get("ell")}

    def loss(
        self,
        tensors: Mapping[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: float = 1.0,
    ) -> LossOutput:
        i = inference_outputs
        t = self.terms(i["batch"], i["q"], i["latents"], generative_outputs["p"])
        means = t.means()
        loss = means["reconstruction_loss"] + kl_weight * sum(v.mean() for v in t.kl.values())
        loss = loss + sum(v.mean() for v in t.penalty.values())
        return LossOutput(
            loss=loss,
            reconstruction_loss=t.recon,
            kl_local=t.kl or {"none": torch.zeros_like(t.recon)},
            kl_global=t.kl_global or None,
            extra_metrics={k: v for k, v in means.items() if k.startswith("penalty_")},
        )

    @auto_move_data
    def sample(
        self, tensors: Mapping[str, Tensor], n_samples: int = 1, transform_batch: int | None = None
    ) -> Tensor:
        """Draw posterior predictive counts, ``(n, G)`` or, for several samples, ``(n, G, S)``."""
        batch = Batch.of(tensors)
        draws = []
        with torch.no_grad():
            q = self.encode(batch)
            for _ in range(n_samples):
                p = self.generative(batch, self.draw(q), transform_batch)["p"]
                draws.append(p["x"].sample())
        return draws[0] if n_samples == 1 else torch.stack(draws, -1)

    def log_weight(self, batch: Batch, q: Distributions, latents: Latents, p: Distributions) -> Tensor:
        """Return the log importance weight of each cell, ``log p(x, latents) - log q(latents | x)``."""
        weight = self.likelihood.log_prob(p["x"], batch.x)
        for k, q_k in q.items():
            weight = weight + p[k].log_prob(latents[k]) - q_k.log_prob(latents[k])
        return weight

    @auto_move_data
    def marginal_ll(self, tensors: Mapping[str, Tensor], n_mc_samples: int = 100) -> Tensor:
        """Estimate ``log p(x)`` per cell by importance sampling (Burda et al. 2016, eq. 8)."""
        batch = Batch.of(tensors)
        with torch.no_grad():
            q = self.encode(batch)
            total = torch.full_like(batch.log_ell[:, 0], -torch.inf)
            for _ in range(n_mc_samples):
                latents = self.draw(q)
                weight = self.log_weight(batch, q, latents, self.decode(batch, latents))
                total = torch.logaddexp(total, weight)
        return total - torch.log(torch.tensor(float(n_mc_samples)))
