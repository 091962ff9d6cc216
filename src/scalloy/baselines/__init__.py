"""The simple rivals: what any prediction under another condition should beat."""

from scalloy.baselines.latent import LatentShift
from scalloy.baselines.predictors import METHODS, Baseline
from scalloy.baselines.shifts import SHIFTS, kernel_ridge, mean_shift, tuned

__all__ = ["METHODS", "SHIFTS", "Baseline", "LatentShift", "kernel_ridge", "mean_shift", "tuned"]
