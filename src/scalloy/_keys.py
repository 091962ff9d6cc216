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
``.uns``    ``<model>``                            settings and versions of the model, and the names of the
                                                   clusters, by :meth:`annotate`
``.obs``    ``_scvi_batch``, ``_scvi_labels``,     codes of the registered columns, by scvi-tools in
            ``_scvi_condition``                    ``setup_anndata``
``.obsm``   ``_scvi_extra_categorical_covs``,      registered covariates, by scvi-tools in
            ``_scvi_extra_continuous_covs``        ``setup_anndata``
``.uns``    ``_scvi_uuid``,                        which set-up belongs to the object, by scvi-tools in
            ``_scvi_manager_uuid``                 ``setup_anndata``
==========  =====================================  ====================================================

``<model>`` is the name of the class in lower case, or ``key_added``.

Names of clusters, labels and modalities may be any text, but keys of h5ad files and zarr stores may not:
``T/B`` would be a ``B`` within a ``T``. Where such a name becomes a key or the column of a frame, characters
that files cannot hold are written as in web addresses (:func:`safe`, and back again :func:`original`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import unquote

CONDITION_KEY = "condition"  # in scvi-tools' registry
SECOND_KEY = "second"  # likewise, the second modality

SETUP_OBS = ("_scvi_batch", "_scvi_labels", "_scvi_condition")
SETUP_OBSM = ("_scvi_extra_categorical_covs", "_scvi_extra_continuous_covs")
WRITTEN_OBS = ("cluster", "cluster_probability", "label", "label_probability", "unknown", "sparsity")
SETUP_UNS = ("_scvi_uuid", "_scvi_manager_uuid")


LONGEST = 200  # bytes of a name: files of a zarr store have names of up to 255
UNSAFE = re.compile(
    r"[/\\\x00-\x1f\x7f-\x9f]|^\.|^_(?=_|index$)|\s$|%(?=[0-9A-Fa-f]{2}|[-~])|(?<=^zarr)\.(?=json$)"
)
EMPTY = "%-"


def safe(name: str) -> str:
    """Return a name as a key of h5ad files and zarr stores; different names stay different.

    Most names are returned as they are. Of a very long one the beginning is kept, and a digest of the whole.

    Parameters
    ----------
    name
        Any text.
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
    """Return the name of which :func:`safe` made a key; a very long one stays cut."""
    return "" if key == EMPTY else unquote(key)


def storable(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return values under keys, and frames with columns, that h5ad files and zarr stores can hold.

    Parameters
    ----------
    written
        Value of each key.
    """
    out = {}
    for key, value in written.items():
        frame = hasattr(value, "columns")
        out[safe(key)] = value.rename_axis(index=None).rename(columns=_safe) if frame else value
    return out


def check_key(argument: str, name: object) -> str:
    """Return a name that keys are to contain, if files can hold it as it is.

    Parameters
    ----------
    argument
        Name of the argument, for the message.
    name
        What was given.
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
    """Return names none of which is taken: all of them get the prefix, as often as needed, if one is.

    Parameters
    ----------
    names
        To be made unique.
    taken
        Names that exist already.
    prefix
        Put before them.
    """
    out, known = list(names), set(taken)
    while known.intersection(out):
        out = [prefix + name for name in out]
    return out


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
