"""scalloy: deep generative models for single cells whose latent space is a mixture.

Names are loaded on first use, so that ``import scalloy`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("scalloy")

_MODELS = {"VAE": "vae", "BetaVAE": "vae", "AE": "autoencoder", "CGMDVAE": "cgmdvae", "TRVAE": "trvae"}
_MODULES = ("baselines", "benchmark", "blocks", "data", "datasets", "metrics", "models", "pl", "train", "vae")

__all__ = [*_MODELS, *_MODULES, "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in _MODELS:
        return getattr(import_module(f"scalloy.models.{_MODELS[name]}"), name)
    if name in _MODULES:
        return import_module(f"scalloy.{name}")
    if name == "load":
        return import_module("scalloy.models").load
    msg = f"module 'scalloy' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
