"""The users' classes: AnnData in; arrays, frames and AnnData out."""

from __future__ import annotations

import json
from pathlib import Path

from anndata import AnnData

from scalloy.models._base import ScalloyModel
from scalloy.models._files import ABOUT
from scalloy.models.autoencoder import AE
from scalloy.models.cgmdvae import CGMDVAE
from scalloy.models.gmvae import GMVAE
from scalloy.models.poisevae import POISEVAE
from scalloy.models.trvae import TRVAE
from scalloy.models.vae import VAE, BetaVAE
from scalloy.models.vsc import BetaVSC

MODELS: dict[str, type[ScalloyModel]] = {
    m.__name__: m for m in (AE, CGMDVAE, GMVAE, POISEVAE, TRVAE, BetaVAE, BetaVSC, VAE)
}


def load(dir_path: str | Path, adata: AnnData | None = None) -> ScalloyModel:
    """Load a saved model of any class; the class is looked up by its name in a fixed list.

    Parameters
    ----------
    dir_path
        Folder that ``model.save`` wrote.
    adata
        Cells to attach, with the genes of the model.
    """
    about = Path(dir_path) / ABOUT
    if not about.is_file():
        msg = f"`{dir_path}` holds no {ABOUT}. Pass the folder that `model.save(folder)` wrote."
        raise FileNotFoundError(msg)
    name = json.loads(about.read_text())["model"]
    if name not in MODELS:
        msg = f"`{dir_path}` holds a {name!r}, which is none of {', '.join(MODELS)}."
        raise ValueError(msg)
    return MODELS[name].load(dir_path, adata)


__all__ = ["AE", "CGMDVAE", "GMVAE", "MODELS", "POISEVAE", "TRVAE", "VAE", "BetaVAE", "BetaVSC", "load"]
