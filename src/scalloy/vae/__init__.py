"""The mathematics: one file per model. Start with :mod:`scalloy.vae.base`."""
