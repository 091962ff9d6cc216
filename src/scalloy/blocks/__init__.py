"""Building blocks of the models: networks, distributions, likelihoods, priors and posteriors."""
