"""The users' classes: AnnData in; arrays, frames and AnnData out."""

from __future__ import annotations

from pathlib import Path

from anndata import AnnData

from scalloy.models import _files
from scalloy.models._base import ScalloyModel
from scalloy.models._files import ABOUT
from scalloy.models.autoencoder import AE
from scalloy.models.cgmdvae import CGMDVAE
from scalloy.models.gmvae import GMVAE
from scalloy.models.poisevae import POISEVAE
from scalloy.models.trvae import TRVAE
from scalloy.models.vae import VAE, BetaVAE
from scalloy.models.vsc import BetaVSC

PICKLE = "model.pt"  # of scvi-tools
MODELS: dict[str, type[ScalloyModel]] = {
    m.__name__: m for m in (AE, CGMDVAE, GMVAE, POISEVAE, TRVAE, BetaVAE, BetaVSC, VAE)
}


def load(
    dir_path: str | Path,
    adata: AnnData | None = None,
    *,
    accelerator: str = "auto",
    device: int | str = "auto",
    allow_pickle: bool = False,
) -> ScalloyModel:
    """Load a saved model of any class; the class is looked up by its name in a fixed list.

    Parameters
    ----------
    dir_path
        Folder that ``model.save`` wrote.
    adata
        Cells to attach, with the genes of the model.
    accelerator, device
        Where the model is put, as in ``train``: on a GPU if there is one.
    allow_pickle
        Whether to read an ``SCVI`` that scvi-tools saved, as a :class:`~scalloy.VAE`. Its file is a pickle,
        which can run any code: only if you trust who made it.
    """
    if not isinstance(dir_path, str | Path):
        msg = f"`dir_path` is a {type(dir_path).__name__}. Pass the folder that `model.save(folder)` wrote."
        raise TypeError(msg)
    folder = Path(dir_path)
    if (folder / PICKLE).is_file() and not (folder / ABOUT).is_file():
        from scalloy.models._scvi import load_pickle

        return load_pickle(VAE, folder, adata, allow_pickle=allow_pickle)
    return _files.load(MODELS, folder, adata, accelerator=accelerator, device=device)


__all__ = ["AE", "CGMDVAE", "GMVAE", "MODELS", "POISEVAE", "TRVAE", "VAE", "BetaVAE", "BetaVSC", "load"]
