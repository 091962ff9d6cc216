"""Models that know under which condition each cell is, and what it would be under another one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalObsField

from scalloy import _keys
from scalloy.data.pieces import pieces_of, write_pieces
from scalloy.models import _options
from scalloy.models._base import ScalloyModel, without
from scalloy.models._getters import DECODED_ENTRIES
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
        n_samples: int = 3,
        library_size: float | None = None,
        seed: int = 0,
        target_sum: float = 1e4,
        context: AnnData | None = None,
    ) -> AnnData:
        """Predict how cells would look under another condition.

        Each cell is predicted from its own counts and from the change of its group, so that it does not
        matter which other cells it is passed with.

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
            Samples of the code over which expectations are taken.
        library_size
            Total of the sampled counts; ``None`` is that of each cell, as far as its genes change.
        seed
            Random seed of the samples.
        target_sum
            Total of a cell to which counts are scaled before their logarithm, as in scanpy's
            ``normalize_total``.
        context
            Cells which say where each group begins, with ``route="auto"``: ``None`` is the model's own. Pass
            the controls of a patient or a study that the model was not trained on (often ``cells`` itself).

        Returns
        -------
        AnnData with the same cells and genes: ``.X`` the expected log-normalised expression,
        ``.layers["counts"]`` sampled counts (which the model itself takes as the counts of these cells),
        ``.obs`` with the new condition, ``"transfer_of"``, ``"transfer_from"``, ``"transfer_group"`` and,
        where pooled, ``"transfer_far"``; ``.uns["transfer"]`` says how, with the shift of each group, its
        standard deviation, and the factors by which counts change, by gene. The names of the cells end in
        that of the condition.
        """
        settings = {"n_samples": n_samples, "library_size": library_size, "seed": seed, "context": context}
        return self._changed(cells, to, route=route, target_sum=target_sum, **settings)

    def _changed(self, cells: AnnData | None, to: str | None, **settings: Any) -> AnnData:
        from scalloy.transfer import transfer

        return transfer(self, cells, self._asked(to, settings), **settings)

    def _asked(self, to: Any, settings: dict[str, Any]) -> str:
        """Name of the condition that is asked for, if all that is asked makes sense."""
        if self.condition_key is None:
            name = type(self).__name__
            msg = (
                f"The model knows no condition. Call `{name}.setup_anndata(adata, condition_key=...)` and "
                "train again."
            )
            raise ValueError(msg)
        route = _options.one_of("route", settings.get("route", "auto"), self.ROUTES)
        if settings.get("context") is not None and route != "auto":
            msg = f"`context` says where groups begin, and `route={route!r}` has none. Leave one of them out."
            raise ValueError(msg)
        _options.totals(None, library_size=settings.get("library_size"))
        _options.totals(target_sum=settings.get("target_sum", 1e4))
        _options.whole(n_samples=settings.get("n_samples", 1))
        return _options.category("to", to, self.conditions)

    def write_transfer(
        self,
        path: str | Path,
        cells: AnnData | None = None,
        to: str | None = None,
        *,
        overwrite: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write what :meth:`transfer` returns into a file, piece by piece: of as many cells as there are.

        Expected values are those of :meth:`transfer`, whatever the pieces. The shifts of groups are not in
        the file.

        Parameters
        ----------
        path
            A name that ends in ``.h5ad`` or ``.zarr``.
        cells, to, **kwargs
            As in :meth:`transfer`; the cells in memory, backed, or of :func:`scalloy.data.open_store`.
        overwrite
            Whether to replace a file of this name.
        """
        from scalloy.changes import How, changes_of

        if cells is None or cells is self._adata:
            self._own_manager()  # its pieces are read like any cells, so what was changed is noticed here
        to, changes = self._asked(to, kwargs), None
        if kwargs.get("route", "auto") == "auto":
            how = How(
                "auto", kwargs.get("n_samples", 3), kwargs.get("target_sum", 1e4), kwargs.get("seed", 0)
            )
            changes = changes_of(self, how, kwargs.get("context"))
        most = max(1, DECODED_ENTRIES // self._sizes().n_vars)
        source = self.adata if cells is None else cells
        pieces = pieces_of(source, most)
        made = (self._changed(piece, to, changes=changes, **kwargs) for piece in pieces)
        write_pieces(Path(path), map(_without_shifts, made), overwrite=overwrite, source=source)

    def predict(
        self,
        ctrl_key: str,
        stim_key: str,
        celltype_to_predict: str | None = None,
        adata_to_predict: AnnData | None = None,
        **kwargs: Any,
    ) -> tuple[AnnData, pd.Series]:
        """scGen's call of :meth:`transfer`: a cell type, or cells, from one condition to another.

        Parameters
        ----------
        ctrl_key, stim_key
            The two conditions.
        celltype_to_predict
            Label of cells of the model, of which those under ``ctrl_key`` are taken.
        adata_to_predict
            Cells under ``ctrl_key`` instead.
        **kwargs
            Of :meth:`transfer`.

        Returns
        -------
        What :meth:`transfer` returns, and by gene the change of mean log-normalised expression.
        """
        ctrl_key, stim_key = (
            _options.category(name, given, self.conditions)
            for name, given in {"ctrl_key": ctrl_key, "stim_key": stim_key}.items()
        )
        if (celltype_to_predict is None) == (adata_to_predict is None):
            msg = "Pass one of `celltype_to_predict` and `adata_to_predict`."
            raise ValueError(msg)
        cells = adata_to_predict
        if cells is None:
            cells = self._of_type(celltype_to_predict, ctrl_key, stim_key)
        out = self.transfer(cells, to=stim_key, **kwargs)
        before = self._mean_log(cells, out.uns["transfer"]["target_sum"])
        change = pd.Series(np.asarray(out.X).mean(0), index=out.var_names) - before.reindex(out.var_names)
        return out, change.rename("change")

    def _mean_log(self, cells: AnnData, target_sum: float) -> pd.Series:
        """Mean observed expression of each gene of the model, on the scale of :meth:`transfer`."""
        total = np.zeros(self._sizes().n_vars)
        for tensors in self._read(cells, None, None, decodes=True):
            observed = self.module.likelihood.observed(tensors[REGISTRY_KEYS.X_KEY], target_sum)
            total += observed.sum(0, dtype=torch.float64).cpu().numpy()
        return pd.Series(total / cells.n_obs, index=self.get_var_names())

    def _of_type(self, name: str, control: str, treated: str) -> AnnData:
        """Cells of the model of one label under one condition."""
        self._own_manager()
        key, obs = self.registry["setup_args"].get("labels_key"), self.adata.obs
        if key is None:
            msg = "`celltype_to_predict` needs labels: call `setup_anndata(adata, labels_key=...)`."
            raise ValueError(msg)
        name = _options.category("celltype_to_predict", name, self.labels)
        of, under = obs[key].astype(str) == name, obs[self.condition_key].astype(str)
        if n := int((of & (under == treated)).sum()):
            warnings.warn(
                f"The model was trained on {n} cells of {name!r} under {treated!r}, and has seen the answer. "
                "Leave them out of training to see how well it predicts.",
                stacklevel=3,
            )
        if not (of & (under == control)).any():
            msg = f"No cell of {name!r} is under {control!r}. Pass `adata_to_predict`, or another `ctrl_key`."
            raise ValueError(msg)
        return self.adata[(of & (under == control)).to_numpy()].copy()


def _without_shifts(made: AnnData) -> AnnData:
    """A piece of a prediction; what is said of it holds for all pieces."""
    made.uns["transfer"] = {k: v for k, v in made.uns["transfer"].items() if isinstance(v, str | float)}
    return made
