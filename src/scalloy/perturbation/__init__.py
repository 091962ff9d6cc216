"""Effects of a change of condition on expression and counts, for models and baselines; without torch."""
