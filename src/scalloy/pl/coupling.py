"""Plot of the coupling between the latent codes of modalities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scalloy.models.poisevae import POISEVAE


def coupling(
    model: POISEVAE, of: str | None = None, to: str | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the matrix of the coupled prior: first and second powers of one code against those of the other.

    Parameters
    ----------
    model
        A trained model with ``joint="poise"`` or ``"gaussian"``.
    of, to
        Names of the modalities of the rows and the columns; by default the first and the second.
    ax
        Axes to draw into; ``None`` makes new ones.

    Examples
    --------
    >>> ax = sa.pl.coupling(poisevae)
    """
    frame = model.get_coupling(of, to)
    ax = plt.subplots(figsize=(5.4, 4.6), layout="constrained")[1] if ax is None else ax
    limit = float(frame.abs().to_numpy().max()) or 1.0
    image = ax.imshow(frame, cmap="RdBu_r", vmin=-limit, vmax=limit)
    sizes = [n // 2 for n in frame.shape]
    ax.axhline(sizes[0] - 0.5, color="0.3", linewidth=0.8)
    ax.axvline(sizes[1] - 0.5, color="0.3", linewidth=0.8)
    first, second = (str(names[0]).rpartition("_")[0] for names in (frame.index, frame.columns))
    ax.set_yticks([sizes[0] / 2 - 0.5, 1.5 * sizes[0] - 0.5], [f"{first}", f"{first}²"])
    ax.set_xticks([sizes[1] / 2 - 0.5, 1.5 * sizes[1] - 0.5], [f"{second}", f"{second}²"])
    ax.tick_params(length=0)
    ax.set(xlabel=f"latents of {second}", ylabel=f"latents of {first}")
    ax.figure.colorbar(image, ax=ax, label="weight in the log-density of the prior", shrink=0.8)
    return ax
