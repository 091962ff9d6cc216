"""What to look at: each check has what was found, the limit, and what it means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scalloy import metrics
from scalloy.data.checks import few
from scalloy.report.subject import Subject

COUNTED = 3000  # cells of which neighbours vote
LOST = 0.05  # accuracy of labels by neighbours
APART = 0.3  # how far batches can be told, from 0 (chance) to 1
UNUSED = 0.01  # variance of a latent's mean between cells (Burda et al., ICLR 2016)
RARE = 0.001  # share of the cells of a cluster
STILL = 0.01  # of the whole fall of the loss, within the last tenth of training
ZEROS, FACTOR, MISFIT = 0.02, 1.5, 0.05  # share of zeros, factor of the variance, share of the genes
EXPRESSED = 0.01  # mean count from which on a gene is looked at


@dataclass(frozen=True)
class Check:
    """One check.

    Parameters
    ----------
    name
        What is checked.
    found
        What was found.
    limit
        What it should be.
    good
        Whether it is; ``None`` where it cannot be told.
    advice
        What to do where it is not.
    """

    name: str
    found: str
    limit: str
    good: bool | None
    advice: str = ""

    @property
    def finding(self) -> str:
        """A sentence."""
        return f"{self.name}: {self.found} (should be {self.limit}). {self.advice}"


def converged(history: dict[str, pd.DataFrame]) -> Check:
    """Whether the loss of validation cells had stopped falling."""
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
    """Whether the mean of each latent varies between cells."""
    n = int((z.var(0) > UNUSED).sum())
    advice = "The others hold nothing. Fewer latents do; none at all means that the decoder ignores them."
    return Check("Latents in use", f"{n} of {z.shape[1]}", "all", n == z.shape[1], advice)


def clusters_used(subject: Subject) -> Check:
    """Whether clusters that are bound to a label have cells; free ones may be empty, but not all but one."""
    name, limit = "Clusters in use", f"two or more, and every label, with {RARE:.1%} of the cells"
    if not subject.has_mixture:
        return Check(name, "the model has no mixture", limit, None)
    share = subject.clusters.value_counts(normalize=True, sort=False)
    empty = [str(k) for k in share.index[share < RARE]]
    bound = subject.model.labels[: subject.model.module.prior.n_labels]
    labels = [k for k in empty if k in bound]
    used = len(share) - len(empty)
    found = f"{used} of {len(share)}" + (f"; empty: {few(empty)}" if empty else "")
    advice = "Are there cells of these labels? Pass more `n_clusters`, or train longer."
    return Check(name, found, limit, used > 1 and not labels, advice)


def neighbours(subject: Subject) -> pd.DataFrame:
    """How well neighbours tell each registered column, in the latent space and in principal components."""
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
    """Whether removing batches has removed cell types."""
    name, limit = "Cell types kept", f"at most {LOST} below that in principal components"
    if "labels" not in told.index:
        return Check(name, "no labels", limit, None)
    row = told.loc["labels"]
    found = f"labels by neighbours {row['latent space']:.3f}, in components {row['principal components']:.3f}"
    good = row["latent space"] >= row["principal components"] - LOST
    why = "Over-corrected? Cell types that are in few batches vanish with these. " if corrected else ""
    return Check(name, found, limit, bool(good), f"{why}More latents, or longer training, may keep them.")


def mixed(told: pd.DataFrame) -> Check:
    """Whether batches still lie apart."""
    name, limit = "Batches mixed", f"at most {APART} of the way from chance to 1"
    if "batch" not in told.index:
        return Check(name, "no batches registered", limit, None)
    row = told.loc["batch"]
    apart = max(0.0, (row["latent space"] - row["chance"]) / max(1 - row["chance"], 1e-12))
    found = f"batches by neighbours {row['latent space']:.3f}, chance {row['chance']:.3f}: {apart:.2f}"
    advice = "Batches may hold different cells; compare within a type before you correct more."
    return Check(name, found, limit, bool(apart <= APART), advice)


def zeros(genes: pd.DataFrame | None, n: int) -> Check:
    """Whether the likelihood expects as many zeros as there are."""
    name, limit = "Zeros of genes", f"off by more than {ZEROS} in at most {MISFIT:.0%} of the genes"
    if genes is None:
        return Check(name, "no likelihood of counts", limit, None)
    seen, expected = genes["zeros_observed"], genes["zeros_expected"]
    by_chance = 3 * np.sqrt(expected * (1 - expected) / n)
    off = float(((seen - expected).abs() > ZEROS + by_chance).mean())
    found = f"{off:.1%} of the genes; {seen.mean():.3f} observed, {expected.mean():.3f} expected"
    return Check(
        name, found, limit, off <= MISFIT, "Try `gene_likelihood='nb'` or `'zinb'`, or train longer."
    )


def variance(genes: pd.DataFrame | None) -> Check:
    """Whether it expects as much variance."""
    name, limit = "Variance of genes", f"within a factor of {FACTOR} on average"
    if genes is None:
        return Check(name, "no likelihood of counts", limit, None)
    ratio = np.log(genes["variance_expected"] / genes["variance_observed"])
    factor, side = float(np.exp(ratio.abs().mean())), "too little" if ratio.mean() < 0 else "too much"
    found = f"a factor of {factor:.2f}, {side} expected"
    return Check(name, found, limit, factor <= FACTOR, "Try `gene_likelihood='nb'`, or more latents.")


def far(groups: pd.DataFrame | None) -> Check:
    """Whether predictions of groups that were not seen under a condition can be relied on."""
    name, limit = "Far transfers", "none"
    if groups is None or groups.empty:
        return Check(name, "every group was seen under every condition", limit, True)
    names = [f"{g} under {c}" for g, c in groups.loc[groups["far"], ["group", "to"]].to_numpy()]
    found = f"{len(names)} of {len(groups)} pairs" + (f": {', '.join(names[:5])}" if names else "")
    return Check(name, found, limit, not names, "Do not rely on what is predicted for these.")


def table(checks: list[Check]) -> pd.DataFrame:
    """All of them."""
    said = {True: "good", False: "look", None: "cannot be told"}
    rows = [
        {"check": c.name, "verdict": said[c.good], "found": c.found, "should be": c.limit} for c in checks
    ]
    return pd.DataFrame(rows).set_index("check")
