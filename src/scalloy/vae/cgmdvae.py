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
    penalty: - log sum_{k in S_y} r_k   for cells whose label is known            label
             - log p(w | c) / sum_c' p(w | c')   at w = E q(w | x)                condition
             MMD^2 between batches b, b' within components (batch_mixing.py)      mmd

``r`` is the posterior of the component given the sampled ``z``. The terms z and y then add up to
``log q(z) - log sum_k pi_k p(z | k)``: the component is integrated out. If the label of a cell is known, only
the components bound to it, S_y, are possible; otherwise all are. Unsupervised, semi-supervised and supervised
training differ in nothing else. With ``assignment="amortised"`` a network gives ``r``, and the KL of each
component is taken in closed form, which is a looser bound. With ``w_prior="condition"``, q(w | x) does not
see c and there is the penalty ``condition``; :mod:`scalloy.blocks.style_prior` explains why.

Differs from Kolb (MSc thesis 2023), where each cell has a Dirichlet of its own: integrated out, it gives
uniform weights whatever its alpha (``Local`` in :mod:`scalloy.blocks.mixtures`). Here all cells share one, as
in Dilokthanakul et al., "Deep unsupervised clustering with Gaussian mixture VAEs", arXiv 1611.02648, and the
weights are integrated by variational Bayes (Bishop, PRML, ch. 10.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from scalloy.blocks.label_readers import Readers
from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.mixture_prior import NEVER, MixturePrior
from scalloy.blocks.mixtures import GaussianMixture
from scalloy.blocks.networks import UNBOUNDED, Domain, Encoder, GaussianHead, Head, NetworkSettings
from scalloy.blocks.style_prior import StylePrior
from scalloy.blocks.unknown_cells import UnknownCells
from scalloy.vae.base import Batch, Distributions, Latents, Sizes, Terms, VAEModule
from scalloy.vae.batch_mixing import between_batches
from scalloy.vae.component_init import grow_tree, nothing_removed, place_once
from scalloy.vae.label_reading import learn_labels, told_labels, watched


class CGMDVAE(VAEModule):
    """Conditional Gaussian-mixture Dirichlet VAE, as written at the top of this file.

    Parameters
    ----------
    sizes, likelihood
        Sizes of the data; likelihood of the counts, given a hidden vector of size ``n_hidden``.
    prior, networks
        Prior of ``z``: components, weights and the labels bound to components; settings of the networks.
    n_w, ridge
        Size of the style latent, 0 means none; weight of the squared shifts of single components.
    w_prior
        ``"standard"``: N(0, I); ``"condition"``: learned, with the penalty ``condition``; ``"free"``: learned
        without it, q(w | x, c) sees c; ``"relative"``: as that, q in units of the prior (old files).
    place_at
        Share of training after which the components are placed; before, the prior of ``z`` is ``N(0, I)``.
    domain
        Bounds of the posteriors of ``z`` and ``w``.
    amortised, calibrated, mmd
        Whether a network gives ``r``, probabilities of labels are calibrated, there is the penalty ``mmd``.
    """

    learns_prior = True

    def __init__(
        self,
        sizes: Sizes,
        likelihood: Likelihood,
        prior: MixturePrior,
        networks: NetworkSettings,
        *,
        n_w: int = 0,
        w_prior: str = "standard",
        amortised: bool = False,
        ridge: float = 0.0,
        place_at: float = 0.2,
        domain: Domain = UNBOUNDED,
        calibrated: bool = False,
        mmd: bool = False,
    ) -> None:
        super().__init__()
        self.likelihood, self.prior = likelihood, prior
        self.n_latent, self.ridge, self.place_at = networks.n_latent, ridge, place_at
        self.plain, known = nothing_removed(sizes), sizes.known
        self.n_batch, self.mmd = sizes.n_batch, mmd

        def encoder(n_out: int, seen: dict[str, Any]) -> Encoder:
            return networks.encoder(sizes.n_vars, GaussianHead(networks.n_encoded, n_out, domain), **seen)

        self.w_prior, self.enc_y = w_prior if n_w else "standard", None
        seen = sizes.covariates if self.w_prior == "condition" else known
        self.enc_z, self.enc_w = encoder(self.n_latent, known), encoder(n_w, seen) if n_w else None
        if amortised:
            self.enc_y = networks.decoder(self.n_latent, n_layers=1, n_cats=(sizes.conditions,))
            self.head_y = Head(networks.widths[0], len(prior.used))
        together = torch.zeros(sizes.n_conditions, 2 * n_w)  # m(c) = 0 and log s(c) = 0
        if self.w_prior == "standard":
            self.register_buffer("prior_w", together, persistent=False)
        else:
            self.prior_w = nn.Parameter(together)
        self.dec_x = networks.decoder(self.n_latent, n_vars=sizes.n_vars, **known)
        self.readers, self.unknowns = None, None
        if prior.n_labels:
            size, tree = (self.n_latent, sizes.n_vars), prior.hierarchy
            self.readers = Readers(*size, prior.n_labels, tree if calibrated else None)
            self.unknowns = UnknownCells(*size, len(tree), len(prior.used))

    def from_prior(self, batch: Batch, cluster: Tensor | None = None) -> Latents:
        latents = {} if self.enc_w is None else {"w": self.style.at(batch.condition).sample()}
        return {**latents, "z": self.prior.draw(batch.condition, latents.get("w"), cluster)}

    def encode(self, batch: Batch) -> Distributions:
        x, known = self.likelihood.features(batch.x), (*batch.removed, batch.condition)
        q: Distributions = {"z": self.enc_z(x, known, batch.cont)}
        if self.enc_w is not None:
            q_w = self.enc_w(x, batch.removed if self.w_prior == "condition" else known, batch.cont)
            q["w"] = q_w if self.w_prior != "relative" else self.style.scaled(q_w, batch.condition)
        return q

    def decode(self, batch: Batch, latents: Latents) -> Distributions:
        h = self.dec_x(latents["z"], (*batch.removed, batch.condition), batch.cont)
        p: Distributions = {"z": self.prior(batch.condition, latents.get("w"))}
        if "w" in latents:
            p["w"] = self.style.at(batch.condition)
        return {**p, "x": self.likelihood(h, batch.log_ell, batch.b)}

    @property
    def style(self) -> StylePrior:
        """Prior of ``w`` under each condition."""
        return StylePrior(self.prior_w)

    def log_assignment(self, p_z: GaussianMixture, z: Tensor, c: Tensor) -> Tensor:
        """Return ``log r`` without using the label."""
        if self.enc_y is None:
            return torch.log_softmax(p_z.log_pi + p_z.component_log_prob(z), -1)
        logits = self.head_y(self.enc_y(z, (c,)))
        return torch.log_softmax(logits.masked_fill(~self.prior.used, NEVER), -1)

    def known(self, log_r: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return ``log r`` given the labels, and ``log sum_{k in S_y} r_k`` before (``None``: no labels)."""
        allowed = self.prior.allowed(y)
        if allowed is None:
            return log_r, None
        log_mass = torch.logsumexp(log_r.masked_fill(~allowed, NEVER), -1)
        return (log_r - log_mass.unsqueeze(-1)).masked_fill(~allowed, NEVER), log_mass

    def terms(self, batch: Batch, q: Distributions, latents: Latents, p: Distributions) -> Terms:
        z, c, p_z, penalty = latents["z"], batch.condition, p["z"], dict[str, Tensor]()
        assert isinstance(p_z, GaussianMixture)
        told = self.log_assignment(p_z, z, c)
        log_r, log_mass = self.known(told, batch.y)
        if log_mass is not None:
            penalty["label"] = -log_mass * self.prior.placed
        r = log_r.exp()
        if self.mmd:
            penalty["mmd"] = between_batches(z, batch.b, r, self.n_batch) * self.prior.placed
        if self.enc_y is None:
            kl_z = q["z"].log_prob(z) - (r * p_z.component_log_prob(z)).sum(-1)
        else:
            kl_z = (r * p_z.kl_from(q["z"])).sum(-1)
        kl = {"z": kl_z, "y": self.prior.cost(r, log_r, c)}
        if "w" in q:
            kl["w"] = kl_divergence(q["w"], p["w"])
            if self.w_prior == "condition":
                penalty["condition"] = -self.style.told_of(q["w"].mean, c)
        recon = -self.likelihood.log_prob(p["x"], batch.x)
        return Terms(recon, kl, self.prior.of_all_cells(self.ridge), penalty, watched(self, told, r, batch.y))

    def log_weight(self, batch: Batch, q: Distributions, latents: Latents, p: Distributions) -> Tensor:
        """Return the log importance weight, with weights ``E pi`` so that the mixture is a density."""
        p_z = self.prior.density(batch.condition, latents.get("w"))
        return super().log_weight(batch, q, latents, {**p, "z": p_z})

    @torch.no_grad()
    def assignment(self, batch: Batch, n_samples: int = 0, *, q: Distributions | None = None) -> Tensor:
        """Return ``r`` at the posterior means of the cells, or its mean over ``n_samples`` nodes."""
        q, c = q or self.encode(batch), batch.condition
        draws = self.nodes(q, n_samples) or [{k: v.mean for k, v in q.items()}]
        found = [self.log_assignment(self.prior(c, d.get("w")), d["z"], c).exp() for d in draws]
        return torch.stack(found).mean(0)

    def settle(self) -> None:
        self.prior.settle()

    def begin_epoch(self, end: float, cells: Callable[[], Iterable[Batch]]) -> bool:
        """Place the components where the cells are, once."""
        return place_once(self, end, cells)

    @torch.no_grad()
    def label_probabilities(
        self, batch: Batch, n_samples: int, *, q: Distributions | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the probability of each label among the labels (a mean of votes), and that of any label."""
        return told_labels(self, batch, n_samples, q or self.encode(batch))

    def expression(self, batch: Batch) -> Tensor | None:
        """Return the observed expression; ``None`` if something is to be removed from it."""
        return self.likelihood.observed(batch.x) if self.plain else None

    @torch.no_grad()
    def finish(self, cells: Callable[[], Iterable[Batch]]) -> None:
        """Make a tree of clusters; learn where labels are and how far they reach."""
        grow_tree(self, cells, places=self.enc_y is None)
        if self.readers is None or self.prior.settled:
            return
        learn_labels(self, cells)
