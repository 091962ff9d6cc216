r"""Combinations of perturbations, compared with the sum of what their parts do.

    I_g   =  d_g(A+B) - d_g(A) - d_g(B)                              d: change against the control
    V_g   =  v_g(A+B) + v_g(A) + v_g(B) + (1 - n)^2 v_g(control)     n: parts that were seen by themselves
    z_g   =  (I_g - median_g I_g) / (k sqrt(V_g))                    k = max(1, median_g |z_g| / 0.674)

The control is in every change that was seen, so its noise counts ``(1 - n)^2`` times. The effect of a part
that was not seen by itself is predicted (:mod:`scalloy.perturbation.condition_effects`), and the variance of
the prediction takes the place of its noise. Levels are relative to all counts of a cell: if some genes with
many counts rise more than the parts let expect, all others fall. So the median over genes is taken out.

The spread of most genes, which do not interact, shows whether the noise was underestimated (empirical null;
Efron, Journal of the American Statistical Association 2004). Sums over few cells have heavier tails than a
normal distribution, so Student's is taken, with as many degrees of freedom as the smallest context has cells,
less one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from scalloy.perturbation.design import Content
from scalloy.perturbation.structured import Structured

HALF = float(stats.norm.ppf(0.75))  # median of the absolute value of a standard normal number
FEW_GENES = 20  # number of genes below which there is no telling what most of them do


@dataclass(frozen=True)
class AgainstSum:
    """Change of a combination beside the sum of its parts, by gene."""

    observed: np.ndarray
    additive: np.ndarray
    se: np.ndarray
    p_value: np.ndarray


def against_sum(known: Structured, scale: str, group: str, content: Content) -> AgainstSum:
    """Compare a combination that was seen in a group with the sum of the effects of its parts.

    Parameters
    ----------
    known
        What conditions have shown.
    scale
        Name of the scale, ``"shift"`` or ``"levels"``.
    group, content
        Group, and content of the combination.
    """
    effects = known.effects(scale)
    seen, position = effects.seen, {c: i for i, c in enumerate(effects.seen.contexts)}
    at = [position[group, content]]
    additive, variance = np.zeros(seen.change.shape[1]), seen.noise[at[0]].copy()
    for part in content.parts:
        single = Content((part,), content.time)
        if (group, single) in position:
            at.append(position[group, single])
            additive += seen.change[at[-1]]
            variance += seen.noise[at[-1]]
        else:
            hidden = [c for c in seen.contexts if c[1] == content]
            found = effects.predict(group, single, without=hidden)
            additive += found.mean
            variance += np.square(found.sd)
    variance += (2 - len(at)) ** 2 * seen.shared[at[0]]
    observed, se = seen.change[at[0]], np.sqrt(variance)
    difference = observed - additive
    several = len(difference) >= FEW_GENES
    middle = float(np.median(difference)) if several else 0.0
    z = np.divide(difference - middle, se, out=np.zeros_like(se), where=se > 0)
    usual = z[z != 0]
    wide = max(1.0, float(np.median(np.abs(usual))) / HALF) if several and len(usual) else 1.0
    least = min(known.n_cells(*seen.contexts[i]) for i in at)
    p_value = 2 * stats.t.sf(np.abs(z) / wide, max(least - 1, 1))
    return AgainstSum(observed, additive + middle, wide * se, p_value)
