"""NumPy only: how a change of condition changes counts. Predictions and baselines both build on it."""
