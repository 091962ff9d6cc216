"""scalloy: deep generative models for single cells whose latent space is a mixture.

Names are imported on first use, so that ``import scalloy`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

from scalloy import _methods, _moved, _waiting

_waiting.briefly()  # before anything loads torch
__version__ = version("scalloy")
_moved.install()

_MODELS = {
    "VAE": "vae",
    "BetaVAE": "vae",
    "AE": "autoencoder",
    "GMVAE": "gmvae",
    "CGMDVAE": "cgmdvae",
    "TRVAE": "trvae",
    "BetaVSC": "vsc",
    "POISEVAE": "poisevae",
}
_MODULES = (
    "baselines",
    "benchmark",
    "blocks",
    "compare",
    "data",
    "datasets",
    "metrics",
    "models",
    "pl",
    "train",
    "vae",
)

_FUNCTIONS = {
    "Conditions": "data.conditions",
    "load": "models",
    "report": "reports",
    "search": "tune.search",
    "train_on_cluster": "tune.cluster",
}
_methods.register("report", "scalloy.reports", "report")
_methods.register("differential_expression", "scalloy.compare.differential", "differential_expression")

__all__ = [*_MODELS, *_MODULES, *_FUNCTIONS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODELS:
        return getattr(import_module(f"scalloy.models.{_MODELS[name]}"), name)
    if name in _MODULES:
        return import_module(f"scalloy.{name}")
    if name in _FUNCTIONS:
        return getattr(import_module(f"scalloy.{_FUNCTIONS[name]}"), name)
    msg = f"module 'scalloy' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
