"""Likelihood of one category per cell, such as a clonotype or a genotype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical

from scalloy.blocks.likelihoods import Likelihood
from scalloy.kernels.csr import dense


class Categorical(Likelihood):
    """One category per cell, ``x ~ Cat(softmax(A h))``; ``x`` has a one in its column and zeros elsewhere."""

    counts = draws_counts = False

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> OneHotCategorical:
        return OneHotCategorical(logits=self.head(h), validate_args=False)

    def features(self, x: Tensor) -> Tensor:
        return x

    def log_prob(self, p_x: Distribution, x: Tensor) -> Tensor:
        return self.log_prob_entries(p_x, x).sum(-1)

    def log_prob_entries(self, p_x: Distribution, x: Tensor) -> Tensor:
        """Return the log-probability of the category in its column, and zero in the others."""
        assert isinstance(p_x, OneHotCategorical)
        return dense(x) * F.log_softmax(p_x.logits, -1)

    def fraction(self, p_x: Distribution) -> Tensor:
        return p_x.mean

    @torch.no_grad()
    def start_at(self, mean: Tensor, variance: Tensor, log_ell: Tensor) -> None:
        """Start at the share of each category."""
        self.head.bias.copy_((mean + 1e-3).log())
