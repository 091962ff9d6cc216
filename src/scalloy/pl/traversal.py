"""Plot of the expression of genes along a latent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from scalloy.pl._legend import legend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from scalloy.models._core.base import ScalloyModel


def traversal(
    model: ScalloyModel,
    latent: int,
    *,
    genes: Sequence[str] | None = None,
    n_genes: int = 8,
    values: Sequence[float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the expression of genes as one latent goes from low to high and all else of each cell stays.

    Parameters
    ----------
    model
        A trained model.
    latent
        Number of the latent, from 0.
    genes
        Names of the genes to draw; ``None`` draws those that change most.
    n_genes
        Number of genes to draw if ``genes`` is ``None``.
    values
        Values that the latent takes; ``None`` goes from low to high among the cells.
    ax
        Axes to draw into; ``None`` makes new ones.

    Examples
    --------
    >>> ax = sa.pl.traversal(model, 0)
    """
    frame = model.get_traversal(latent, values)
    if genes is None:
        reach = frame.max() - frame.min()
        genes = list(reach.nlargest(n_genes).index)
    if unknown := [g for g in genes if g not in frame.columns]:
        msg = f"`genes` names {unknown[:10]}, which the model does not know."
        raise KeyError(msg)
    ax = plt.subplots(figsize=(5, 3.6), layout="constrained")[1] if ax is None else ax
    chosen = frame[list(genes)]
    chosen = chosen[chosen.iloc[-1].sort_values(ascending=False).index]  # legend in the order of line ends
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(chosen.columns)))
    lines = [
        ax.plot(chosen.index, chosen[gene], "o-", markersize=3, color=color, label=gene)[0]
        for gene, color in zip(chosen, colors, strict=True)
    ]
    logged = model.module.likelihood.has_log_scale
    ax.set(xlabel=f"latent {latent}", ylabel="log1p of expression per 10,000" if logged else "expected value")
    legend(ax, lines, list(chosen), loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return ax
