"""Public methods of scvi-tools' models that would not work with ours: mended, or with a word on what to call.

A mixin of every model. What is not named here works as scvi-tools has it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import rich
import rich.pretty  # scvi-tools calls it without importing it, which rich 15 no longer does by itself
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass

from scalloy.data import checks
from scalloy.models import _options


class Inherited:
    """See the head of this file."""

    registry: dict[str, Any]
    _adata: AnnData | None
    _own: Callable[[], Any]
    _manager_of: Callable[..., AnnDataManager]

    @staticmethod
    def load_registry(dir_path: str | Path) -> dict[str, Any]:
        """Return the set-up of a saved model, without its weights.

        Parameters
        ----------
        dir_path
            Folder in which the model was saved.
        """
        from scalloy.models import _files

        return _files.read_about(Path(dir_path))["registry"]

    @staticmethod
    def view_setup_args(dir_path: str | Path) -> None:
        """Print the arguments with which the data of a saved model were set up.

        Parameters
        ----------
        dir_path
            Folder in which the model was saved.
        """
        _print_setup(Inherited.load_registry(dir_path))

    def view_setup_method_args(self) -> None:
        """Print the arguments with which the data were set up."""
        _print_setup(self.registry)

    def view_registry(self, hide_state_registries: bool = False) -> None:
        """Print what was registered of the model's cells.

        Parameters
        ----------
        hide_state_registries
            Whether to leave out the tables of categories.
        """
        self._manager_of(None).view_registry(hide_state_registries=hide_state_registries)

    def view_anndata_setup(self, adata: AnnData | None = None, hide_state_registries: bool = False) -> None:
        """Print what was registered of cells.

        Parameters
        ----------
        adata
            Cells that were set up for this class; ``None`` is the model's own.
        hide_state_registries
            Whether to leave out the tables of categories.
        """
        if adata is None or adata is self._adata or adata is self._own():
            manager = self._manager_of(None)
        else:
            manager = type(self)._get_most_recent_anndata_manager(checks.check_type(adata))  # type: ignore[attr-defined]
        if manager is None:
            name = type(self).__name__
            msg = f"`adata` is not set up for {name}. Call `{name}.setup_anndata(adata, ...)` first."
            raise ValueError(msg)
        manager.view_registry(hide_state_registries=hide_state_registries)

    def get_state_registry(self, registry_key: str) -> Any:
        """Return what is known of one registered field, such as its categories.

        Parameters
        ----------
        registry_key
            Name of the field, such as ``"batch"``.
        """
        _options.one_of("registry_key", registry_key, list(self.registry["field_registries"]))
        return BaseModelClass.get_state_registry(self, registry_key)  # type: ignore[arg-type]

    def get_setup_arg(self, setup_arg: str) -> Any:
        """Return one of the arguments with which the data were set up.

        Parameters
        ----------
        setup_arg
            Name of the argument, such as ``"batch_key"``.
        """
        return self.registry["setup_args"][
            _options.one_of("setup_arg", setup_arg, self.registry["setup_args"])
        ]

    def data_registry(self, registry_key: str) -> Any:
        """Return the values of one registered field of the model's cells.

        Parameters
        ----------
        registry_key
            Name of the field, such as ``"X"`` or ``"batch"``.
        """
        return _values(self._manager_of(None), registry_key)

    def get_from_registry(self, adata: AnnData, registry_key: str) -> Any:
        """Return the values of one registered field of cells.

        Parameters
        ----------
        adata
            Cells with the genes of the model.
        registry_key
            Name of the field, such as ``"X"`` or ``"batch"``.
        """
        return _values(self._manager_of(adata), registry_key)

    def transfer_fields(self, adata: AnnData, **kwargs: Any) -> AnnDataManager:
        """Register cells as those of the model are, with scvi-tools' call.

        Parameters
        ----------
        adata
            Cells, to which columns with codes are added.
        **kwargs
            Further arguments of :meth:`scvi.data.AnnDataManager.transfer_fields`.
        """
        return self._manager_of(None).transfer_fields(checks.check_type(adata), **kwargs)

    def get_anndata_manager(self, adata: AnnData, required: bool = False) -> AnnDataManager | None:
        """Return scvi-tools' registration of cells, if there is one.

        Parameters
        ----------
        adata
            Cells that were set up.
        required
            Whether to raise an error where there is none.
        """
        if adata is not None:
            adata = checks.check_type(self._own_registered(adata))
        return BaseModelClass.get_anndata_manager(self, adata, required)  # type: ignore[arg-type]

    def deregister_manager(self, adata: AnnData | None = None) -> None:
        """Forget scvi-tools' registration of cells.

        Parameters
        ----------
        adata
            Cells that were set up; ``None`` is all but the model's own.
        """
        if adata is not None and self.get_anndata_manager(adata) is None:
            msg = (
                "`adata` is not registered with this model, so that there is nothing to forget. Pass `None`."
            )
            raise ValueError(msg)
        BaseModelClass.deregister_manager(self, self._own_registered(adata))  # type: ignore[arg-type]

    def _own_registered(self, adata: Any) -> Any:
        """The AnnData that was registered, where another object of the user stands for it."""
        return self._adata if adata is not None and adata is self._own() else adata

    def _validate_anndata(self, adata: Any = None, copy_if_view: bool = True) -> AnnData:
        """Check the type of cells before scvi-tools does."""
        if adata is not None:
            adata = checks.check_type(self._own_registered(adata))
        return BaseModelClass._validate_anndata(self, adata, copy_if_view)  # type: ignore[arg-type]

    # what there is not --------------------------------------------------------------------------

    def differential_abundance(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: call :func:`scalloy.compare.groups` to compare samples in the latent space."""
        msg = (
            "`differential_abundance` is not there. Call `sa.compare.groups` to compare groups of samples in "
            "the latent space, or count the cells of each sample in each cluster."
        )
        raise NotImplementedError(msg)

    @classmethod
    def setup_annbatch(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: data on the disk are read from a store (:func:`scalloy.data.open_store`)."""
        msg = (
            "`setup_annbatch` is not there. Call `sa.data.write_store(files, folder)` and then "
            f"`{cls.__name__}.setup_anndata(sa.data.open_store(folder))`."
        )
        raise NotImplementedError(msg)

    def update_setup_method_args(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: a set-up is not changed once there is a model."""
        name = type(self).__name__
        msg = (
            f"The set-up of a model is not changed. Call `{name}.setup_anndata(adata, ...)` with the new "
            "arguments, and make another model."
        )
        raise NotImplementedError(msg)

    @classmethod
    def convert_legacy_save(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: ``load`` reads every older format of scalloy by itself."""
        msg = (
            f"There is nothing to convert. Call `sa.{cls.__name__}.load(folder)`, which reads every older "
            "format of scalloy, or `sa.VAE.from_scvi(model)` for an SCVI of scvi-tools."
        )
        raise NotImplementedError(msg)


def _print_setup(registry: dict[str, Any]) -> None:
    rich.print(f"Set up by `{registry['model_name']}.{registry['setup_method_name']}` with arguments:")
    rich.pretty.pprint(dict(registry["setup_args"]))


def _values(manager: AnnDataManager, registry_key: str) -> Any:
    return manager.get_from_registry(
        _options.one_of("registry_key", registry_key, list(manager.data_registry))
    )
