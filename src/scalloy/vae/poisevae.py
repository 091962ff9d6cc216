"""POISEVAE: several modalities with private latents under one coupled prior.

    model                                            inference
    z, z2, ..   ~ prod_k N(z_k; 0, I)                one after the other; nu_k and the messages m_jk come from
                  prod_{j<k} exp{T_j^T G_jk T_k}     the encoders of what is seen, and T_k = (z_k, z_k^2):
                  / Z(G)                             q(z_k | z_<k, x, ..) ~ r_k(z_k) exp{told_k^T T_k}
    x  | z      ~ likelihood(ell, b)                   told_k = nu_k + sum_{j later} m_jk
    x2 | z2     ~ likelihood(b), and so on             r_k    ~ N(z_k; 0, I) exp{heard_k^T T_k}
                                                       heard_k = sum_{j earlier} G_jk^T T_j

    -ELBO = sum_k E[-log p(x_k | z_k, ell, b)]                            recon    (of what was measured)
          + sum_k E[KL(q(z_k | z_<k, x, ..) || r_k) - A(heard_k)]         z
          + log Z(G)

``A`` is the log normaliser of ``r_k`` (:func:`scalloy.blocks.gibbs.log_normaliser`): the prior density is the
product of all ``r_k exp A(heard_k)``, divided by ``Z(G)``, whatever the order. ``log Z(G)`` is one number for
all cells (:mod:`scalloy.blocks.coupled_prior`). The latent that is drawn last is drawn from its exact
conditional. The bound takes one sample of the latents, in a random order. Apart from that, and from the
estimate of ``log Z(G)`` for a coupling of second order, it is exact.

In training, some modalities of some cells are hidden from the encoders but not from the likelihood. The bound
holds whatever the posterior sees, and in this way each modality learns to predict the others. The latents of
modalities that are not seen are drawn first, from the messages alone. The bound is loose for such cells: what
cannot be predicted from the other modalities would be taken for measurement noise. So the standard deviation
of a Gaussian likelihood is learned only from cells whose encoders see the modality.

Kumar, Gong & Pearson, "Product of identifiable sufficient experts" (POISE-VAE). This model differs in two
ways: instead of a chain for each cell there is a posterior in steps, the last of them exact, so that there is
an ELBO; and the KL is taken from the coupled prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from scalloy.blocks.joint_posteriors import ExpertHead, Joint, Posterior, letters
from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.networks import Encoder, NetworkSettings, Stack
from scalloy.kernels.csr import cell_totals
from scalloy.vae.base import Batch, Distributions, Latents, Sizes, Terms, VAEModule, is_sparse


class POISEVAE(VAEModule):
    """VAE of several modalities under a coupled prior, as written at the top of this file.

    Parameters
    ----------
    sizes
        Sizes of the data.
    likelihoods
        Likelihood of each modality, given a hidden vector of size ``n_hidden``.
    joint
        Prior and posterior of the latents.
    networks
        Settings of the networks; each latent has ``n_latent`` dimensions.
    hide
        Share of the cells of which each modality is the first to be hidden from the encoders in training; of
        more than two, one of the others stays, and each further one is hidden with probability 1/2.
    hidden_rate
        Share of the values of the first modality, and of those that are shares of a total, that is hidden
        from their encoders in training.
    """

    likelihoods: Sequence[Likelihood]
    encoders: Sequence[Encoder]
    decoders: Sequence[Stack]
    hidden_from: Tensor
    hidden_to: Tensor
    usual_log_ell: Tensor
    usual_totals: Tensor

    def __init__(
        self,
        sizes: Sizes,
        likelihoods: Sequence[Likelihood],
        joint: Joint,
        networks: NetworkSettings,
        *,
        hide: Sequence[float] = (0.25, 0.5),
        hidden_rate: float = 0.5,
    ) -> None:
        super().__init__()
        self.joint = joint
        to = torch.tensor(tuple(hide)).cumsum(0)  # a uniform draw in between hides this modality
        self.register_buffer("hidden_from", torch.cat([torch.zeros(1), to[:-1]]), persistent=False)
        self.register_buffer("hidden_to", to, persistent=False)
        self.networks, n_latent, known = networks, networks.n_latent, sizes.covariates
        self.letters, n_others = letters(len(likelihoods), "x"), len(sizes.n_others)
        seen = networks.sizes_encoded(known)
        sent = [n_latent] * n_others if joint.sends else []
        encoders, decoders = [], []
        for k, (n, likelihood) in enumerate(zip((sizes.n_vars, *sizes.n_others), likelihoods, strict=True)):
            rate = hidden_rate if k == 0 or likelihood.depth == "total" else 0.0
            head = ExpertHead(networks.n_encoded, n_latent, sent)
            encoders.append(networks.encoder(n, head, hidden_rate=rate, **seen))
            depth = int(k > 0 and likelihood.depth != "total")
            decoders.append(networks.decoder(n_latent, **{**known, "n_cont": sizes.n_cont + depth}))
            if k:
                self.register_buffer(f"middle_{k}", torch.zeros(n))
        self.likelihoods, self.encoders, self.decoders = (
            cast("Any", nn.ModuleList(parts)) for parts in (likelihoods, encoders, decoders)
        )
        self.register_buffer("usual_log_ell", torch.zeros(()))
        self.register_buffer("usual_totals", torch.zeros(n_others))

    @property
    def likelihood(self) -> Likelihood:  # type: ignore[override]
        """Likelihood of the first modality."""
        return self.likelihoods[0]

    def seen(self, batch: Batch) -> Tensor:
        """Return which modalities the encoders see; in training, some are hidden in a share of the cells."""
        measured = batch.measured
        if not self.training:
            return measured
        u = torch.rand_like(measured[:, :1])
        chosen = (u >= self.hidden_from) & (u < self.hidden_to)
        more = (torch.rand_like(measured) < 0.5) & chosen.any(-1, keepdim=True)
        spared = (torch.rand_like(measured) - 2.0 * chosen).argmax(-1, keepdim=True)  # one stays at least
        hidden = (chosen | more).scatter(-1, spared, value=False)
        kept = measured * ~hidden
        return torch.where((kept.sum(-1) > 0).unsqueeze(-1), kept, measured)

    def encode(self, batch: Batch) -> Posterior:
        known = self.networks.encoded(batch.removed, batch.cont)
        each = enumerate(zip(batch.modalities, self.encoders, strict=True))
        told = [encoder(self.features(k, x), *known) for k, (x, encoder) in each]
        return self.joint.posterior(told, self.seen(batch))

    def features(self, k: int, x: Tensor) -> Tensor:
        """Return the input of the encoder of a modality: zero is the mean where nothing was measured."""
        features = self.likelihoods[k].features(x)
        if k == 0 or is_sparse(x):
            return features
        return (features - self.get_buffer(f"middle_{k}")).nan_to_num(0.0)

    def draw(self, q: Distributions, sample_shape: tuple[int, ...] = ()) -> Latents:
        assert isinstance(q, Posterior)
        return self.joint.draw(q, sample_shape)

    def decode(self, batch: Batch, latents: Latents) -> Distributions:
        return {letter: self.decode_one(k, batch, latents) for k, letter in enumerate(self.letters)}

    def decode_one(self, k: int, batch: Batch, latents: Latents) -> Distribution:
        """Return the distribution of a modality, given by its number."""
        z, likelihood, cont = latents[letters(k + 1)[k]], self.likelihoods[k], batch.cont
        of = 0 if likelihood.depth == "other" else k
        log_ell = self.log_total(of, batch)
        if k and likelihood.depth != "total":
            depth = (log_ell - self.usual(of)) * (of > 0 or self.likelihood.draws_counts)
            cont = depth if cont is None else torch.cat([cont, depth], -1)
        return likelihood(self.decoders[k](z, batch.removed, cont), log_ell, batch.b)

    def log_total(self, k: int, batch: Batch) -> Tensor:
        """Return the log total of each cell in a modality; the usual one where it was not measured."""
        totals = batch.log_ell if k == 0 else log_totals(batch.others[k - 1])
        return torch.where(batch.measured[:, k : k + 1] > 0, totals, self.usual(k))

    def usual(self, k: int) -> Tensor:
        """Return the mean log total of a modality."""
        return self.usual_log_ell if k == 0 else self.usual_totals[k - 1]

    def log_likelihoods(self, batch: Batch, p: Distributions) -> tuple[Tensor, ...]:
        """Return ``log p(x | z)``, ``log p(x2 | z2)`` and so on, of what was measured."""
        out = []
        for k, (x, likelihood) in enumerate(zip(batch.modalities, self.likelihoods, strict=True)):
            if k == 0 or is_sparse(x):
                out.append(likelihood.log_prob(p[self.letters[k]], x) * batch.measured[:, k])
            else:
                each = likelihood.log_prob_entries(p[self.letters[k]], x.nan_to_num(0.0))
                out.append(torch.where(x.isnan(), 0.0, each).sum(-1))
        return tuple(out)

    def terms(self, batch: Batch, q: Distributions, latents: Latents, p: Distributions) -> Terms:
        assert isinstance(q, Posterior)
        seen = (q.seen >= batch.measured).unbind(-1)
        each = zip(self.letters, self.likelihoods, seen, strict=True)
        parts = self.log_likelihoods(batch, {x: lik.noise_from(p[x], rows) for x, lik, rows in each})
        return Terms(-torch.stack(parts).sum(0), {"z": self.joint.kl(q, latents)})

    def log_weight(self, batch: Batch, q: Distributions, latents: Latents, p: Distributions) -> Tensor:
        assert isinstance(q, Posterior)
        return torch.stack(self.log_likelihoods(batch, p)).sum(0) + self.joint.log_ratio(q, latents)

    @torch.no_grad()
    def start_at(self, k: int, middle: Tensor | None, log_total: Tensor) -> None:
        """Start at the mean of a modality, as its encoder sees it, and at its mean log total."""
        if k == 0:
            self.usual_log_ell.copy_(log_total.mean())
            return
        self.usual_totals[k - 1] = log_total.mean()
        if middle is not None:
            self.get_buffer(f"middle_{k}").copy_(middle)


def log_totals(x: Tensor) -> Tensor:
    """Return the log total ``(n, 1)`` of each cell in a modality, of the entries that were measured."""
    totals = cell_totals(x) if is_sparse(x) else x.nan_to_num(0.0).sum(-1)
    return totals.clamp_min(1e-6).log().unsqueeze(-1)
