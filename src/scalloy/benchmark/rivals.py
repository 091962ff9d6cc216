"""Models and baselines whose predictions under another condition are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anndata import AnnData

from scalloy._arguments import one_of
from scalloy.baselines import METHODS, Baseline, LatentShift
from scalloy.models import CGMDVAE, TRVAE


@dataclass(frozen=True)
class Rival:
    """Model in the comparison: how it is made from training cells, and how its predictions are asked for.

    Parameters
    ----------
    make
        Function of the cells and the columns with conditions and labels that returns an object with ``train``
        and ``transfer``.
    asked
        Arguments of ``transfer`` for each row of the table, by the name of the row; if empty, there is one
        row with the name of the model and no further arguments.
    seeded
        Whether the model depends on a random seed.
    trained
        Arguments of ``train``.
    """

    make: Callable[[AnnData, str, str], Any]
    asked: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeded: bool = True
    trained: Mapping[str, Any] = field(default_factory=dict)


def rivals(**model: Any) -> dict[str, Rival]:
    """Return all models by name: the baselines, scGen, a conditional VAE, variants of TRVAE, and CGMDVAE.

    Two of them are not told the types: with one, types are like patients who are not named, of cells of whom
    nothing is known, and with the other, like patients who are named.

    Parameters
    ----------
    **model
        Arguments of CGMDVAE.
    """

    def ours(
        cls: Any, made: Any = None, types: str | None = "labels_key", **settings: Any
    ) -> Callable[[AnnData, str, str], Any]:
        def make(cells: AnnData, condition: str, labels: str) -> Any:
            cls.setup_anndata(cells, condition_key=condition, **({} if types is None else {types: labels}))
            return (made or cls)(cells, **settings)

        return make

    def simple(cls: Any, *args: Any, **settings: Any) -> Callable[[AnnData, str, str], Any]:
        return lambda cells, c, y: cls(cells, *args, condition_key=c, labels_key=y, **settings)

    decoded = {"route": "decoder"}
    return {
        **{name: Rival(simple(Baseline, name), seeded=name == "add and thin") for name in METHODS},
        "scGen, types matched": Rival(simple(LatentShift)),
        "scGen, as shipped": Rival(simple(LatentShift, matched=False)),
        "CVAE": Rival(ours(TRVAE, mmd_weight=0.0), {"CVAE": decoded}),
        "TRVAE": Rival(ours(TRVAE), {"TRVAE": decoded, "TRVAE, pooled": {}}),
        "TRVAE, first layer only": Rival(ours(TRVAE, inject="first"), {"TRVAE, first layer only": decoded}),
        "TRVAE, as published": Rival(
            ours(TRVAE, TRVAE.original), {"TRVAE, as published": decoded}, trained={"batch_size": 512}
        ),
        "CGMDVAE": Rival(ours(CGMDVAE, **model), {"CGMDVAE": {}, "CGMDVAE, decoder": decoded}),
        "CGMDVAE, without types": Rival(ours(CGMDVAE, types=None, **model)),
        "CGMDVAE, types as donors": Rival(ours(CGMDVAE, types="donor_key", **model)),
    }


def chosen(models: Sequence[str] | Mapping[str, Rival] | None, **model: Any) -> Mapping[str, Rival]:
    """Return the rivals with the given names (``None``: all), or ``models`` itself if it is a mapping."""
    if isinstance(models, Mapping):
        return models
    known = rivals(**model)
    return {one_of("models", m, known): known[m] for m in (known if models is None else models)}
