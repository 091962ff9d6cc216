"""Every key that the package writes into an AnnData, in one table.

==========  =====================================  ====================================================
where       key                                    what
==========  =====================================  ====================================================
``.obsm``   ``X_<model>``                          latent representation, by :meth:`annotate`
``.uns``    ``<model>``                            settings and versions of the model, by :meth:`annotate`
``.obs``    ``_scvi_batch``, ``_scvi_labels``,     codes of the registered columns, by scvi-tools in
            ``_scvi_condition``                    ``setup_anndata``
``.obsm``   ``_scvi_extra_categorical_covs``,      registered covariates, by scvi-tools in
            ``_scvi_extra_continuous_covs``        ``setup_anndata``
``.uns``    ``_scvi_uuid``,                        which set-up belongs to the object, by scvi-tools in
            ``_scvi_manager_uuid``                 ``setup_anndata``
==========  =====================================  ====================================================

``<model>`` is the name of the class in lower case, or ``key_added``.
"""

from __future__ import annotations

CONDITION_KEY = "condition"  # in scvi-tools' registry

SETUP_OBS = ("_scvi_batch", "_scvi_labels", "_scvi_condition")
SETUP_OBSM = ("_scvi_extra_categorical_covs", "_scvi_extra_continuous_covs")
SETUP_UNS = ("_scvi_uuid", "_scvi_manager_uuid")


def latent(model: str) -> str:
    """Key of the latent representation in ``.obsm``."""
    return f"X_{model}"


def settings(model: str) -> str:
    """Key of the settings in ``.uns``."""
    return model
