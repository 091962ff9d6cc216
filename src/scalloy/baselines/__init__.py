"""Simple baselines that any prediction under another condition should beat."""

from scalloy.baselines.contexts import Contexts
from scalloy.baselines.latent import LatentShift
from scalloy.baselines.modalities import CROSS_METHODS, CrossModal, ProbabilisticCCA
from scalloy.baselines.predictors import METHODS, Baseline, register
from scalloy.baselines.shifts import SHIFTS, kernel_ridge, mean_shift, tuned
from scalloy.baselines.structured import (
    STRUCTURED,
    additive_null,
    generic_response,
    interpolation,
    kernel_regression,
    linear_in_log_dose,
    mean_of_parts,
    nearest_dose,
    scaled_sum,
)
from scalloy.baselines.structured_baseline import StructuredBaseline
from scalloy.perturbation.boosted_pooling import LearnedPooling, learned_pooling
from scalloy.perturbation.pooling import Pooled, partial_pooling

__all__ = [
    "CROSS_METHODS",
    "METHODS",
    "SHIFTS",
    "STRUCTURED",
    "Baseline",
    "Contexts",
    "CrossModal",
    "LatentShift",
    "LearnedPooling",
    "Pooled",
    "ProbabilisticCCA",
    "StructuredBaseline",
    "additive_null",
    "generic_response",
    "interpolation",
    "kernel_regression",
    "kernel_ridge",
    "learned_pooling",
    "linear_in_log_dose",
    "mean_of_parts",
    "mean_shift",
    "nearest_dose",
    "partial_pooling",
    "register",
    "scaled_sum",
    "tuned",
]
