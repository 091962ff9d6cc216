"""Models for users: AnnData goes in; arrays, data frames and AnnData come out."""

from __future__ import annotations

from pathlib import Path

from anndata import AnnData

from scalloy._registry import Registry
from scalloy._seeds import repeatable
from scalloy.models._core import files
from scalloy.models._core.annotations import LATENT, Annotator
from scalloy.models._core.base import ScalloyModel
from scalloy.models._core.files_format import ABOUT
from scalloy.models._core.from_scvi import load_pickle
from scalloy.models._core.novel import Novel
from scalloy.models.autoencoder import AE
from scalloy.models.cgmdvae import CGMDVAE
from scalloy.models.gmvae import GMVAE
from scalloy.models.poisevae import POISEVAE
from scalloy.models.trvae import TRVAE
from scalloy.models.vae import VAE, BetaVAE
from scalloy.models.vsc import BetaVSC

PICKLE = "model.pt"  # file that scvi-tools writes
MODELS: Registry[type[ScalloyModel]] = Registry(
    "sa.models.MODELS",
    {m.__name__: m for m in (AE, CGMDVAE, GMVAE, POISEVAE, TRVAE, BetaVAE, BetaVSC, VAE)},
)


def load(
    dir_path: str | Path,
    adata: AnnData | None = None,
    *,
    accelerator: str = "auto",
    device: int | str = "auto",
    allow_pickle: bool = False,
) -> ScalloyModel:
    """Load a saved model of any class.

    The class is looked up by its name, among the models of scalloy and those added by :func:`register`.

    Parameters
    ----------
    dir_path
        Folder in which the model was saved.
    adata
        Cells to attach, with the genes of the model. ``None`` uses those that were saved with the model; if
        there are none, it works on new cells only.
    accelerator, device
        Hardware to put the model on; ``"auto"`` uses a GPU if there is one.
    allow_pickle
        Whether to read an ``SCVI`` that scvi-tools saved, as a :class:`~scalloy.VAE`. Its file is a pickle,
        which can run any code when it is read, so allow this only if you trust who made it.

    Examples
    --------
    >>> model.save(folder / "model")
    >>> again = sa.load(folder / "model", adata)
    >>> type(again).__name__
    'CGMDVAE'
    """
    if not isinstance(dir_path, str | Path):
        msg = f"`dir_path` is a {type(dir_path).__name__}. Pass the folder that `model.save(folder)` wrote."
        raise TypeError(msg)
    folder = Path(dir_path)
    if (folder / PICKLE).is_file() and not (folder / ABOUT).is_file():
        return load_pickle(VAE, folder, adata, allow_pickle=allow_pickle)
    return files.load(MODELS, folder, adata, accelerator=accelerator, device=device)


def register(cls: type[ScalloyModel]) -> type[ScalloyModel]:
    """Register a model class for :func:`scalloy.load` and :func:`scalloy.search`; usable as a decorator.

    Parameters
    ----------
    cls
        Class of the model, which is returned.

    Examples
    --------
    >>> sa.models.register(sa.VAE) is sa.VAE
    True
    """
    name = cls.__name__
    if name in MODELS and _definition(MODELS[name]) == _definition(cls):
        MODELS[name] = cls  # the same definition was run again, in a notebook for example
    else:
        MODELS.add(name, cls)
    return cls


def _definition(cls: type) -> tuple[str, str]:
    """Return where a class is defined."""
    return cls.__module__, cls.__qualname__


__all__ = [
    "AE",
    "CGMDVAE",
    "GMVAE",
    "LATENT",
    "MODELS",
    "POISEVAE",
    "TRVAE",
    "VAE",
    "Annotator",
    "BetaVAE",
    "BetaVSC",
    "Novel",
    "ScalloyModel",
    "load",
    "register",
    "repeatable",
]
