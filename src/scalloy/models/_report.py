"""One page about a model: a mixin of :class:`scalloy.models._base.ScalloyModel`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Report:
    """The page is made in :mod:`scalloy.report`."""

    def report(
        self,
        path: str | Path,
        adata: Any = None,
        *,
        keys: str | Sequence[str] | None = None,
        held_out: str | None = None,
        max_epochs: int | None = None,
        title: str | None = None,
        seed: int = 0,
        overwrite: bool = False,
    ) -> list[str]:
        """Write one HTML page about the model and cells, which needs nothing else, also no network.

        First what to look at; then training curves by term, the latent space by any keys, clusters against
        labels, usage of components, predictions under another condition beside the simple ones, the fit of
        counts, settings and versions.

        Parameters
        ----------
        path
            Of the page.
        adata
            Cells with the genes of the model; ``None`` is the model's own.
        keys
            Columns of ``.obs``, or genes, to colour the latent space by; ``None`` is those that were
            registered. Clusters are drawn in any case.
        held_out
            Label of a cell type: the model is trained again without it under each condition but the control,
            and predicts it, beside the simple predictions.
        max_epochs
            Of that training; ``None`` is the default.
        title
            Of the page.
        seed
            Of what is drawn and sampled; the same page is the same to the last byte.
        overwrite
            Whether to write over what is there.

        Returns
        -------
        What to look at, a sentence each.
        """
        from scalloy.report import write

        asked = {"keys": keys, "held_out": held_out, "max_epochs": max_epochs, "title": title}
        return write(self, path, adata, **asked, seed=seed, overwrite=overwrite)  # type: ignore[arg-type]
