"""Methods of scvi-tools that do not work with our models: replaced, or with an error that says what to call.

Each function is a method of :class:`scalloy.models._core.base.ScalloyModel`. All other methods of scvi-tools
work unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import rich
import rich.pretty  # scvi-tools calls it without importing it, which rich 15 no longer does by itself
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass

from scalloy._arguments import one_of
from scalloy.data import checks
from scalloy.models._core import files


def load_registry(dir_path: str | Path) -> dict[str, Any]:
    """Return the registry of a saved model without loading its weights.

    Parameters
    ----------
    dir_path
        Folder in which the model was saved.

    Examples
    --------
    >>> model.save(folder / "model")
    >>> sa.CGMDVAE.load_registry(folder / "model")["setup_args"]["batch_key"]
    'batch'
    """
    return files.read_about(Path(dir_path))["registry"]


def view_setup_args(dir_path: str | Path) -> None:
    """Print the arguments with which the data of a saved model were set up.

    Parameters
    ----------
    dir_path
        Folder in which the model was saved.

    Examples
    --------
    >>> model.save(folder / "model")
    >>> sa.CGMDVAE.view_setup_args(folder / "model")  # doctest: +ELLIPSIS
    Set up by `CGMDVAE.setup_anndata` with arguments:
    {...}
    """
    _print_setup(load_registry(dir_path))


def view_setup_method_args(model: Any) -> None:
    """Print the arguments with which the data were set up.

    Examples
    --------
    >>> model.view_setup_method_args()  # doctest: +ELLIPSIS
    Set up by `CGMDVAE.setup_anndata` with arguments:
    {...}
    """
    _print_setup(model.registry)


def view_registry(model: Any, hide_state_registries: bool = False) -> None:
    """Print what was registered of the model's own cells.

    Parameters
    ----------
    hide_state_registries
        Whether to leave out the tables of categories.

    Examples
    --------
    >>> model.view_registry()  # doctest: +SKIP
    """
    model.reader.manager().view_registry(hide_state_registries=hide_state_registries)


def view_anndata_setup(model: Any, adata: AnnData | None = None, hide_state_registries: bool = False) -> None:
    """Print what was registered of any cells that were set up.

    Parameters
    ----------
    adata
        Cells that were set up for this class; ``None`` is the model's own.
    hide_state_registries
        Whether to leave out the tables of categories.

    Examples
    --------
    >>> model.view_anndata_setup(adata, hide_state_registries=True)  # doctest: +SKIP
    """
    if adata is None or adata is model._adata or adata is model.reader.own:
        manager = model.reader.manager()
    else:
        manager = type(model)._get_most_recent_anndata_manager(checks.check_type(adata))
    if manager is None:
        name = type(model).__name__
        msg = f"`adata` is not set up for {name}. Call `{name}.setup_anndata(adata, ...)` first."
        raise ValueError(msg)
    manager.view_registry(hide_state_registries=hide_state_registries)


def get_state_registry(model: Any, registry_key: str) -> Any:
    """Return what is known of one registered field, such as its categories.

    Parameters
    ----------
    registry_key
        Name of the field, such as ``"batch"``.

    Examples
    --------
    >>> list(model.get_state_registry("batch").categorical_mapping)
    ['batch_0', 'batch_1']
    """
    one_of("registry_key", registry_key, list(model.registry["field_registries"]))
    return BaseModelClass.get_state_registry(model, registry_key)


def get_setup_arg(model: Any, setup_arg: str) -> Any:
    """Return one of the arguments with which the data were set up.

    Parameters
    ----------
    setup_arg
        Name of the argument, such as ``"batch_key"``.

    Examples
    --------
    >>> model.get_setup_arg("batch_key")
    'batch'
    """
    return model.registry["setup_args"][one_of("setup_arg", setup_arg, model.registry["setup_args"])]


def data_registry(model: Any, registry_key: str) -> Any:
    """Return the values of one registered field of the model's own cells.

    Parameters
    ----------
    registry_key
        Name of the field, such as ``"X"`` or ``"batch"``.

    Examples
    --------
    >>> model.data_registry("X").shape
    (200, 40)
    """
    return _values(model.reader.manager(), registry_key)


def get_from_registry(model: Any, adata: AnnData, registry_key: str) -> Any:
    """Return the values of one registered field of given cells.

    Parameters
    ----------
    adata
        Cells with the genes of the model.
    registry_key
        Name of the field, such as ``"X"`` or ``"batch"``.

    Examples
    --------
    >>> model.get_from_registry(adata[:5].copy(), "batch").shape
    (5, 1)
    """
    return _values(model.reader.manager(adata), registry_key)


def transfer_fields(model: Any, adata: AnnData, **kwargs: Any) -> AnnDataManager:
    """Register cells in the same way as those of the model, with scvi-tools' call.

    Parameters
    ----------
    adata
        Cells, to which columns with codes are added.
    **kwargs
        Further arguments of :meth:`scvi.data.AnnDataManager.transfer_fields`.

    Examples
    --------
    >>> manager = model.transfer_fields(adata[:5].copy())
    >>> manager.adata.obs["_scvi_batch"].tolist() == adata.obs["_scvi_batch"][:5].tolist()
    True
    """
    return model.reader.manager().transfer_fields(checks.check_type(adata), **kwargs)


def get_anndata_manager(model: Any, adata: AnnData, required: bool = False) -> AnnDataManager | None:
    """Return scvi-tools' registration of cells, or ``None`` if there is none.

    Parameters
    ----------
    adata
        Cells that were set up.
    required
        Whether to raise an error if there is none.

    Examples
    --------
    >>> sa.VAE.setup_anndata(adata)
    >>> vae = sa.VAE(adata)
    >>> vae.get_anndata_manager(adata).adata is adata
    True
    """
    if adata is not None:
        adata = checks.check_type(_own_registered(model, adata))
    return BaseModelClass.get_anndata_manager(model, adata, required)


def deregister_manager(model: Any, adata: AnnData | None = None) -> None:
    """Forget scvi-tools' registration of cells.

    Parameters
    ----------
    adata
        Cells that were set up; ``None`` forgets all but the model's own.

    Examples
    --------
    >>> model.deregister_manager()
    """
    if adata is not None and model.get_anndata_manager(adata) is None:
        msg = "`adata` is not registered with this model, so that there is nothing to forget. Pass `None`."
        raise ValueError(msg)
    BaseModelClass.deregister_manager(model, _own_registered(model, adata))


def _own_registered(model: Any, adata: Any) -> Any:
    """Return the AnnData that was registered, if the user passes the object that it was made from."""
    return model._adata if adata is not None and adata is model.reader.own else adata


def _validate_anndata(model: Any, adata: Any = None, copy_if_view: bool = True) -> AnnData:
    """Check the type of cells before scvi-tools does."""
    if adata is not None:
        adata = checks.check_type(_own_registered(model, adata))
    return BaseModelClass._validate_anndata(model, adata, copy_if_view)


# what is not supported ----------------------------------------------------------------------


def differential_abundance(model: Any, *args: Any, **kwargs: Any) -> NoReturn:
    """Raise an error: :func:`scalloy.compare.groups` compares samples in the latent space.

    Parameters
    ----------
    *args, **kwargs
        Ignored.

    Examples
    --------
    >>> found = sa.compare.groups(model, groupby="condition", unit="cell", n_permutations=20)
    """
    msg = (
        "`differential_abundance` is not supported. Call `sa.compare.groups` to compare groups of samples in "
        "the latent space, or count the cells of each sample in each cluster."
    )
    raise NotImplementedError(msg)


def setup_annbatch(cls: Any, *args: Any, **kwargs: Any) -> NoReturn:
    """Raise an error: cells on the disk are read from a store (:func:`scalloy.data.open_store`).

    Parameters
    ----------
    *args, **kwargs
        Ignored.

    Examples
    --------
    >>> store = sa.data.write_store(adata, folder / "cells.zarr")
    >>> sa.VAE.setup_anndata(store)
    """
    msg = (
        "`setup_annbatch` is not supported. Call `sa.data.write_store(files, folder)` and then "
        f"`{cls.__name__}.setup_anndata(sa.data.open_store(folder))`."
    )
    raise NotImplementedError(msg)


def update_setup_method_args(model: Any, *args: Any, **kwargs: Any) -> NoReturn:
    """Raise an error: the set-up of a model is never changed; set the cells up again, and make a new model.

    Parameters
    ----------
    *args, **kwargs
        Ignored.

    Examples
    --------
    >>> sa.VAE.setup_anndata(adata, batch_key="condition")
    >>> vae = sa.VAE(adata)
    """
    name = type(model).__name__
    msg = (
        f"The set-up of a model is not changed. Call `{name}.setup_anndata(adata, ...)` with the new "
        "arguments, and make another model."
    )
    raise NotImplementedError(msg)


def convert_legacy_save(cls: Any, *args: Any, **kwargs: Any) -> NoReturn:
    """Raise an error: there is nothing to convert, since ``load`` reads every older format of scalloy.

    Parameters
    ----------
    *args, **kwargs
        Ignored.

    Examples
    --------
    >>> model.save(folder / "model")
    >>> again = sa.load(folder / "model")
    """
    msg = (
        f"There is nothing to convert. Call `sa.{cls.__name__}.load(folder)`, which reads every older "
        "format of scalloy, or `sa.VAE.from_scvi(model)` for an SCVI of scvi-tools."
    )
    raise NotImplementedError(msg)


def _print_setup(registry: dict[str, Any]) -> None:
    """Print the set-up method and its arguments."""
    rich.print(f"Set up by `{registry['model_name']}.{registry['setup_method_name']}` with arguments:")
    rich.pretty.pprint(dict(registry["setup_args"]))


def _values(manager: AnnDataManager, registry_key: str) -> Any:
    """Return the values of a registered field, whose name is checked."""
    return manager.get_from_registry(one_of("registry_key", registry_key, list(manager.data_registry)))
