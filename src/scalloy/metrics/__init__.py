"""Metrics: arrays in, floats out."""

from scalloy.metrics.clustering import expected_calibration_error, hungarian_accuracy, matched, purity
from scalloy.metrics.transfer import coverage, pearson_delta, r2_mean, resid_pearson_delta, skill

__all__ = [
    "coverage",
    "expected_calibration_error",
    "hungarian_accuracy",
    "matched",
    "pearson_delta",
    "purity",
    "r2_mean",
    "resid_pearson_delta",
    "skill",
]
