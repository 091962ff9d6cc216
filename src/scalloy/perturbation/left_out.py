r"""Value of predictions, judged by groups whose change was seen and which are left out in turn.

    d_o      change of the mean expression of group o, with sampling variance v_o
    p_o      its prediction from the other groups, on the scale of the shift
    q_o      the same, combined with the prediction on the scale of levels
    a_o      p_o as if the other groups were equally similar to it

    share    sum_o (d_o - p_o)' (q_o - p_o) / sum_o |q_o - p_o|^2, between 0 and 1
    skill    1 - sum_o m_o(f) / sum_o m_o(0)      m_o(f) = |d_o - f_o|^2 - |v_o|_1,  f = p + share (q - p)
    promise  the smaller of skill and |f|^2 / (|f|^2 + |s|^2)      s  standard deviation of f
    kinship  1 - sum_o m_o(p) / sum_o m_o(a), between 0 and 1
    stretch  smallest k with (d_og - f_og)^2 <= c^2 (k^2 s_og^2 + v_og) for 90 % of genes and groups

``share`` is how far the second scale is believed: it minimises the squared error on groups that were left out
(stacking; Wolpert, Neural Networks 1992). ``skill`` is what a user may expect for another group: 1 is a
prediction without error, 0 no better than no change. All squares are corrected for the noise of the observed
change. Groups in which nothing changes count, too: they may have been predicted to change. ``kinship`` is the
share of the differences between the responses of groups that is explained by their similarity before the
change. ``stretch`` is the factor by which the standard deviations ``s_o`` of the predictions are too small,
so that intervals of ``c = 1.64`` of them hold as often as they should (conformal prediction: Lei et al., JASA
2018). It is at least 1: the number of trees was chosen for these groups, so what they missed is a little
optimistic. The decoder is left aside, since it has seen these groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

LEVEL = 0.9  # probability of intervals
MOST_STRETCH = 4.0
NOTHING = 1e-12
WORSE = 0.02  # part of the mean change by which an error has to be larger than that of no change


@dataclass(frozen=True)
class ExpectedSkill:
    """Skill to expect of a prediction, from ``contexts`` groups that were left out.

    ``left_out`` is the skill that these reached, and ``low`` and ``high`` the interval of a single one of
    them; ``worse`` of them were predicted worse than by no change. ``mean`` is what is promised
    (:func:`promised`).
    """

    mean: float
    low: float
    high: float
    contexts: int
    worse: int = 0
    left_out: float = np.nan


def stacked_share(shift: np.ndarray, one: np.ndarray, both: np.ndarray) -> float:
    """Return the weight of ``both`` against ``one`` that minimises the squared error, between 0 and 1.

    Parameters
    ----------
    shift
        Observed changes, groups x genes.
    one, both
        Predictions of them.
    """
    apart = both - one
    size = float(np.square(apart).sum())
    return float(np.clip(((shift - one) * apart).sum() / size, 0.0, 1.0)) if size > NOTHING else 1.0


def expected_skill(
    shift: np.ndarray, predicted: np.ndarray, noise: np.ndarray, of_error: np.ndarray | None = None
) -> ExpectedSkill:
    """Return the skill to expect for another group from those that were left out.

    The interval is that of Student's t for one more group. There is no expectation with fewer than two
    groups, or if nothing measurable changed in all of them together.

    Parameters
    ----------
    shift
        Observed changes, groups x genes.
    predicted
        Predictions of them.
    noise
        Sampling variance of the observed changes, groups x genes.
    of_error
        What noise adds to the squared errors, if that is something else.
    """
    missed = (np.square(shift - predicted) - (noise if of_error is None else of_error)).sum(1)
    changed = (np.square(shift) - noise).sum(1)
    n, total = len(shift), float(changed.sum())
    if n < 2 or total <= np.sqrt(2 * np.square(noise).sum()):  # no more than noise alone would often give
        return ExpectedSkill(np.nan, np.nan, np.nan, n)
    skills = 1 - missed * n / total
    mean, sd = min(float(skills.mean()), 1.0), float(skills.std(ddof=1))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * sd * float(np.sqrt(1 + 1 / n))
    unsure = 2 * np.sqrt((np.square(predicted) * noise).sum(1))  # standard deviation of the difference
    worse = missed - changed > np.maximum(2 * unsure, WORSE * total / n)
    return ExpectedSkill(mean, mean - half, min(mean + half, 1.0), n, int(worse.sum()), mean)


def promised(known: ExpectedSkill, shift: np.ndarray, uncertainty: np.ndarray) -> ExpectedSkill:
    """Return the skill to expect of a prediction, no larger than its own uncertainty leaves.

    If the change of each gene has the mean ``m`` and the standard deviation ``s``, then ``|d|^2`` has the
    mean ``|m|^2 + |s|^2``, and the squared error of the prediction ``m`` has the mean ``|s|^2``.

    Parameters
    ----------
    known
        Skill that was reached for groups that were left out, if there were enough.
    shift, uncertainty
        Predicted change, and the standard deviation of what it leaves open, by gene.
    """
    size, open_ = (float(np.square(v).sum()) for v in (shift, uncertainty))
    own = size / (size + open_) if size + open_ > 0 else 0.0
    return replace(known, mean=own if np.isnan(known.left_out) else min(own, known.mean))


def kinship(shift: np.ndarray, predicted: np.ndarray, alike: np.ndarray, noise: np.ndarray) -> float:
    """Return the share of the differences between responses that similarity before the change explains.

    Parameters
    ----------
    shift
        Observed changes, groups x genes.
    predicted
        Predictions of them from the other groups.
    alike
        The same as if all other groups were equally similar.
    noise
        Sampling variance of the observed changes, groups x genes.
    """
    with_similarity, without = (float((np.square(shift - f) - noise).sum()) for f in (predicted, alike))
    return float(np.clip(1 - with_similarity / without, 0.0, 1.0)) if without > NOTHING else 0.0


def stretch(missed: np.ndarray, sd: np.ndarray, noise: np.ndarray) -> float:
    """Return the factor, at least 1, with which intervals hold in groups that were left out.

    Parameters
    ----------
    missed
        Errors of the predictions, groups x genes.
    sd
        Standard deviations of the predictions, groups x genes.
    noise
        Sampling variance of the observed changes, groups x genes.
    """
    wide = stats.norm.ppf(0.5 + LEVEL / 2)
    needed = (np.square(missed / wide) - noise) / np.maximum(np.square(sd), NOTHING)
    n = needed.size
    if n == 0:
        return 1.0
    found = float(np.quantile(needed, min(1.0, LEVEL * (1 + 1 / n))))
    return float(np.clip(np.sqrt(max(found, 0.0)), 1.0, MOST_STRETCH))
