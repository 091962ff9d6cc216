"""Plots of how well likelihoods fit: their evidence, and expected against observed counts of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import matplotlib.pyplot as plt
import numpy as np

from scalloy._arguments import one_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes

    from scalloy.models._core.base import ScalloyModel

SAID = {"zeros": "share of cells without a count", "variance": "variance of counts", "mean": "mean count"}


def likelihoods(
    table: pd.DataFrame,
    *,
    by: Sequence[str] = ("likelihood", "model"),
    value: Literal["gain", "marginal_ll"] = "gain",
    ax: Axes | None = None,
) -> Axes:
    """Draw the evidence of each row of a comparison, best on top, with 95 % intervals over cells.

    Parameters
    ----------
    table
        Result of :func:`scalloy.benchmark.likelihoods` for one data set, or ``sa.search(...).table``. Rows
        that agree in ``by`` are taken for seeds and averaged.
    by
        Columns that name a row of the plot. If there are several, the last one is shown as the colour.
    value
        ``"gain"`` over the NB of the same model, whose interval is that of paired differences, or
        ``"marginal_ll"``.
    ax
        Axes to draw into; ``None`` makes new ones.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"likelihood": ["nb", "poisson"], "gain": [0, -8], "gain_se": [0, 1]})
    >>> ax = sa.pl.likelihoods(table, by=["likelihood"])
    """
    one_of("value", value, [c for c in ("gain", "marginal_ll") if c in table])
    error = {"gain": "gain_se", "marginal_ll": "se"}[value]
    rows, colour = (by[:-1], by[-1]) if len(by) > 1 else (by, None)
    means = table.dropna(subset=[value]).groupby(list(by), sort=False, dropna=False)[[value, error]].mean()
    means = means.reset_index()
    label = means[list(rows)].astype(str).agg(", ".join, axis=1)
    order = means[value].groupby(label).max().sort_values().index
    place = {k: i for i, k in enumerate(order)}
    size = (5.2, 1 + 0.32 * len(order))
    ax = plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax
    group = means[colour].astype(str) if colour else label.map(lambda _: "")
    names = list(dict.fromkeys(group))
    for i, name in enumerate(names):
        own = group == name
        y = label[own].map(place) - 0.15 * (i - (len(names) - 1) / 2)
        settings = {"fmt": "o", "markersize": 4, "color": f"C{i}", "label": name}
        ax.errorbar(means.loc[own, value], y, xerr=1.96 * means.loc[own, error], **settings)
    if value == "gain":
        ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(order)), order)
    said = {"gain": "gain over NB", "marginal_ll": "marginal log-likelihood"}[value]
    ax.set_xlabel(f"{said} (nats per held-out cell)")
    if colour:
        ax.legend(frameon=False, fontsize="small")
    return ax


def counts(
    model: ScalloyModel | pd.DataFrame,
    of: Literal["zeros", "variance", "mean"] = "zeros",
    *,
    least: float = 0.01,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw a statistic of the counts of each gene, as the model expects it against as it was observed.

    Genes off the diagonal are those for which the likelihood is wrong. A Poisson, for example, expects too
    few zeros and too little variance if counts are overdispersed. The colour is the mean count.

    Parameters
    ----------
    model
        A trained model, or the result of its ``get_gene_statistics()``.
    of
        Statistic: ``"zeros"`` (share of cells without a count), ``"variance"`` or ``"mean"``.
    least
        Smallest mean count of the genes to draw.
    ax
        Axes to draw into; ``None`` makes new ones.
    title
        Title of the plot; ``None`` uses the name of the model's likelihood.

    Examples
    --------
    >>> ax = sa.pl.counts(model)
    >>> ax = sa.pl.counts(model.get_gene_statistics(), of="variance")
    """
    one_of("of", of, SAID)
    given = hasattr(model, "get_gene_statistics")
    table = model.get_gene_statistics() if given else model
    if title is None and given:
        title = str(model.init_params_["non_kwargs"]["gene_likelihood"])
    table = table[table["mean_observed"] >= least]
    x, y = (table[f"{of}_{k}"].to_numpy() for k in ("observed", "expected"))
    ax = plt.subplots(figsize=(4, 3.4), layout="constrained")[1] if ax is None else ax
    shade = np.log10(table["mean_observed"].to_numpy())
    points = ax.scatter(x, y, c=shade, s=7, linewidths=0, cmap="viridis", rasterized=True)
    span = [min(x.min(), y.min()), max(x.max(), y.max())]
    ax.plot(span, span, color="0.5", linewidth=0.8)
    if of == "zeros":
        off = f"mean error {np.abs(x - y).mean():.4f}"
    else:
        ax.set(xscale="log", yscale="log")
        off = f"mean factor {np.exp(np.abs(np.log(y / x)).mean()):.2f}"
    ax.set(xlabel=f"observed {SAID[of]}", ylabel="expected")
    ax.set_title(", ".join(filter(None, [title, off])), fontsize="medium")
    ax.figure.colorbar(points, ax=ax, label="log10 mean count")
    return ax
