"""The simple rivals: what any prediction under another condition should beat."""

from scalloy.baselines.latent import LatentShift
from scalloy.baselines.learned import LearnedPooling, learned_pooling
from scalloy.baselines.modalities import CROSS_METHODS, CrossModal, ProbabilisticCCA
from scalloy.baselines.pooling import Pooled, partial_pooling
from scalloy.baselines.predictors import METHODS, Baseline
from scalloy.baselines.shifts import SHIFTS, kernel_ridge, mean_shift, tuned

__all__ = [
    "CROSS_METHODS",
    "METHODS",
    "SHIFTS",
    "Baseline",
    "CrossModal",
    "LatentShift",
    "LearnedPooling",
    "Pooled",
    "ProbabilisticCCA",
    "kernel_ridge",
    "learned_pooling",
    "mean_shift",
    "partial_pooling",
    "tuned",
]
