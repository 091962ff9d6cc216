"""Every key that the package writes into an AnnData, in one table.

==========  =====================================  ====================================================
where       key                                    what
==========  =====================================  ====================================================
``.obsm``   ``X_<model>``                          latent representation, by :meth:`annotate`
``.obs``    ``<model>_cluster``,                   most probable cluster and its probability, by
            ``<model>_cluster_probability``        :meth:`annotate` of models with a mixture
``.obsm``   ``<model>_probabilities``              probability of each cluster (a DataFrame), likewise
``.obs``    ``<model>_label``,                     most probable label, its probability among the labels,
            ``<model>_label_probability``,         and the score of being none of them, likewise, with
            ``<model>_unknown``                    labels
``.obsm``   ``<model>_active``                     probability of each latent of being on (a DataFrame), by
                                                   :meth:`annotate` of :class:`scalloy.BetaVSC`
``.obs``    ``<model>_sparsity``                   share of the latents that are off, likewise
``.obsm``   ``X_<model>_<modality>``               code of each modality, by :meth:`annotate` of
            ``<model>_<second modality>``          :class:`scalloy.POISEVAE`; expected counts of the
                                                   second one, by all that was measured (a DataFrame)
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
SECOND_KEY = "second"  # likewise, the second modality

SETUP_OBS = ("_scvi_batch", "_scvi_labels", "_scvi_condition")
SETUP_OBSM = ("_scvi_extra_categorical_covs", "_scvi_extra_continuous_covs")
WRITTEN_OBS = ("cluster", "cluster_probability", "label", "label_probability", "unknown", "sparsity")
SETUP_UNS = ("_scvi_uuid", "_scvi_manager_uuid")


def latent(model: str) -> str:
    """Key of the latent representation in ``.obsm``."""
    return f"X_{model}"


def cluster(model: str) -> str:
    """Key of the cluster in ``.obs``."""
    return f"{model}_cluster"


def cluster_probability(model: str) -> str:
    """Key of the probability of the cluster in ``.obs``."""
    return f"{model}_cluster_probability"


def probabilities(model: str) -> str:
    """Key of the probabilities of all clusters in ``.obsm``."""
    return f"{model}_probabilities"


def label(model: str) -> str:
    """Key of the predicted label in ``.obs``."""
    return f"{model}_label"


def label_probability(model: str) -> str:
    """Key of the probability of the predicted label in ``.obs``."""
    return f"{model}_label_probability"


def unknown(model: str) -> str:
    """Key of the score of being of no known type in ``.obs``."""
    return f"{model}_unknown"


def active(model: str) -> str:
    """Key of the probabilities of latents of being on in ``.obsm``."""
    return f"{model}_active"


def sparsity(model: str) -> str:
    """Key of the share of latents that are off in ``.obs``."""
    return f"{model}_sparsity"


def completed(model: str, modality: str) -> str:
    """Key of the expected counts of a modality in ``.obsm``."""
    return f"{model}_{modality}"


def settings(model: str) -> str:
    """Key of the settings in ``.uns``."""
    return model
