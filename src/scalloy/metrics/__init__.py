"""Metrics: arrays in, floats out."""

from scalloy.metrics.clustering import expected_calibration_error, hungarian_accuracy, matched, purity
from scalloy.metrics.transfer import (
    ceilings,
    coverage,
    de_auprc,
    de_overlap,
    energy_distance,
    mmd,
    pearson_delta,
    r2_determination,
    r2_mean,
    r2_variance,
    resid_pearson_delta,
    skill,
    spearman_brown,
    wilcoxon,
)

__all__ = [
    "ceilings",
    "coverage",
    "de_auprc",
    "de_overlap",
    "energy_distance",
    "expected_calibration_error",
    "hungarian_accuracy",
    "matched",
    "mmd",
    "pearson_delta",
    "purity",
    "r2_determination",
    "r2_mean",
    "r2_variance",
    "resid_pearson_delta",
    "skill",
    "spearman_brown",
    "wilcoxon",
]
