# %% [markdown]
# # Doses, combinations, and drugs that were never tried
#
# **What you will have at the end:** the dose curve of a drug in a cell type that saw only some of its doses;
# pairs of drugs that were never given together, beside the sum of their parts; a drug of which there is
# nothing but a description; and an idea of when to believe which. About two minutes.
#
# A condition is often more than a name. `sa.Conditions` tells a model what conditions are made of: drugs,
# their doses, a time, descriptions. Drugs are simulated here, in the first part on real cells, because only
# then is there a truth for every dose.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scalloy as sa

# %% [markdown]
# ## A drug with a known dose curve, on real cells
#
# Control cells of three types, as they were measured. The drug `X` changes 200 genes: most of a change is
# common to all types, the rest is each type's own. The curve is the same for all genes, `d / (d + 1)`: half
# of the change is there at dose 1. A gene that falls loses some of its counts by chance, and one that rises
# gets more, in proportion to what its cell type has of it. A common factor keeps the totals of cells.

# %%
TYPES = ["CD14+ Monocytes", "CD4 T cells", "FCGR3A+ Monocytes"]
DOSES = [0.1, 0.3, 1.0, 3.0, 10.0]
rng = np.random.default_rng(0)

kang = sa.datasets.kang()
cells = kang[(kang.obs["condition"] == "control") & kang.obs["cell_type"].isin(TYPES)].copy()
cells = cells[:, np.asarray(cells.X.mean(axis=0)).ravel() > 0.05].copy()
cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
cell_type = cells.obs["cell_type"].to_numpy()

full = np.zeros((len(TYPES), cells.n_vars))  # log fold changes at a dose without end
hit = rng.permutation(cells.n_vars)[:200]
full[:, hit] = rng.normal(0, 1.0, 200) + rng.normal(0, 0.4, (len(TYPES), 200))
full = pd.DataFrame(full, index=TYPES, columns=cells.var_names)


share = pd.DataFrame(cells.X.toarray(), columns=cells.var_names).groupby(cell_type).sum()
share = share.div(share.sum(axis=1), axis=0)  # of each gene in the counts of a type


def true_change(group, dose):
    """Return the log fold change of each gene in a cell type at a dose."""
    change = full.loc[group] * dose / (dose + 1)
    return change - np.log(share.loc[group] @ np.exp(change))


def treated(counts, group, dose):
    """Return the counts of cells of one type as if they had got a dose."""
    fold = np.exp(true_change(group, dose).to_numpy())
    kept = rng.binomial(counts.astype(int), np.minimum(fold, 1))
    more = share.loc[group].to_numpy() * np.maximum(fold - 1, 0)
    return kept + rng.poisson(counts.sum(axis=1, keepdims=True) * more)


# %% [markdown]
# Two types get every dose. The third, FCGR3A+ monocytes, lacks the middle dose and the largest one.

# %%
given, counts = np.zeros(cells.n_obs), cells.X.toarray()
for group in TYPES:
    rows = np.flatnonzero(cell_type == group)
    doses = [0.0, *(d for d in DOSES if group != TYPES[2] or d not in (1.0, 10.0))]
    given[rows] = rng.permutation(np.resize(doses, len(rows)))
    for dose in doses[1:]:
        at = (cell_type == group) & (given == dose)
        counts[at] = treated(counts[at], group, dose)
cells.X = sp.csr_matrix(counts, dtype=np.float32)
cells.obs["drug"] = np.where(given > 0, "X", "control")
cells.obs["dose"] = given
pd.crosstab(cells.obs["cell_type"], cells.obs["dose"])

# %% [markdown]
# ## Tell the model, train, and ask

# %%
told = sa.Conditions("drug", control="control", dose="dose")
sa.CGMDVAE.setup_anndata(cells, conditions=told, labels_key="cell_type")
model = sa.CGMDVAE(cells)
model.train(enable_progress_bar=False)
model.conditions

# %% [markdown]
# `transfer(to=...)` takes any dose: here, for the third type, two that only the others have seen, one that
# no cell has seen, and one beyond all of them. For the last there is a warning.

# %%
controls = cells[(cells.obs["cell_type"] == TYPES[2]) & (cells.obs["drug"] == "control")].copy()
expressed = cells.var_names[np.asarray(controls.X.mean(axis=0)).ravel() > 0.2]


def skill(change, truth):
    """Return 1 for a change without error, and 0 for one that is no better than no change."""
    return 1 - np.square(change - truth).sum() / np.square(truth).sum()


rows = {}
for dose in [1.0, 2.0, 10.0, 30.0]:
    predicted = model.transfer(controls, to={"X": dose})
    fold = predicted.uns["transfer"]["fold_change"].loc[expressed].iloc[:, 0]
    change = np.log(fold.clip(lower=0.01))  # a gene may be gone
    rows[f"dose {dose:g}"] = {
        "skill": round(skill(change, true_change(TYPES[2], dose)[expressed]), 2),
        "expected skill": round(predicted.obs["transfer_skill"].iloc[0], 2),
        "beyond what was seen": predicted.obs["transfer_far"].iloc[0],
    }
pd.DataFrame(rows).T

# %% [markdown]
# **Dose curves.** `dose_response` predicts a curve for each gene and type, with intervals of 90 %. Here are
# the four genes that change most in the third type. Dashed lines are the truth.

# %%
strongest = full.loc[TYPES[2], expressed].abs().nlargest(4).index.tolist()
curves = model.dose_response("X", doses=[0, 0.05, *DOSES, 30], genes=strongest)
axes = sa.pl.dose_response(curves, strongest)
fine = np.r_[0, np.geomspace(0.05, 30, 60)]
for i, group in enumerate(TYPES):
    truth = pd.DataFrame({dose: true_change(group, dose) for dose in fine})
    for ax, gene in zip(axes, strongest, strict=True):
        ax.plot(fine, truth.loc[gene], color=f"C{i}", linestyle="--", linewidth=1)

# %%
every = model.dose_response("X", doses=[*DOSES, 30], genes=expressed)
true = pd.concat({(g, d): true_change(g, d) for g in TYPES for d in (*DOSES, 30)})
true = true[pd.MultiIndex.from_frame(every[["group", "dose", "gene"]])].to_numpy()
within = (every["low"] <= true) & (true <= every["high"])
within.groupby([every["group"], every["dose"]]).mean().unstack().round(2)

# %% [markdown]
# **What to look at.** The curve of the third type follows from its own doses and from what the other two
# types have shown at the doses that it lacks. Beyond dose 10 (dotted) no type has shown anything: curves go
# on as curves do that still rise at the largest dose, and these overshoot, because this drug is about to
# saturate. No data up to dose 10 say so. Intervals widen, and `transfer_far` says not to rely on it.
#
# The table has the share of genes whose true change lies within the interval of 90 %. It should be 0.9. In
# the type that lacks doses it is; in the other two, intervals are somewhat too narrow here.
#
# ## Pairs of drugs that were never given together
#
# A simulated screen: 16 drugs at one dose, 12 pairs of them, two cell types. Three pairs are held out. The
# bar is the **additive null**, the sum of what the two drugs did alone. It needs no model.

# %%
screen = sa.datasets.screen(
    6000, 150, n_types=2, n_drugs=16, n_pairs=12, n_descriptors=2, doses=(10.0,), seed=3
)
screen.obs["drug"] = screen.obs["drug"].astype(str)
pairs = sorted(name for name in set(screen.obs["drug"]) if "+" in name)
held_out = pairs[::4]
seen = screen[~screen.obs["drug"].isin(held_out)].copy()
told = sa.Conditions("drug", control="control", descriptors="descriptors")
sa.CGMDVAE.setup_anndata(seen, conditions=told, labels_key="cell_type")
model = sa.CGMDVAE(seen)
model.train(enable_progress_bar=False)
controls = seen[seen.obs["drug"] == "control"].copy()
expressed = seen.var_names[np.asarray(controls.X.mean(axis=0)).ravel() > 0.5]
print(f"{len(pairs) - len(held_out)} pairs to learn from; never seen: {', '.join(held_out)}")


# %%
def truth_of(drugs):
    """Return the true log fold changes, genes x types."""
    return sa.datasets.true_changes(screen, dict.fromkeys(drugs.split("+"), 10.0)).T.loc[expressed]


def measured(drug, group):
    """Return the log fold changes of a drug in a cell type as they were measured."""
    of = seen[seen.obs["cell_type"] == group]
    after, before = (np.asarray(of[of.obs["drug"] == d].X.sum(axis=0)).ravel() for d in (drug, "control"))
    change = np.log((after + 0.5) / after.sum()) - np.log((before + 0.5) / before.sum())
    return pd.Series(change, index=seen.var_names)[expressed]


def predicted_change(to):
    """Return the predicted log fold changes, genes x types, and the skill to expect in each type."""
    made = model.transfer(controls, to=to)
    change = np.log(made.uns["transfer"]["fold_change"].loc[expressed])
    change = change.rename(columns=lambda name: name.split(" from ")[0]).sort_index(axis=1)
    return change, made.obs.groupby("transfer_group", observed=True)["transfer_skill"].first()


rows = {}
for pair in held_out:
    change, expected = predicted_change(pair)
    truth = truth_of(pair)
    for group in change:
        rows[pair, group] = {
            "interact": bool(screen.uns["interactions"].loc[pair].any()),
            "no change": 0.0,
            "additive null": skill(sum(measured(drug, group) for drug in pair.split("+")), truth[group]),
            "CGMDVAE": skill(change[group], truth[group]),
            "expected": expected[group],
        }
pd.DataFrame.from_dict(rows, orient="index").round(2)

# %% [markdown]
# `to="A+B"` is enough, in any order. The model is a sum of parts as well, so it cannot know whether *these*
# two drugs interact. What it gains over the null is less noise: effects are drawn to what the other type and
# other drugs have shown, and a sum is shrunk as far as the pairs that were seen call for it.
#
# One of the three pairs interacts strongly, and there a sum is worth next to nothing, whoever adds it up.
# `expected` is what pairs that were left out were worth *on average*: it cannot tell this pair from others.
#
# ## Which pairs do more, or less, than their parts?
#
# Only pairs that were measured can tell. `interactions` compares each with the sum of its parts, gene by
# gene. In this simulation a third of the pairs interact, each on a tenth of the genes.

# %%
found = model.interactions(genes=expressed)
planted = screen.uns["interactions"].T
planted.columns = ["+".join(sorted(name.split("+"))) for name in planted]  # as the model names them
planted = planted.stack()
found["planted"] = planted[pd.MultiIndex.from_frame(found[["gene", "combination"]])].to_numpy()
found["called"] = found["q_value"] < 0.05
true = found["planted"] != 0
summary = pd.DataFrame({"interacting": true, "called": found["called"], "both": true & found["called"]})
summary = summary.groupby(found["combination"]).sum()
summary

# %%
most = summary["called"].idxmax()
fig, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
sa.pl.interactions(found, most, n_named=5, ax=axes[0])
here = found[found["combination"] == most]
axes[1].axline((0, 0), slope=1, color="0.6", linewidth=0.8)
axes[1].errorbar(here["planted"], here["interaction"], yerr=here["se"], fmt="o", ms=3, lw=0.6, color="0.4")
axes[1].set(xlabel="true interaction", ylabel="found, with its standard error", title=f"{most}, both types")

# %% [markdown]
# **What to look at.** Left: genes on the line do what the two drugs do alone, added up; red ones do not.
# Right: what was found against what was planted. Weak interactions are within the noise of these cells, and
# stay uncalled.
#
# ## A drug that was never tried
#
# Two drugs have descriptors (numbers such as a fingerprint of the molecule) and no cells. The model predicts
# them from drugs with similar descriptors, and warns. `get_nearest_conditions` says which it takes for alike;
# here the true correlation of their effects is known.

# %%
new = [drug for drug in screen.uns["descriptors"].index if drug not in set(seen.obs["drug"])]
fig, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharex=True, sharey=True)
rows, nearest = {}, {}
for drug, ax in zip(new, axes, strict=True):
    change, expected = predicted_change(drug)
    truth = truth_of(drug)
    for i, group in enumerate(change):
        rows[drug, group] = {
            "skill": skill(change[group], truth[group]),
            "expected skill": expected[group],
        }
        ax.scatter(truth[group], change[group], s=10, color=f"C{i}", linewidths=0, label=group)
    ax.axline((0, 0), slope=1, color="0.6", linewidth=0.8)
    ax.set(xlabel="true change", title=drug)
    alike = model.get_nearest_conditions(drug, n=3)
    alike["true correlation"] = [truth.mean(axis=1).corr(truth_of(o).mean(axis=1)) for o in alike.index]
    nearest[drug] = alike
axes[0].set_ylabel("predicted change")
axes[0].legend(frameon=False)
pd.DataFrame(rows).T.round(2) + 0.0

# %%
pd.concat(nearest).round(2) + 0.0

# %% [markdown]
# **How to read it.** Points flatter than the line are predictions that are drawn to no change, which is
# right where little is known. Descriptors tell as much as they do: here, 70 % of what differs between drugs
# follows from them, more than real fingerprints have been shown to. Where `expected skill` is near zero, the
# honest answer is that the drug must be tried.
#
# ## And on real data?
#
# Simulated screens have clear effects. In the double perturbations of Norman et al. (2019), of which a part
# with about 100 cells for each perturbation is used here, the noise is twice as large as the effects:
#
# ```
# scalloy benchmark conditions norman_dev --seeds 1
# ```
#
# holds out pairs of which both parts were seen, and compares all methods. There every simple method, the
# additive null included, is worse than to predict no change, by far, and the model is hardly better than
# that. An effect that cannot be seen in the parts cannot be added up. Before you believe a prediction of your
# own screen, run this command on it, and look at `transfer_skill`.
#
# More in [Doses, times, combinations](../docs/conditions.md).
