"""Models that know under which condition each cell is, and what it would be under another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from scvi.data.fields import CategoricalObsField

from scalloy import _keys
from scalloy.models._base import ScalloyModel, without
from scalloy.vae.base import Sizes


class ConditionModel(ScalloyModel):
    """Set-up with a condition, and prediction under another."""

    ROUTES: tuple[str, ...] = ("auto", "decoder")

    @classmethod
    def setup_anndata(  # type: ignore[override]
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        condition_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        allow_non_counts: bool = False,
        **kwargs: Any,
    ) -> None:
        """Say what is where in ``adata``: as in :class:`~scalloy.VAE`, and besides

        Parameters
        ----------
        adata, layer, batch_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys, \
allow_non_counts
            As in :meth:`scalloy.VAE.setup_anndata`.
        condition_key
            Column of ``.obs`` with the condition that predictions can change.
        labels_key
            Column of ``.obs`` with cell types: predictions pool what each of them has shown.
        """
        cls._set_up(adata, cls._get_setup_method_args(**without(locals(), "__class__")), **kwargs)

    @classmethod
    def _fields(cls, **given: Any) -> list:
        fields = super()._fields(**given)
        return [*fields, CategoricalObsField(_keys.CONDITION_KEY, given.get("condition_key"))]

    @property
    def conditions(self) -> list[str]:
        """The conditions, in the order of their codes."""
        state = self.registry["field_registries"][_keys.CONDITION_KEY]["state_registry"]
        return [str(k) for k in state["categorical_mapping"]]

    @property
    def condition_key(self) -> str | None:
        """Column of ``.obs`` with the condition."""
        return self.registry["setup_args"].get("condition_key")

    def _sizes(self) -> Sizes:
        return replace(super()._sizes(), n_conditions=len(self.conditions))

    def _groups(self, cells: AnnData | None) -> np.ndarray:
        """Group of each cell, within which a change is thought to be alike: its label where it is known."""
        obs, key = (self.adata if cells is None else cells).obs, self.registry["setup_args"].get("labels_key")
        given = obs[key].astype(str).to_numpy() if key in obs else np.full(len(obs), "")
        known = np.isin(given, self.labels) if self.labels else np.zeros(len(obs), dtype=bool)
        return given if known.all() else np.where(known, given, self._groups_of_unlabelled(cells))

    def _groups_of_unlabelled(self, cells: AnnData | None) -> np.ndarray:
        """The same where labels lack: a model that cannot tell takes them as one."""
        return np.full((self.adata if cells is None else cells).n_obs, "cells")

    def transfer(
        self,
        cells: AnnData | None = None,
        to: str | None = None,
        *,
        route: Literal["auto", "decoder", "transport", "style"] = "auto",
        n_samples: int = 10,
        library_size: float | None = None,
        seed: int = 0,
    ) -> AnnData:
        """The cells as they would look under another condition.

        Parameters
        ----------
        cells
            Cells with the genes of the model and a known condition, such as controls; ``None`` is the model's
            own.
        to
            The condition.
        route
            How: see :mod:`scalloy.transfer`. ``"auto"`` pools the decoder's shift of each group of cells with
            the shifts seen in other groups, the others trust the decoder alone; ``"transport"`` and
            ``"style"`` are of :class:`~scalloy.CGMDVAE`.
        n_samples
            Samples over which expectations are taken.
        library_size
            Of the sampled counts; ``None`` is each cell's own.
        seed
            Of the samples.

        Returns
        -------
        AnnData with the same cells and genes: ``.X`` the expected log-normalised expression (to 10,000 counts
        per cell), ``.layers["counts"]`` sampled counts, ``.obs`` with the new condition, ``"transfer_from"``,
        ``"transfer_group"`` and, where pooled, ``"transfer_far"``; ``.uns["transfer"]`` says how, with the
        shift of each group and its standard deviation by gene.
        """
        from scalloy.transfer import transfer

        if self.condition_key is None:
            name = type(self).__name__
            msg = (
                f"The model knows no condition. Call `{name}.setup_anndata(adata, condition_key=...)` and "
                "train again."
            )
            raise ValueError(msg)
        settings = {"n_samples": n_samples, "library_size": library_size, "seed": seed}
        return transfer(self, cells, to, route=route, **settings)
