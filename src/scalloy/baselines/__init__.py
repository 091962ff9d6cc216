"""The simple rivals: what any prediction under another condition should beat."""

from scalloy.baselines.shifts import kernel_ridge, mean_shift

__all__ = ["kernel_ridge", "mean_shift"]
