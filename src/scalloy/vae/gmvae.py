"""GMVAE: a VAE whose code comes from a mixture of Gaussians, one for each cluster of cells.

    model                                inference
    y     ~ Cat(pi)                      q(y | x)    = Cat
    z | y ~ N(m_y, s_y)                  q(z | x, y) = N
    ell   ~ LogN(m_b, s_b)               q(ell | x)  = LogN     (only if the library size is learned)
    x | z ~ likelihood(ell, b)

    -ELBO = E[-log p(x | z, ell, b)]                                             recon
          + sum_k q(k | x) KL(q(z | x, k) || p(z | k))                           z
          + sum_k q(k | x) (log q(k | x) - log pi_k)                             y
          + KL(q(ell | x) || LogN(m_b, s_b))                                     ell

Groenbech et al., "scVAE: variational auto-encoders for single-cell gene expression data", Bioinformatics
2020, use two networks for q and decode each cell once for each component. This model differs in three ways:

- One encoder reads the cell. It gives a Gaussian ``q_0`` and, by linear maps that start at zero, what each
  component changes in it. So q starts at the best choice that a single Gaussian allows,
  ``q(y = k | x) ~ pi_k exp(-KL(q_0 || p(z | k)))``, and learns how to depart from it.
- ``y`` is summed out exactly where that is cheap: in both KLs. Of the sum over decoded codes,
  ``sum_k q(k | x) R_k``, the terms with the largest weights are computed. One of the others is drawn in
  proportion to q(k | x) and stands for all of them (Liu et al., "Rao-Blackwellized stochastic gradients for
  discrete distributions", ICML 2019). Value and gradient are unbiased, and the cost does not grow with K.
- To prevent collapse, components are placed where the cells are (:mod:`scalloy.vae.component_init`).

With one component, ``p(z)`` stays ``N(0, I)`` and q is ``q_0``: this is the VAE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, kl_divergence

from scalloy.blocks.distributions import bounded
from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.mixture_prior import MixturePrior
from scalloy.blocks.mixtures import GaussianMixture
from scalloy.blocks.networks import GaussianHead, Head, NetworkSettings
from scalloy.vae.base import Batch, Distributions, Latents, Sizes, Terms, VAEModule
from scalloy.vae.component_init import grow_tree, nothing_removed, place_once
from scalloy.vae.vae import LibraryPrior


class ComponentsHead(nn.Module):
    """Map a hidden vector to ``q_0`` and to the changes by each component: location, scale, probability."""

    def __init__(self, n_hidden: int, n_latent: int, n_clusters: int) -> None:
        super().__init__()
        self.shared = GaussianHead(n_hidden, n_latent)
        self.changes = Head(n_hidden, 2 * n_clusters * n_latent)
        self.choice = Head(n_hidden, n_clusters)
        self.shape = (2, n_clusters, n_latent)
        for layer in (self.changes, self.choice):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor) -> tuple[Distribution, Tensor, Tensor, Tensor]:
        loc, log_scale = self.changes(h).unflatten(-1, self.shape).unbind(-3)
        return self.shared(h), loc, bounded(log_scale, lower=-5.0, upper=5.0), self.choice(h)


class GMVAE(VAEModule):
    """VAE with a mixture of Gaussians as its prior, as written at the top of this file.

    Parameters
    ----------
    sizes
        Sizes of the data.
    likelihood
        Likelihood of the counts, given the values at the end of the decoder.
    prior
        Prior of ``z``.
    networks
        Settings of the networks.
    library_prior
        Prior of the library size, which is then a latent. ``None`` uses the observed library size.
    n_decoded
        Number of codes per cell that are decoded in a training step: all but one for the most probable
        components, and one for a component drawn from the others. If there are no others, all are decoded.
    place_at
        Share of training after which the components are placed; before, the prior of ``z`` is ``N(0, I)``.
    """

    learns_prior = True

    def __init__(
        self,
        sizes: Sizes,
        likelihood: Likelihood,
        prior: MixturePrior,
        networks: NetworkSettings,
        *,
        library_prior: LibraryPrior | None = None,
        n_decoded: int = 2,
        place_at: float = 0.2,
    ) -> None:
        super().__init__()
        self.likelihood, self.prior, self.library_prior = likelihood, prior, library_prior
        self.networks, self.n_latent, self.place_at = networks, networks.n_latent, place_at
        self.plain, self.n_clusters = nothing_removed(sizes), len(prior.used)
        self.n_decoded = min(n_decoded, self.n_clusters)
        head = ComponentsHead(networks.n_encoded, self.n_latent, self.n_clusters)
        seen = networks.sizes_encoded(sizes.covariates)
        self.enc_z = networks.encoder(sizes.n_vars, head, **seen)
        if library_prior is not None:
            head_ell = GaussianHead(networks.widths[0], 1)
            self.enc_ell = networks.encoder(sizes.n_vars, head_ell, n_layers=1, **seen)
        self.dec_x = networks.decoder(self.n_latent, n_vars=sizes.n_vars, **sizes.covariates)
        if self.n_clusters == 1:  # p(z) is N(0, I) and q is q_0, whatever these are
            for unused in (prior, head.changes, head.choice):
                unused.requires_grad_(False)

    def encode(self, batch: Batch) -> Distributions:
        x = self.likelihood.features(batch.x)
        known = self.networks.encoded(batch.removed, batch.cont)
        q_0, loc, log_scale, choice = self.enc_z(x, *known)
        on, p_z = self.prior.placed, self.prior(batch.condition)
        log_q = torch.log_softmax(p_z.log_pi - p_z.kl_from(q_0) + on * choice, -1)
        loc = q_0.mean.unsqueeze(-2) + on * loc
        scale = q_0.stddev.unsqueeze(-2) * (on * log_scale).exp()
        q: Distributions = {"z": GaussianMixture(log_q, loc, scale)}
        if self.library_prior is not None:
            q["ell"] = self.enc_ell(x, *known)
        return q

    def decode(self, batch: Batch, latents: Latents) -> Distributions:
        z, log_ell = latents["z"], latents.get("ell", batch.log_ell)
        h = self.dec_x(z, batch.removed, batch.cont)
        p: Distributions = {
            "z": self.prior(batch.condition),
            "x": self.likelihood(h, log_ell, batch.b),
        }
        if self.library_prior is not None:
            p["ell"] = self.library_prior(batch.b)
        return p

    def from_prior(self, batch: Batch, cluster: Tensor | None = None) -> Latents:
        latents = {"z": self.prior.draw(batch.condition, cluster=cluster)}
        if self.library_prior is not None:
            latents["ell"] = self.library_prior(batch.b).sample()
        return latents

    def terms(self, batch: Batch, q: Distributions, latents: Latents, p: Distributions) -> Terms:
        """Return the terms of one code per cell, for which ``y`` is drawn too.

        The gradient of ``recon`` does not reach q(y | x) here; training uses :meth:`objective`.
        """
        return Terms(-self.likelihood.log_prob(p["x"], batch.x), self.divergences(batch, q, p))

    def divergences(self, batch: Batch, q: Distributions, p: Distributions) -> dict[str, Tensor]:
        """Return the KL terms, all of which are exact."""
        q_z, p_z = q["z"], p["z"]
        assert isinstance(q_z, GaussianMixture)
        assert isinstance(p_z, GaussianMixture)
        log_q = q_z.log_pi
        kl = {"z": (log_q.exp() * p_z.kl_from(q_z)).sum(-1)}
        kl["y"] = self.prior.cost(log_q.exp(), log_q, batch.condition)
        if self.library_prior is not None:
            kl["ell"] = kl_divergence(q["ell"], p["ell"])
        return kl

    def objective(self, batch: Batch) -> Terms:
        """Return the terms from several codes per cell, which share their noise."""
        q = self.encode(batch)
        q_z = q["z"]
        assert isinstance(q_z, GaussianMixture)
        k, weight = self.chosen(q_z.log_pi)
        loc, scale = q_z.of_component(k)
        latents = {name: v.rsample() for name, v in q.items() if name != "z"}
        p = self.decode(batch, {**latents, "z": loc + scale * torch.randn_like(loc[0])})
        each = -self.likelihood.log_prob(p["x"], batch.x)
        # The weights add up to one, so a level that all codes share must not act on their gradient.
        level = each[0].detach()
        recon = level + (weight * (each - level)).sum(0)
        watched = {} if self.training else {"r": q_z.log_pi.exp()}
        return Terms(recon, self.divergences(batch, q, p), watched=watched)

    def chosen(self, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the components whose codes are decoded, and their weights, each ``(decoded, n)``."""
        if not self.prior.is_placed:  # all components are still the same
            return torch.zeros_like(log_q[None, :, 0], dtype=torch.long), torch.ones_like(log_q[None, :, 0])
        n_sure = self.n_decoded - (self.n_decoded < self.n_clusters)
        sure = log_q.topk(n_sure, -1).indices
        weight = log_q.gather(-1, sure).exp()
        if n_sure == self.n_decoded:
            return sure.T, weight.T
        rest = log_q.detach().scatter(-1, sure, -torch.inf)
        drawn = Categorical(logits=rest, validate_args=False).sample().unsqueeze(-1)
        log_drawn = log_q.gather(-1, drawn)
        stands_for = rest.logsumexp(-1, keepdim=True).exp() * (log_drawn - log_drawn.detach()).exp()
        return torch.cat([sure, drawn], -1).T, torch.cat([weight, stands_for], -1).T

    def settle(self) -> None:
        self.prior.settle()

    def begin_epoch(self, end: float, cells: Callable[[], Iterable[Batch]]) -> bool:
        """Place the components where the cells are, once; a single one stays ``N(0, I)``."""
        return self.n_clusters > 1 and place_once(self, end, cells)

    def finish(self, cells: Callable[[], Iterable[Batch]]) -> None:
        """Make a tree of clusters."""
        grow_tree(self, cells)

    @torch.no_grad()
    def assignment(self, batch: Batch, *, q: Distributions | None = None) -> Tensor:
        """Return ``q(y | x)``."""
        q_z = (q or self.encode(batch))["z"]
        assert isinstance(q_z, GaussianMixture)
        return q_z.log_pi.exp()
