"""CGMDVAE: conditional Gaussian-mixture Dirichlet VAE.

    model                                      inference
    pi          ~ Dir(alpha)                   q(pi)         = Dir(gamma)
    y | pi      ~ Cat(pi)                      q(y | z, w, c)  exact (by Bayes), or a network
    w | c       ~ N(m(c), s(c))                q(w | x, c)   = N        (only with n_w > 0)
    z | w, y, c ~ N(m_y(w, c), s_y(w, c))      q(z | x, c)   = N
    x | z, c    ~ likelihood(ell, b)

    -ELBO = E[-log p(x | z, c)]                                                   recon
          + E[log q(z | x, c) - sum_k r_k log p(z | w, k, c)]                     z
          + E[sum_k r_k (log r_k - E log pi_k)]                                   y
          + E[KL(q(w | x, c) || p(w | c))]                                        w
          + KL(q(pi) || Dir(alpha)) / N                                           pi
          + ridge |own shifts of components under conditions|^2 / N               own
    penalty: - log sum_{k in S_y} r_k   of cells whose label is known             label

``r`` is the posterior of the component given the sampled ``z``: then z and y add up to
``log q(z) - log sum_k pi_k p(z | k)``, the component integrated out. A known label leaves to ``r`` the
components bound to it, S_y; an unknown one leaves all. That is the only difference between unsupervised,
semi-supervised and supervised training. A network for ``r`` (``assignment="amortised"``) takes the KL of
each component in closed form instead, which is a looser bound.

Differs from Kolb (MSc thesis 2023), who draws a Dirichlet per cell: integrated out it is a uniform weight
whatever its alpha (``Local`` in :mod:`scalloy.blocks.mixtures` is that, exactly). Here one is shared by all
cells, as in Dilokthanakul et al., "Deep unsupervised clustering with Gaussian mixture VAEs", arXiv
1611.02648, with the weights integrated by variational Bayes (Bishop, PRML, ch. 10.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from scalloy.blocks.distributions import gaussian, standard_normal
from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.mixtures import Components, GaussianMixture, Weights
from scalloy.blocks.networks import Encoder, GaussianHead, Stack
from scalloy.blocks.partition import partition
from scalloy.vae.base import Batch, Distributions, Latents, Sizes, Terms, VAEModule


class CGMDVAE(VAEModule):
    """See the head of this file.

    Parameters
    ----------
    sizes
        Of the data; ``n_labels`` counts the known labels.
    likelihood
        Of the counts, from a hidden vector of ``n_hidden``.
    components, weights
        Of the mixture. The first ``n_labels * per_label`` components are bound to the labels.
    n_w
        Size of the style latent; 0 is none.
    w_prior
        Whether the prior of ``w`` has a mean and a scale for each condition, or is ``N(0, I)``.
    amortised
        Whether a network gives ``r``.
    ridge
        Weight of the squared own shifts.
    place_at
        Share of training after which the components are placed where the cells are; before, the prior of
        ``z`` is ``N(0, I)``.
    """

    def __init__(
        self,
        sizes: Sizes,
        likelihood: Likelihood,
        components: Components,
        weights: Weights,
        *,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        norm: str = "layer",
        n_w: int = 0,
        w_prior: bool = False,
        amortised: bool = False,
        per_label: int = 1,
        ridge: float = 0.0,
        place_at: float = 0.2,
    ) -> None:
        super().__init__()
        self.likelihood, self.components, self.weights = likelihood, components, weights
        self.n_latent, self.ridge, self.place_at = n_latent, ridge, place_at
        self.n_labels, self.n_conditions = sizes.n_labels, sizes.n_conditions
        n_clusters, bound = len(components.loc), sizes.n_labels * per_label
        label_of = torch.arange(n_clusters) // per_label
        self.register_buffer("label_of", torch.where(torch.arange(n_clusters) < bound, label_of, -1))
        self.register_buffer("placed", torch.zeros(()))
        known: dict[str, Any] = {"n_cats": (*sizes.removed, sizes.n_conditions), "n_cont": sizes.n_cont}
        width: dict[str, Any] = {"n_hidden": n_hidden, "n_layers": n_layers, "norm": norm, **known}
        head = GaussianHead(n_hidden, n_latent)
        self.enc_z = Encoder(sizes.n_vars, head, dropout_rate=dropout_rate, **width)
        self.enc_w = None
        if n_w:
            head = GaussianHead(n_hidden, n_w)
            self.enc_w = Encoder(sizes.n_vars, head, dropout_rate=dropout_rate, **width)
        self.enc_y = None
        if amortised:
            cats = (sizes.n_conditions,)
            self.enc_y = Stack(n_latent, n_hidden=n_hidden, n_layers=1, norm=norm, n_cats=cats)
            self.head_y = nn.Linear(n_hidden, n_clusters)
        self.prior_w = nn.Embedding(sizes.n_conditions, 2 * n_w) if w_prior and n_w else None
        if self.prior_w is not None:
            nn.init.zeros_(self.prior_w.weight)
        self.dec_x = Stack(n_latent, **width)

    def encode(self, batch: Batch) -> Distributions:
        x, known = self.likelihood.features(batch.x), (*batch.removed, condition(batch))
        q: Distributions = {"z": self.enc_z(x, known, batch.cont)}
        if self.enc_w is not None:
            q["w"] = self.enc_w(x, known, batch.cont)
        return q

    def decode(self, batch: Batch, latents: Latents) -> Distributions:
        h = self.dec_x(latents["z"], (*batch.removed, condition(batch)), batch.cont)
        p: Distributions = {"z": self.mixture(condition(batch), latents.get("w"))}
        if "w" in latents:
            p["w"] = self.style(condition(batch), latents["w"])
        return {**p, "x": self.likelihood(h, batch.log_ell, batch.b)}

    def mixture(self, c: Tensor, w: Tensor | None = None) -> GaussianMixture:
        """Prior of ``z``; as long as the components are not placed, all of them are ``N(0, I)``."""
        loc, scale = self.components(c, w)
        log_pi = self.weights(c)
        uniform = torch.full_like(log_pi, 1.0 / log_pi.shape[-1]).log()
        return GaussianMixture(
            torch.lerp(uniform, log_pi, self.placed), loc * self.placed, scale**self.placed
        )

    def style(self, c: Tensor, w: Tensor) -> Any:
        """Prior of ``w``."""
        if self.prior_w is None:
            return standard_normal(w)
        loc, log_scale = self.prior_w(c).chunk(2, -1)
        return gaussian(loc, log_scale.exp())

    def allowed(self, y: Tensor | None) -> Tensor | None:
        """Which components a cell may belong to, ``(n, K)``; ``None`` is all of any."""
        if y is None or self.n_labels == 0:
            return None
        return (self.label_of == y.unsqueeze(-1)) | (y >= self.n_labels).unsqueeze(-1)

    def log_assignment(self, p_z: GaussianMixture, z: Tensor, c: Tensor) -> Tensor:
        """``log r``, not knowing the label."""
        if self.enc_y is None:
            return torch.log_softmax(p_z.log_pi + p_z.component_log_prob(z), -1)
        return torch.log_softmax(self.head_y(self.enc_y(z, (c,))), -1)

    def terms(self, batch: Batch, q: Distributions, latents: Latents, p: Distributions) -> Terms:
        z, c, p_z, allowed = latents["z"], condition(batch), p["z"], self.allowed(batch.y)
        log_r, penalty = self.log_assignment(p_z, z, c), {}
        if allowed is not None:
            log_mass = torch.logsumexp(log_r.masked_fill(~allowed, -1e9), -1)
            penalty["label"] = -log_mass * self.placed
            log_r = (log_r - log_mass.unsqueeze(-1)).masked_fill(~allowed, -1e9)
        r = log_r.exp()
        if self.enc_y is None:
            kl_z = q["z"].log_prob(z) - (r * p_z.component_log_prob(z)).sum(-1)
        else:
            kl_z = (r * p_z.kl_from(q["z"])).sum(-1)
        kl = {"z": kl_z, "y": self.weights.cost(r, log_r, c) * self.placed}
        if "w" in q:
            kl["w"] = kl_divergence(q["w"], p["w"])
        recon = -self.likelihood.log_prob(p["x"], batch.x)
        return Terms(recon, kl, self.of_all_cells(), penalty)

    def of_all_cells(self) -> dict[str, Tensor]:
        """What the mixture itself costs, in nats of the whole data set."""
        out, divergence = {}, self.weights.divergence()
        if divergence is not None:
            out["pi"] = divergence * self.placed
        if self.components.own is not None and self.ridge:
            out["own"] = self.ridge * self.components.own.square().sum()
        return out

    @torch.no_grad()
    def begin_epoch(self, end: float, cells: Callable[[], Iterable[Batch]]) -> None:
        """Place the components, once, where the cells are."""
        if self.placed or end <= self.place_at:
            return
        training = self.training
        self.eval()
        found = [(self.encode(b)["z"], condition(b), b.y) for b in cells()]
        self.train(training)
        mean, variance = (torch.cat([getattr(q, k) for q, *_ in found]) for k in ("mean", "variance"))
        c = torch.cat([c for _, c, _ in found])
        y = None if self.n_labels == 0 else torch.cat([y for *_, y in found])
        r = partition(mean, self.label_of, y, self.n_labels)
        self.components.start_at(mean, variance, r)
        self.weights.start_at(nn.functional.one_hot(c, self.n_conditions).to(r.dtype).T @ r)
        self.placed.fill_(1.0)


def condition(batch: Batch) -> Tensor:
    """Codes of the condition; one for all where none is registered."""
    return torch.zeros_like(batch.b) if batch.c is None else batch.c
