"""Benchmark on RNA and ATAC: one predicted from the other in held-out cells, beside MULTIVI and baselines.

All models train on the same cells, of which both modalities are known, and see one modality of the cells that
were held out. Predictions are compared with what was counted there and, in simulated cells, with the truth.
The arguments of our model are in :data:`SETTINGS`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import scvi
from anndata import AnnData
from scipy.spatial.distance import cdist
from sklearn.model_selection import KFold

from scalloy import datasets, metrics
from scalloy._arguments import one_of
from scalloy.baselines import CROSS_METHODS, CrossModal
from scalloy.benchmark.evidence import keeps_seed, spread
from scalloy.benchmark.fit import QUIET
from scalloy.benchmark.multimodal import JOINTS, recovered
from scalloy.files.reading import read
from scalloy.models import POISEVAE

DATA = ("simulated", "multiome_test")
TRUTH, MULTIVI = "true probability", "MULTIVI"
MODELS = (*JOINTS, *CROSS_METHODS)
#: Arguments of POISEVAE for RNA and ATAC: of ``setup_mudata``, and of the model.
SETTINGS: dict[str, dict[str, Any]] = {
    "setup": {"modalities": ("rna", "atac")},
    "model": {"likelihoods": {"atac": "poisson"}},
}
LEAST = 5  # cells with a fragment, and without one, in which a peak is scored
COLUMNS = ["r_rna", "r_atac", "auroc_atac", "r_rna_truth", "r_atac_truth", "auroc_open"]
COLUMNS += ["ari", "knn", "foscttm", "times"]
Row = dict[str, Any]
Frames = dict[str, np.ndarray]


class Cells(NamedTuple):
    """Some of the cells of a data set, with what is known about them."""

    mdata: Any
    counts: Frames
    truth: Frames
    types: pd.Series | None

    def take(self, rows: np.ndarray) -> Cells:
        """Return some of the cells."""
        parts = ({k: v[rows] for k, v in x.items()} for x in (self.counts, self.truth))
        types = None if self.types is None else self.types.iloc[rows]
        return Cells(self.mdata[rows].copy(), *parts, types)


@keeps_seed()
def multiome(
    data: str = "simulated",
    models: Sequence[str] = MODELS,
    *,
    n_obs: int = 3000,
    folds: int = 5,
    n_folds: int | None = None,
    seed: int = 0,
    max_epochs: int | None = None,
    multivi_epochs: int | None = None,
) -> pd.DataFrame:
    """Predict RNA from ATAC and ATAC from RNA in held-out cells, and score the code of both.

    Parameters
    ----------
    data
        ``"simulated"`` (:func:`scalloy.datasets.multiome`) or ``"multiome_test"`` (1,000 cells with 45 genes
        and 174 peaks, see :func:`scalloy.datasets.fetch`).
    models
        Names of our models and of the baselines; ``"MULTIVI"`` runs only if it is named.
    n_obs
        Number of simulated cells.
    folds, n_folds
        Number of parts into which the cells are divided, and how many of them are held out in turn (``None``
        holds out each).
    seed
        Random seed of the simulation, the folds and the training.
    max_epochs, multivi_epochs
        Maximum number of epochs of our models and of MULTIVI; ``None`` uses the defaults.

    Returns
    -------
    One row for each fold and model: correlations over cells, averaged over genes and peaks, of ``log1p`` of
    scaled counts (``r_rna``, ``r_atac``) and with the true means of simulated cells (``r_rna_truth``) and the
    true probability that a peak is open (``r_atac_truth``); the area under the ROC curve of peaks with a
    fragment (``auroc_atac``) and of open peaks (``auroc_open``); the adjusted Rand index of k-means on the
    code of both modalities, and the accuracy of its nearest neighbours, both for cell types; ``foscttm``, the
    share of cells that are closer, in the code, than a cell's own other modality; and the processor time of
    training in seconds.

    Examples
    --------
    >>> table = sa.benchmark.multiome.multiome("simulated", ["mean", "ridge"], n_obs=200, n_folds=1)
    >>> table["model"].tolist()
    ['true probability', 'mean', 'ridge']
    """
    whole, rows = load(data, n_obs, seed), []
    splits = KFold(folds, shuffle=True, random_state=seed).split(whole.counts["rna"])
    for fold, (train, test) in enumerate(splits):
        if fold == (n_folds or folds):
            break
        known, new = whole.take(train), whole.take(test)
        if whole.truth:
            found = {"atac": new.truth["open_probability"]}
            rows.append({"data": data, "fold": fold, "model": TRUTH, **scores(new, found)})
        for name in models:
            one_of("models", name, (*MODELS, MULTIVI))
            scvi.settings.seed = seed
            row = run(name, known, new, multivi_epochs if name == MULTIVI else max_epochs)
            rows.append({"data": data, "fold": fold, "model": name, **row})
    return pd.DataFrame(rows)


def load(name: str, n_obs: int = 3000, seed: int = 0) -> Cells:
    """Load cells with both modalities by the name of the data set."""
    if one_of("data", name, DATA) == "simulated":
        mdata = datasets.multiome(n_obs, 200, 800, n_types=8, library=2000.0, seed=seed)
        truth = {k: v.to_numpy(float) for k, v in mdata.obsm.items() if isinstance(v, pd.DataFrame)}
        mdata.obsm.clear()
        types = mdata.obs["cell_type"]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an old format, and by another program
            mdata, truth, types = read(datasets.fetch("multiome_test_1000.h5mu")), {}, None
        totals = [np.asarray(mdata[k].X.sum(axis=1)).ravel() for k in ("rna", "atac")]
        mdata = mdata[np.minimum(*totals) > 0].copy()  # cells with both modalities
    counts = {k: np.asarray(mdata[k].X.todense(), dtype=float) for k in ("rna", "atac")}
    return Cells(mdata, counts, truth, types)


def run(name: str, known: Cells, new: Cells, max_epochs: int | None) -> Row:
    """Train and score one model on one split."""
    train: Callable[[], Any] = {MULTIVI: lambda: Multivi(known, max_epochs)}.get(
        name, lambda: Simple(known, name) if name in CROSS_METHODS else Ours(known, JOINTS[name], max_epochs)
    )
    began = time.process_time()
    model = train()
    seconds = time.process_time() - began
    found = {side: model.predict(side, new) for side in ("rna", "atac")}
    return {**scores(new, found), **code_scores(model, new), "seconds": seconds}


class Ours:
    """POISEVAE, trained with :data:`SETTINGS`."""

    def __init__(self, known: Cells, joint: str, max_epochs: int | None) -> None:
        mdata = known.mdata.copy()
        POISEVAE.setup_mudata(mdata, **SETTINGS["setup"])
        self.model = POISEVAE(mdata, joint=joint, **SETTINGS["model"])
        self.model.train(max_epochs, **QUIET)

    def predict(self, side: str, new: Cells) -> np.ndarray:
        """Predict counts from the other modality."""
        other = {"rna": "atac", "atac": "rna"}[side]
        return self.model.predict(side, from_=other, adata=new.mdata).to_numpy(float)

    def code(self, new: Cells, *sides: str) -> np.ndarray:
        """Return the code of cells of which some modalities are seen."""
        return self.model.get_latent_representation(part(new.mdata, sides))


class Multivi:
    """MULTIVI of scvi-tools with its defaults; what is not to be seen is zero, as it expects."""

    def __init__(self, known: Cells, max_epochs: int | None) -> None:
        from scvi.model import MULTIVI as Model

        mdata = known.mdata.copy()
        Model.setup_mudata(mdata, modalities={"rna_layer": "rna", "atac_layer": "atac"})
        n_genes, n_peaks = (known.counts[k].shape[1] for k in ("rna", "atac"))
        self.model = Model(mdata, n_genes=n_genes, n_regions=n_peaks)
        self.model.train(**({} if max_epochs is None else {"max_epochs": max_epochs}), **QUIET)

    def predict(self, side: str, new: Cells) -> np.ndarray:
        """Predict shares of genes, or the probability that peaks are open, from the other modality."""
        cells = zeroed(new.mdata, side)
        if side == "rna":
            return self.model.get_normalized_expression(cells, return_numpy=True)
        return self.model.get_normalized_accessibility(cells, return_numpy=True)

    def code(self, new: Cells, *sides: str) -> np.ndarray:
        """Return the code of cells of which some modalities are seen."""
        hidden = [k for k in ("rna", "atac") if k not in sides]
        return self.model.get_latent_representation(zeroed(new.mdata, *hidden))


class Simple:
    """Baselines, which have no code."""

    def __init__(self, known: Cells, name: str) -> None:
        self.model = CrossModal(joined(known), name, protein_obsm_key="atac", normalise=True)
        self.model.train()

    def predict(self, side: str, new: Cells) -> np.ndarray:
        """Predict scaled counts from the other modality."""
        names = ("rna", "prot") if side == "rna" else ("prot", "rna")
        return np.expm1(self.model.predict(*names, joined(new)).to_numpy(float)).clip(0)


def joined(cells: Cells) -> AnnData:
    """Return genes in ``.X`` and peaks in ``.obsm``."""
    rna, atac = cells.mdata["rna"], cells.mdata["atac"]
    out = AnnData(sp.csr_matrix(cells.counts["rna"]), obs=pd.DataFrame(index=rna.obs_names))
    out.var_names = rna.var_names
    out.obsm["atac"] = pd.DataFrame(cells.counts["atac"], rna.obs_names, atac.var_names)
    return out


def part(mdata: Any, sides: Sequence[str]) -> Any:
    """Return a MuData with some of the modalities."""
    from mudata import MuData

    return MuData({side: mdata[side].copy() for side in sides})


def zeroed(mdata: Any, *sides: str) -> Any:
    """Return a copy whose counts of some modalities are zero."""
    out = mdata.copy()
    out.obs["_indices"] = np.arange(out.n_obs)  # as MULTIVI numbers the cells that it was trained on
    for side in sides:
        out[side].X = sp.csr_matrix(out[side].shape, dtype=np.float32)
    return out


def scaled(counts: np.ndarray) -> np.ndarray:
    """Return ``log1p`` of counts scaled to 10,000 per cell."""
    return np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1e-12))


def scores(new: Cells, found: Frames) -> Row:
    """Score predictions by gene and by peak, on any scale that is proportional to counts within a cell."""
    log = {side: scaled(x) for side, x in found.items()}
    out: Row = {}
    for side, x in log.items():
        out[f"r_{side}"] = mean(metrics.variable_correlation(x, scaled(new.counts[side])))
    peaks = new.counts["atac"] > 0
    some = np.minimum(peaks.sum(0), (~peaks).sum(0)) >= LEAST
    out["auroc_atac"] = mean(metrics.variable_auroc(log["atac"][:, some], peaks[:, some]))
    if new.truth:
        if "rna" in log:
            expected = scaled(new.truth["mean_rna"])
            out["r_rna_truth"] = mean(metrics.variable_correlation(log["rna"], expected))
        expected = new.truth["open_probability"]
        out["r_atac_truth"] = mean(metrics.variable_correlation(log["atac"], expected))
        out["auroc_open"] = mean(metrics.variable_auroc(log["atac"], new.truth["open"]))
    return out


def mean(values: np.ndarray) -> float:
    """Return the mean of the values that are defined."""
    return float(np.nanmean(values))


def code_scores(model: Any, new: Cells) -> Row:
    """Score the code of both modalities against cell types, and those of each against each other."""
    if not hasattr(model, "code"):
        return {}
    alone = [model.code(new, side) for side in ("rna", "atac")]
    out: Row = {"foscttm": foscttm(*alone)}
    if new.types is not None:
        code = model.code(new, "rna", "atac")
        labels = AnnData(obs=pd.DataFrame({"cell_type": new.types}))
        out |= {"ari": recovered(code, labels), "knn": metrics.knn_accuracy(code, new.types.to_numpy())}
    return out


def foscttm(first: np.ndarray, second: np.ndarray) -> float:
    """Return the share of cells closer to a cell than its own other modality, averaged over cells."""
    distance = cdist(first, second)
    own = np.diag(distance)
    closer = (distance < own[:, None]).sum(1) + (distance < own).sum(0)
    return float(closer.mean() / (2 * max(1, len(first) - 1)))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over folds; ``times`` is the time that MULTIVI takes, over ours."""
    frame = frame.copy()
    rival = frame.loc[frame["model"] == MULTIVI].set_index("fold")["seconds"]
    if len(rival):
        frame["times"] = frame["fold"].map(rival) / frame["seconds"]
    return spread(frame, ["data", "model"], [c for c in COLUMNS if c in frame], digits=3)
