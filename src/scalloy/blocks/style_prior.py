r"""Prior of a style latent ``w``: a diagonal Gaussian for each condition, fixed at N(0, I) or learned.

    w | c ~ N(m(c), diag s(c)^2)                                                        at
    p(c | w) = p(w | c) / sum_c' p(w | c'), all conditions equally likely               log_told
    w' = m(c') + s(c') / s(c) (w - m(c)), so that w ~ p(w | c) makes w' ~ p(w | c')     carried

The last is the optimal transport of N(m, s) to N(m', s') for squared distances: in each dimension, the only
increasing map that takes one to the other.

The ELBO alone does not teach p(w | c). If decoder and encoder know c, then q(w | x, c) = p(w | c) costs
nothing wherever p(w | c) is, and p(w | c) stays where it began. So if it is to be learned, q(w | x) does not
see c, and the penalty ``-log p(c | w)`` makes w reveal c from what is in the cell. The penalty is taken at
the mean of q(w | x): in a sample, noise would drown the small differences that there are at first. The KL
then draws the prior to the moments of q(w | x) under c, because with q = N(a, b)

    d KL / d m     = (m - a) / s^2                zero in the mean over cells where m = E a
    d KL / d log s = 1 - (b^2 + (a - m)^2) / s^2  and where s^2 = E[b^2 + (a - m)^2]

If conditions differ in nothing that the cells show, their priors stay together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Independent

from scalloy.blocks.distributions import gaussian
from scalloy.blocks.layers import looked_up


@dataclass(frozen=True)
class StylePrior:
    """Prior of ``w`` under each condition, as written at the top of this file.

    ``table`` holds m(c) beside log s(c), ``(conditions, 2 L)``.
    """

    table: Tensor

    def at(self, c: Tensor) -> Independent:
        """Return ``p(w | c)`` for the condition of each cell."""
        loc, log_scale = looked_up(self.table, c).chunk(2, -1)
        return gaussian(loc, log_scale.exp())

    def log_told(self, w: Tensor) -> Tensor:
        """Return ``log p(c | w)`` for every condition, ``(..., conditions)``."""
        loc, log_scale = self.table.chunk(2, -1)
        return torch.log_softmax(gaussian(loc, log_scale.exp()).log_prob(w.unsqueeze(-2)), -1)

    def told_of(self, w: Tensor, c: Tensor) -> Tensor:
        """Return ``log p(c | w)`` for the condition of each cell, or zero if the table does not have it."""
        told = self.log_told(w)
        known = c.clamp_max(told.shape[-1] - 1)
        return told.gather(-1, known.unsqueeze(-1))[:, 0] * (known == c)

    def carried(self, w: Tensor, c: Tensor, to: Tensor) -> Tensor:
        """Carry ``w`` from the prior of its condition to that of the condition ``to``."""
        here, there = self.at(c), self.at(to)
        return there.mean + there.stddev / here.stddev * (w - here.mean)

    def scaled(self, q_w: Independent, c: Tensor) -> Independent:
        """Return N(m + s a, s b) for ``q_w`` = N(a, b): its KL from the prior does not depend on m and s.

        Models of file formats 1 to 3 have such a posterior, so their prior was not learned.
        """
        p_w = self.at(c)
        return gaussian(p_w.mean + p_w.stddev * q_w.mean, p_w.stddev * q_w.stddev)
