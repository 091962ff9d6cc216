"""Table of all keys that the package writes into an AnnData, and functions that build them.

==========  =====================================  ====================================================
where       key                                    content
==========  =====================================  ====================================================
``.obsm``   ``X_<model>``                          latent representation, by :meth:`annotate`
``.obs``    ``<model>_cluster``,                   most probable cluster and its probability, by
            ``<model>_cluster_probability``        :meth:`annotate` of models with a mixture
``.obsm``   ``<model>_probabilities``              probability of each cluster (a DataFrame), by
                                                   :meth:`annotate` of models with a mixture
``.obs``    ``<model>_label``,                     most probable label, its probability among the labels,
            ``<model>_label_probability``,         and a score of belonging to none of them, by
            ``<model>_unknown``                    :meth:`annotate` of models with a mixture and labels
``.obs``    ``<model>_deepest_label``,             deepest label that the cell's probability supports, this
            ``<model>_deepest_probability``,       calibrated probability, and the depth of the label (1 is
            ``<model>_depth``                      a root, 0 none), by :meth:`annotate` of models with labels
                                                   that are a tree
``.obsm``   ``<model>_active``                     probability of each latent of being on (a DataFrame), by
                                                   :meth:`annotate` of :class:`scalloy.BetaVSC`
``.obs``    ``<model>_sparsity``                   share of the latents that are off, by
                                                   :meth:`annotate` of :class:`scalloy.BetaVSC`
``.obsm``   ``X_<model>_<modality>``               code of each modality, by :meth:`annotate` of
            ``<model>_<modality>``                 :class:`scalloy.POISEVAE`; expected counts of each
                                                   modality in ``.obsm``, given everything that was
                                                   measured (a DataFrame)
``.uns``    ``<model>``                            settings and versions of the model, and the names of the
                                                   clusters, by :meth:`annotate`
``.obs``    ``conditions``                         name of each cell's condition, by ``setup_anndata`` with
                                                   ``conditions=`` (:class:`scalloy.Conditions`)
``.obs``    ``label_tree``                         finest label of each cell, by ``setup_anndata`` with
                                                   several columns in ``labels_key=``
``.obs``    ``_scvi_batch``, ``_scvi_labels``,     codes of the registered columns, by scvi-tools in
            ``_scvi_condition``                    ``setup_anndata``
``.obsm``   ``_scvi_extra_categorical_covs``,      registered covariates, by scvi-tools in
            ``_scvi_extra_continuous_covs``        ``setup_anndata``
``.uns``    ``_scvi_uuid``,                        identifiers of the object's set-up, by scvi-tools in
            ``_scvi_manager_uuid``                 ``setup_anndata``
==========  =====================================  ====================================================

``<model>`` is the class name in lower case, or ``key_added``.

Names of clusters, labels and modalities may be any text, but keys of h5ad files and zarr stores may not:
``T/B`` would be read as ``B`` inside a group ``T``. Where such a name becomes a key or a column name,
forbidden characters are percent-encoded as in web addresses (:func:`safe`; :func:`original` decodes them).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import unquote

CONDITION_KEY = "condition"  # field name in the registry of scvi-tools
LABEL_TREE = "label_tree"  # column of `.obs` with the finest label, if several columns have labels
OTHER_KEYS = ("second", *(f"modality_{i}" for i in range(3, 11)))  # field names of further modalities there

SETUP_OBS = ("_scvi_batch", "_scvi_labels", "_scvi_condition")
SETUP_OBSM = ("_scvi_extra_categorical_covs", "_scvi_extra_continuous_covs")
WRITTEN_OBS = (
    "cluster",
    "cluster_probability",
    "label",
    "label_probability",
    "unknown",
    "deepest_label",
    "deepest_probability",
    "depth",
    "sparsity",
)
SETUP_UNS = ("_scvi_uuid", "_scvi_manager_uuid")


LONGEST = 200  # maximum bytes of a key: file names in a zarr store may have up to 255
UNSAFE = re.compile(
    r"[/\\\x00-\x1f\x7f-\x9f]|^\.|^_(?=_|index$)|\s$|%(?=[0-9A-Fa-f]{2}|[-~])|(?<=^zarr)\.(?=json$)"
)
EMPTY = "%-"


def safe(name: str) -> str:
    """Turn a name into a key that h5ad files and zarr stores accept; different names stay different.

    Most names are returned unchanged. A very long name is cut, and a digest of the whole is appended.

    Parameters
    ----------
    name
        Name, which may be any text.
    """
    if not name:
        return EMPTY
    written = UNSAFE.sub(lambda found: "".join(f"%{b:02X}" for b in found[0].encode()), name)
    raw = written.encode()
    if len(raw) <= LONGEST:
        return written
    kept = raw[: LONGEST - 20].decode(errors="ignore")
    return f"{kept}%~{sha256(name.encode()).hexdigest()[:16]}"


def _safe(name: Any) -> str:
    return safe(str(name))


def original(key: str) -> str:
    """Return the name from which :func:`safe` made a key; a very long name stays cut."""
    return "" if key == EMPTY else unquote(key)


def storable(written: Mapping[str, Any]) -> dict[str, Any]:
    """Rename keys and DataFrame columns so that h5ad files and zarr stores can hold them.

    Parameters
    ----------
    written
        Values by key.
    """
    out = {}
    for key, value in written.items():
        frame = hasattr(value, "columns")
        out[safe(key)] = value.rename_axis(index=None).rename(columns=_safe) if frame else value
    return out


def check_key(argument: str, name: object) -> str:
    """Return a name that becomes part of keys, after checking that files can hold it unchanged.

    Parameters
    ----------
    argument
        Name of the argument, for the error message.
    name
        Value that the user passed.
    """
    if not isinstance(name, str):
        msg = f"`{argument}` is a {type(name).__name__}. Expected text, such as 'mine'."
        raise TypeError(msg)
    if not name or safe(name) != name or len(name.encode()) > LONGEST - 50:
        msg = (
            f"`{argument}={name[:100]!r}` cannot be part of a key in an h5ad file or a zarr store. Pass a "
            "short name of letters, digits and `_` that begins with a letter."
        )
        raise ValueError(msg)
    return name


def unique(names: Iterable[str], taken: Iterable[str], prefix: str = "free ") -> list[str]:
    """Prefix all names, repeatedly if needed, until none of them is taken.

    Parameters
    ----------
    names
        Names to make unique.
    taken
        Names that exist already.
    prefix
        Text to put before each name.
    """
    out, known = list(names), set(taken)
    while known.intersection(out):
        out = [prefix + name for name in out]
    return out


def latent(model: str) -> str:
    """Return the key of the latent representation in ``.obsm``."""
    return f"X_{model}"


def cluster(model: str) -> str:
    """Return the key of the cluster in ``.obs``."""
    return f"{model}_cluster"


def cluster_probability(model: str) -> str:
    """Return the key of the probability of the assigned cluster in ``.obs``."""
    return f"{model}_cluster_probability"


def probabilities(model: str) -> str:
    """Return the key of the probabilities of all clusters in ``.obsm``."""
    return f"{model}_probabilities"


def label(model: str) -> str:
    """Return the key of the predicted label in ``.obs``."""
    return f"{model}_label"


def label_probability(model: str) -> str:
    """Return the key of the probability of the predicted label in ``.obs``."""
    return f"{model}_label_probability"


def unknown(model: str) -> str:
    """Return the key of the score of being of no known type in ``.obs``."""
    return f"{model}_unknown"


def deepest_label(model: str) -> str:
    """Return the key of the deepest label that the probability of a cell supports in ``.obs``."""
    return f"{model}_deepest_label"


def deepest_probability(model: str) -> str:
    """Return the key of the calibrated probability of the deepest label in ``.obs``."""
    return f"{model}_deepest_probability"


def depth(model: str) -> str:
    """Return the key of the depth of the deepest label in ``.obs``."""
    return f"{model}_depth"


def active(model: str) -> str:
    """Return the key of each latent's probability of being on in ``.obsm``."""
    return f"{model}_active"


def sparsity(model: str) -> str:
    """Return the key of the share of latents that are off in ``.obs``."""
    return f"{model}_sparsity"


def completed(model: str, modality: str) -> str:
    """Return the key of the expected counts of a modality in ``.obsm``."""
    return f"{model}_{modality}"


def settings(model: str) -> str:
    """Return the key of the settings in ``.uns``."""
    return model
