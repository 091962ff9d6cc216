"""Pictures: one per function; axes in, axes out, nothing is shown or saved."""

from scalloy.pl.history import history
from scalloy.pl.latent import latent

__all__ = ["history", "latent"]
