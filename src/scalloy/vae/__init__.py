"""Mathematics of the models, one file for each; start with :mod:`scalloy.vae.base`."""
