"""Plots of training curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np

from scalloy._arguments import few

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scalloy.models._core.base import ScalloyModel

NAMES = {"elbo": "-ELBO", "reconstruction_loss": "reconstruction"}


def history(model: ScalloyModel, term: str = "elbo", *, ax: Axes | None = None) -> Axes:
    """Draw one term of the loss by epoch, for training and validation cells.

    Parameters
    ----------
    model
        A trained model.
    term
        ``"elbo"``, ``"reconstruction_loss"``, ``"kl_local"``, or the name of one term such as ``"kl_z"``.
    ax
        Axes to draw into; ``None`` makes new ones.

    Examples
    --------
    >>> ax = sa.pl.history(model)
    >>> ax = sa.pl.history(model, "reconstruction_loss")
    """
    known = sorted(k.removesuffix("_train") for k in _kept(model) if k.endswith("_train"))
    if term not in known:
        msg = f"`term={term!r}` is not in the history. Pass one of: {few(known)}."
        raise ValueError(msg)
    ax = plt.subplots(layout="constrained")[1] if ax is None else ax
    for mode, style in (("train", "-"), ("validation", "--")):
        frame = model.history.get(f"{term}_{mode}")
        if frame is not None:
            ax.plot(frame.index, frame.iloc[:, 0].astype(float), style, label=mode)
    ax.set(xlabel="epoch", ylabel=f"{NAMES.get(term, term)} (nats per cell)")
    ax.legend(frameon=False)
    return ax


def _kept(model: ScalloyModel) -> dict[str, Any]:
    """Return the history of a model, or raise an error if it has none."""
    if not model.history:
        msg = "The model has no training history. Call `model.train()` first."
        raise ValueError(msg)
    return model.history


def term_names(history: Any) -> list[str]:
    """List the ELBO, the reconstruction loss, and each KL term and penalty in a history."""
    kept = [k.removesuffix("_train") for k in history if k.endswith("_train")]
    known = [k for k in kept if k.startswith(("kl_", "penalty_")) and k != "kl_local"]
    return ["elbo", "reconstruction_loss", *known]


def terms(model: ScalloyModel) -> np.ndarray:
    """Draw the ELBO, each of its terms and each penalty by epoch, in axes of their own.

    Parameters
    ----------
    model
        A trained model.

    Examples
    --------
    >>> axes = sa.pl.terms(model)
    """
    names = term_names(_kept(model))
    n_columns = min(3, len(names))
    n_rows = -(-len(names) // n_columns)
    size = (3.4 * n_columns, 2.6 * n_rows)
    axes = plt.subplots(n_rows, n_columns, figsize=size, layout="constrained", squeeze=False)[1].ravel()
    for name, ax in zip(names, axes, strict=False):
        history(model, name, ax=ax)
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    return axes[: len(names)]
