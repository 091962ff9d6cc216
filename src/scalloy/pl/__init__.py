"""Pictures: one per function; axes in, axes out, nothing is shown or saved."""

from scalloy.pl.history import history, terms
from scalloy.pl.latent import latent
from scalloy.pl.likelihoods import counts, likelihoods
from scalloy.pl.transfer import held_out, joint, transfer

__all__ = ["counts", "held_out", "history", "joint", "latent", "likelihoods", "terms", "transfer"]
