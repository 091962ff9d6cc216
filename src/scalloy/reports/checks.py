"""Checks of a report: each holds what was found, the limit, the verdict, and advice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scalloy import metrics
from scalloy._arguments import few
from scalloy.reports.subject import Subject

COUNTED = 3000  # maximum number of cells for the accuracy of neighbours
LOST = 0.05  # tolerated loss of the neighbours' accuracy on labels
APART = 0.3  # tolerated separation of batches, from 0 (chance) to 1
UNUSED = 0.01  # variance over cells of a latent's mean, up to which it is unused (Burda et al., ICLR 2016)
RARE = 0.001  # share of the cells below which a cluster counts as empty
STILL = 0.01  # tolerated fall of the loss in the last tenth of training, as a share of its whole fall
ZEROS, FACTOR, MISFIT = 0.02, 1.5, 0.05  # tolerances: share of zeros, factor of the variance, share of genes
EXPRESSED = 0.01  # mean count from which a gene is checked


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Parameters
    ----------
    name
        Name of the check.
    found
        Observed result.
    limit
        Result that it should be.
    good
        Whether the result is as it should be; ``None`` if this cannot be told.
    advice
        Advice for a result that is not as it should be.
    """

    name: str
    found: str
    limit: str
    good: bool | None
    advice: str = ""

    @property
    def finding(self) -> str:
        """Name, result, limit and advice in one line of text."""
        return f"{self.name}: {self.found} (should be {self.limit}). {self.advice}"


def converged(history: dict[str, pd.DataFrame]) -> Check:
    """Check that the loss of validation cells has stopped falling."""
    name, limit = "End of training", f"less than {STILL:.0%} in the last tenth"
    if "validation_loss" not in history:
        return Check(name, "no validation cells", limit, None)
    loss = history["validation_loss"].iloc[:, 0].astype(float).to_numpy()
    last = max(1, len(loss) // 10)
    advice = "Train longer: `max_epochs`."
    if len(loss) <= 10:
        return Check(name, f"only {len(loss)} epochs", "more than 10", False, advice)
    before = loss[:-last].min()
    share = max(before - loss.min(), 0.0) / max(loss[0] - loss.min(), 1e-12)
    found = f"the validation loss fell by {share:.1%} of its whole fall in the last tenth"
    return Check(name, found, limit, bool(share < STILL), advice)


def latents_used(z: np.ndarray) -> Check:
    """Check that the mean of each latent varies between cells."""
    n = int((z.var(0) > UNUSED).sum())
    advice = "The others hold no information, so fewer suffice. If none is used, the decoder ignores them."
    return Check("Latents in use", f"{n} of {z.shape[1]}", "all", n == z.shape[1], advice)


def clusters_used(subject: Subject) -> Check:
    """Check that clusters bound to a label have cells, and that at least two clusters are in use."""
    name, limit = "Clusters in use", f"two or more, and every label, with {RARE:.1%} of the cells"
    if not subject.has_mixture:
        return Check(name, "the model has no mixture", limit, None)
    share = subject.clusters.value_counts(normalize=True, sort=False)
    empty = [str(k) for k in share.index[share < RARE]]
    bound = subject.model.labels[: subject.model.module.prior.n_labels]
    labels = [k for k in empty if k in bound]
    used = len(share) - len(empty)
    found = f"{used} of {len(share)}" + (f"; empty: {few(empty)}" if empty else "")
    advice = "Check that there are cells of these labels. Pass more `n_clusters`, or train longer."
    return Check(name, found, limit, used > 1 and not labels, advice)


def neighbours(subject: Subject) -> pd.DataFrame:
    """Measure how well neighbours tell each registered column, in the latent space and in components."""
    rng, n = np.random.default_rng(subject.seed), len(subject.rows)
    rows = np.sort(rng.choice(n, min(n, COUNTED), replace=False))
    columns = {"labels": subject.known}
    for role in ("batch", "condition"):
        if key := subject.key(f"{role}_key"):
            columns[role] = subject.obs[key].astype(str)
    found = {}
    for role, values in columns.items():
        there = rows[values.iloc[rows].notna().to_numpy()]
        names = values.iloc[there].to_numpy()
        sizes = pd.Series(names).value_counts()
        if len(sizes) < 2 or sizes.iloc[0] < metrics.clustering.FOLDS:
            continue
        found[role] = {
            "column": values.name or role,
            "latent space": metrics.knn_accuracy(subject.z[there], names),
            "principal components": metrics.knn_accuracy(subject.components[there], names),
            "chance": float(sizes.iloc[0] / sizes.sum()),
        }
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("what")


def over_corrected(told: pd.DataFrame, corrected: bool) -> Check:
    """Check that removing batches has not removed cell types."""
    name, limit = "Cell types kept", f"at most {LOST} below that in principal components"
    if "labels" not in told.index:
        return Check(name, "no labels", limit, None)
    row = told.loc["labels"]
    found = f"labels by neighbours {row['latent space']:.3f}, in components {row['principal components']:.3f}"
    good = row["latent space"] >= row["principal components"] - LOST
    why = "Over-corrected? Cell types that occur in few batches vanish with them. " if corrected else ""
    return Check(name, found, limit, bool(good), f"{why}More latents, or longer training, may keep them.")


def mixed(told: pd.DataFrame) -> Check:
    """Check that batches do not lie apart in the latent space."""
    name, limit = "Batches mixed", f"at most {APART} of the way from chance to 1"
    if "batch" not in told.index:
        return Check(name, "no batches registered", limit, None)
    row = told.loc["batch"]
    apart = max(0.0, (row["latent space"] - row["chance"]) / max(1 - row["chance"], 1e-12))
    found = f"batches by neighbours {row['latent space']:.3f}, chance {row['chance']:.3f}: {apart:.2f}"
    advice = "Batches may hold different cells; compare within a type before you correct more."
    return Check(name, found, limit, bool(apart <= APART), advice)


def zeros(genes: pd.DataFrame | None, n: int) -> Check:
    """Check that the likelihood expects as many zeros as there are."""
    name, limit = "Zeros of genes", f"off by more than {ZEROS} in at most {MISFIT:.0%} of the genes"
    if genes is None:
        return Check(name, "the likelihood does not model counts", limit, None)
    seen, expected = genes["zeros_observed"], genes["zeros_expected"]
    by_chance = 3 * np.sqrt(expected * (1 - expected) / n)
    off = float(((seen - expected).abs() > ZEROS + by_chance).mean())
    found = f"{off:.1%} of the genes; {seen.mean():.3f} observed, {expected.mean():.3f} expected"
    return Check(
        name, found, limit, off <= MISFIT, "Try `gene_likelihood='nb'` or `'zinb'`, or train longer."
    )


def variance(genes: pd.DataFrame | None) -> Check:
    """Check that the likelihood expects as much variance as there is."""
    name, limit = "Variance of genes", f"within a factor of {FACTOR} on average"
    if genes is None:
        return Check(name, "the likelihood does not model counts", limit, None)
    ratio = np.log(genes["variance_expected"] / genes["variance_observed"])
    factor, side = float(np.exp(ratio.abs().mean())), "too little" if ratio.mean() < 0 else "too much"
    found = f"a factor of {factor:.2f}, {side} expected"
    return Check(name, found, limit, factor <= FACTOR, "Try `gene_likelihood='nb'`, or more latents.")


def far(groups: pd.DataFrame | None) -> Check:
    """Check that groups not seen under a condition are close enough to those seen to be predicted."""
    name, limit = "Far transfers", "none"
    if groups is None or groups.empty:
        return Check(name, "every group was seen under every condition", limit, True)
    names = [f"{g} under {c}" for g, c in groups.loc[groups["far"], ["group", "to"]].to_numpy()]
    found = f"{len(names)} of {len(groups)} pairs" + (f": {', '.join(names[:5])}" if names else "")
    return Check(name, found, limit, not names, "Do not rely on what is predicted for these.")


def table(checks: list[Check]) -> pd.DataFrame:
    """Return all checks as a table."""
    said = {True: "good", False: "look", None: "cannot be told"}
    rows = [
        {"check": c.name, "verdict": said[c.good], "found": c.found, "should be": c.limit} for c in checks
    ]
    return pd.DataFrame(rows).set_index("check")
