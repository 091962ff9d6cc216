"""Pictures: one per function; axes in, axes out, nothing is shown or saved."""

from scalloy.pl.history import history
from scalloy.pl.latent import latent
from scalloy.pl.transfer import held_out, transfer

__all__ = ["held_out", "history", "latent", "transfer"]
