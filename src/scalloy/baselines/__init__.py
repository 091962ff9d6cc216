"""Simple baselines that any prediction under another condition should beat."""

from scalloy.baselines.latent import LatentShift
from scalloy.baselines.modalities import CROSS_METHODS, CrossModal, ProbabilisticCCA
from scalloy.baselines.predictors import METHODS, Baseline, register
from scalloy.baselines.shifts import SHIFTS, kernel_ridge, mean_shift, tuned
from scalloy.perturbation.boosted_pooling import LearnedPooling, learned_pooling
from scalloy.perturbation.pooling import Pooled, partial_pooling

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
    "register",
    "tuned",
]
