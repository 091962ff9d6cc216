# %% [markdown]
# # Groups of donors, from the question to the figure
#
# **What you will have at the end:** the populations that grow or shrink between two conditions, the genes
# that change in them, a map of the donors, and a table and a paragraph for the paper. Beside the tests stand
# the naive ones, which take cells for replicates. About two minutes.
#
# The study is that of Kang et al.: blood of eight people, one half of each sample left alone (`control`) and
# the other half treated with interferon beta for six hours (`stimulated`). Three questions:
#
# 1. Which populations are more or less frequent after treatment?
# 2. Which genes change, and in which cell types more than in others?
# 3. Are the donors alike, or does one of them make the difference?

# %%
from itertools import combinations
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import stats

import scalloy as sa

adata = sa.datasets.kang()
adata.obs["donor"] = adata.obs["batch"]
pd.crosstab(adata.obs["donor"], adata.obs["condition"])

# %% [markdown]
# Every donor is in both conditions, so each can be compared with itself. These rows are the replicates of
# the study; the cells are not. (The cells that ship with the package were drawn in proportion, but at least
# ten of each donor, condition and type. So donors differ a little less in the rarest types than they should.)
#
# ## Which populations grow or shrink
#
# `compare.abundance` counts the cells of each donor in each population. The naive answer is a chi-square test
# of each population's cells against all others, pooled over donors.


# %%
def chi_square(obs, groupby):
    """Return adjusted p-values of each cell type, as if cells were independent."""
    cells = pd.crosstab(obs["cell_type"], obs[groupby])
    pvalues = [stats.chi2_contingency([row, cells.sum() - row]).pvalue for _, row in cells.iterrows()]
    return pd.Series(stats.false_discovery_control(pvalues), index=cells.index)


asked = {"by": "cell_type", "donor_key": "donor"}
shares = sa.compare.abundance(adata, groupby="condition", **asked)
shares["chi-square"] = shares["cell_type"].map(chi_square(adata.obs, "condition"))
shares[["cell_type", "effect", "lower", "upper", "padj", "chi-square", "unchanged", "design"]].round(3)

# %%
sa.pl.abundance(shares)

# %% [markdown]
# **What to look at.** `effect` is the log2 fold of the number of cells, relative to the open circles. These
# move together, so they are taken to stay as they are. The design is `within donors`: differences between
# donors do not count.
#
# The two columns of adjusted p-values disagree in both directions. The chi-square test does not know that
# samples are pairs, so it can miss a change that nearly all donors share. It does not know that donors vary
# either, which is worse, as we shall see now.
#
# ## What must be silent
#
# Take the control cells only, and divide the eight donors into two arbitrary halves. There are 35 ways to do
# so, and nobody did anything to either half. Whatever is claimed here is a difference between people.

# %%
controls = adata[adata.obs["condition"] == "control"].copy()
sc.pp.filter_genes(controls, min_counts=1)
donors = sorted(controls.obs["donor"].unique())
halves = [(donors[0], *others) for others in combinations(donors[1:], 3)]


def in_half(cells, half):
    """Return the half of each cell."""
    return np.where(cells.obs["donor"].isin(half), "one half", "other half")


populations = []
for half in halves:
    controls.obs["half"] = in_half(controls, half)
    found = sa.compare.abundance(controls, groupby="half", **asked)
    of_cells = chi_square(controls.obs, "half")
    populations.append({"donors": (found["padj"] <= 0.1).sum(), "cells": (of_cells <= 0.1).sum()})
populations = pd.DataFrame(populations)
claimed = pd.DataFrame({"claimed": populations.sum(), "halves with a claim": (populations > 0).sum()})
claimed.assign(tested=populations.shape[0] * len(of_cells), halves=len(halves))

# %% [markdown]
# At a false discovery rate of 10 %, about one halving in ten may have a claim. The chi-square test has one
# in nearly all of them.
#
# ## Why shares of all cells mislead
#
# Shares add up to one. To see what this does, the truth must be known: in a simulated study of six healthy
# and six sick donors, `type_4` quadruples, and the other four types stay as they are.

# %%
cohort = sa.datasets.cohort(6, n_cells=300, n_vars=200, folds=[1, 1, 1, 1, 4], changed=20, seed=1)
of_all = sa.compare.abundance(cohort, groupby="group", unchanged=None, **asked)
of_unchanged = sa.compare.abundance(cohort, groupby="group", **asked)
fig, axes = plt.subplots(1, 2, figsize=(11.5, 3.4), layout="constrained")
for ax, found in zip(axes, (of_all, of_unchanged), strict=True):
    sa.pl.abundance(found, ax=ax)
    ax.set_xlim(-2, 3)
    ax.axvline(2, color="0.3", linewidth=0.8, linestyle="--")

# %% [markdown]
# The dashed line is the truth for `type_4`; zero is the truth for all others. On the left, with
# `unchanged=None`, types seem to shrink although nothing happened to them, and the type that grows seems to
# grow less than it did. On the right, with `unchanged="auto"`, the four that move together were found.
#
# No count of cells can tell one type that quadruples from four others that fall to a quarter. The choice is
# an assumption: the plot shows it so that you can doubt it.
#
# ## Changes that no label describes
#
# A population may change within a label. Neighbourhoods, groups of similar cells in a latent space, find
# this. The space should be one in which donors are integrated, so the model gets `batch_key`.

# %%
sa.VAE.setup_anndata(controls, batch_key="donor")
model = sa.VAE(controls)
model.train(enable_progress_bar=False)
controls.obsm["X_vae"] = model.get_latent_representation()
sc.pp.neighbors(controls, use_rep="X_vae")
sc.tl.umap(controls)

# %% [markdown]
# Again the truth is planted, now in real cells. The control cells of each donor are dealt into two tubes at
# random, which do not differ. Then three of four cells are taken out of the second tube, among the monocytes
# on one side of the main axis along which monocytes vary.

# %%
is_monocyte = (controls.obs["cell_type"] == "CD14+ Monocytes").to_numpy()
x = controls.obsm["X_vae"] - controls.obsm["X_vae"][is_monocyte].mean(axis=0)
axis = np.linalg.svd(x[is_monocyte], full_matrices=False)[2][0]
along = x @ axis
side = is_monocyte & (along > np.median(along[is_monocyte]))

rng = np.random.default_rng(0)
controls.obs["tube"] = rng.choice(["first", "second"], controls.n_obs)
at_risk = side & (controls.obs["tube"] == "second").to_numpy()
left = controls[~at_risk | (rng.random(controls.n_obs) < 0.25)].copy()
print(f"{controls.n_obs - left.n_obs} of {is_monocyte.sum()} monocytes were taken away")

# %%
near = {"by": "neighbourhoods", "use_rep": "X_vae", "groupby": "tube", "donor_key": "donor"}
before = sa.compare.abundance(controls, **near)
after = sa.compare.abundance(left, **near)
labels = sa.compare.abundance(left, groupby="tube", **asked).set_index("cell_type")
labels.loc[["CD14+ Monocytes"], ["effect", "lower", "upper", "padj"]].round(3)

# %%
fig, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
sa.pl.neighbourhoods(after, left, groupby="cell_type", ax=axes[0])
sa.pl.neighbourhoods(after, left, basis="X_umap", ax=axes[1])

# %%
inside = pd.Series(side, index=controls.obs_names)


def by_place(found):
    """Return the share of neighbourhoods that change and their median effect, by place of their centres."""
    where = np.where(inside.reindex(found["cell"]), "where cells were taken", "elsewhere")
    places = found.assign(change=found["padj"] <= 0.1).groupby(where)
    return places.agg(number=("change", "size"), change=("change", "mean"), effect=("effect", "median"))


pd.concat({"before": by_place(before), "after": by_place(after)}, axis=1).round(2) + 0.0

# %% [markdown]
# **What to look at.** The label says that there are fewer monocytes, all in all. The neighbourhoods say which
# ones: on the map the blue dots are one side of the monocytes. Before cells were taken away, the same test
# was silent. The true effect inside is -2; neighbourhoods at the border hold cells of both sides.
#
# Neighbourhoods of *stimulated* against *control* cells would nearly all change, because interferon moves
# every cell. That is a change of state and not of numbers, and a warning would say so.
#
# ## Which genes change
#
# `compare.expression` sums the counts of each donor's cells within each type, and compares the sums.

# %%
genes = sa.compare.expression(adata, groupby="condition", **asked)
tested = genes.assign(up=genes["shrunken"] > 0)
tested = tested[tested["padj"] < 0.05].groupby("cell_type")["up"].agg(["sum", "size"])
count = pd.DataFrame({"up": tested["sum"], "down": tested["size"] - tested["sum"]})
count["tested"] = genes.groupby("cell_type").size()
count["donors"] = genes.groupby("cell_type")["donors_a"].first()
count

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
for ax, name in zip(axes, ["CD14+ Monocytes", "B cells"], strict=True):
    sa.pl.volcano(genes, name, ax=ax)

# %% [markdown]
# Do not compare these numbers between types: a type with few cells has few genes that can be tested, and few
# donors with enough cells. Whether types respond differently is a question of its own, [below](#Where-more).
#
# ## The naive answer
#
# The usual test of genes is Wilcoxon's, of cells. Here it is on what must be silent: the monocytes of the 35
# halves, with the same genes in both tests.

# %%
monocytes = controls[controls.obs["cell_type"] == "CD14+ Monocytes"].copy()
logged = sc.pp.normalize_total(monocytes, target_sum=1e4, copy=True)
sc.pp.log1p(logged)
tests = []
for half in halves:
    monocytes.obs["half"] = in_half(monocytes, half)
    found = sa.compare.expression(monocytes, groupby="half", donor_key="donor")
    first = (monocytes.obs["half"] == "one half").to_numpy()
    levels = logged[:, found["gene"]].X.toarray()
    pvalues = stats.mannwhitneyu(levels[first], levels[~first]).pvalue
    of_cells = stats.false_discovery_control(pvalues) < 0.05
    tests.append({"donors": (found["padj"] < 0.05).sum(), "cells": of_cells.sum(), "tested": len(found)})
tests = pd.DataFrame(tests)
tests.describe().loc[["min", "50%", "max"]].astype(int)

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
panels = [
    (axes[0], populations, "chi-square", "populations claimed (of 8)", 0.1),
    (axes[1], tests, "Wilcoxon", "genes claimed in monocytes", 0.05),
]
for ax, table, test, what, level in panels:
    order = np.argsort(-table["cells"].to_numpy(), kind="stable")
    ax.bar(range(len(halves)), table["cells"].iloc[order], color="#c8372d", label=f"cells ({test})")
    ax.plot(range(len(halves)), table["donors"].iloc[order], "o", color="k", markersize=4, label="donors")
    ax.set(xlabel="halves of the donors", ylabel=what, xticks=[], ylim=(-0.03 * table["cells"].max(), None))
    ax.set_title(f"nothing was done to either half (FDR {level:.0%})", fontsize="medium", loc="left")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False)
axes[1].legend(frameon=False)

# %% [markdown]
# ## Fold changes to rank by
#
# The largest fold changes belong to rare genes and are mostly noise. `shrunken` is the fold change that is
# expected given those of all genes. In the simulated study, where 20 genes change twofold and all others do
# not, it can be compared with the truth.

# %%
simulated = sa.compare.expression(cohort, groupby="group", **asked)
true = simulated["gene"].map(cohort.var["log2_fold"])
error = simulated[["log2_fold_change", "shrunken"]].sub(true, axis=0)
pd.DataFrame({"mean error": error.abs().mean(), "largest error": error.abs().max()}).round(2)

# %%
fig, ax = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
truths = [(0, "0.75", "does not change"), (1, "#c8372d", "doubles"), (-1, "#2f6db5", "halves")]
for sign, color, name in truths:
    some = simulated[np.sign(true) == sign]
    ax.scatter(some["log2_fold_change"], some["shrunken"], color=color, s=12, label=name)
ax.axline((0, 0), slope=1, color="0.6", linewidth=0.8, linestyle="--")
ax.set(xlabel="log2 fold change", ylabel="shrunken log2 fold change")
ax.legend(frameon=False, title="truth")
ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# Genes that do not change (grey) are drawn to zero. Of those that do, the clear ones keep most of what they
# have.
#
# ## Where more
#
# Which genes respond in monocytes more than in B cells? Not those that are significant in the one and not in
# the other: a gene may have missed the threshold for lack of cells. The difference of the two changes is
# tested instead.

# %%
two = adata[adata.obs["cell_type"].isin(["B cells", "CD14+ Monocytes"])]
differ = sa.compare.expression(two, groupby="condition", interaction="cell_type", donor_key="donor")
columns = ["level", "against", "gene", "log2_fold_change", "shrunken", "padj"]
differ.loc[differ["log2_fold_change"] > 0, columns].head(8)

# %%
wide = genes.pivot(index="gene", columns="cell_type", values="padj") < 0.05
only = wide.index[wide["CD14+ Monocytes"] & ~wide["B cells"]]
shown = differ.set_index("gene")["padj"].reindex(only) < 0.05
print(f"significant in monocytes and not in B cells: {len(only)}; shown to differ: {shown.sum()} of these")

# %% [markdown]
# ## Which donors are alike
#
# `compare.donors` starts from the donors instead of from the groups. Here a donor has a sample under each
# condition, so samples are compared, within cell types. The space is one from which neither donor nor
# condition was removed.

# %%
logged = sc.pp.normalize_total(adata, target_sum=1e4, copy=True)
sc.pp.log1p(logged)
sc.pp.pca(logged, n_comps=20)
logged.obs["sample"] = logged.obs["donor"].astype(str) + " " + logged.obs["condition"].astype(str)
alike = sa.compare.donors(
    logged,
    "X_pca",
    donor_key="sample",
    by="cell_type",
    covariates=["condition", "donor"],
    at_least=4,
)
sa.pl.donors(alike, "condition")

# %%
alike.explained[["covariate", "df", "r2", "r2_adjusted", "pvalue", "smallest"]].round(3)

# %%
alike.outlying.head(4).round(2)

# %% [markdown]
# **What to look at.** The tree divides the samples by treatment first. `r2` is the share of the squared
# distances that a covariate explains beyond the other. A `zscore` above 3.5 is commonly called an outlier:
# look at its `n_cells` and `population` before you leave a donor out.
#
# ## What three donors can say
#
# With few donors, a p-value by permutation cannot be small, whatever the data. A model can go further,
# because it learns from all genes how much donors vary. Here are the monocytes of fewer donors: pairs, or
# the controls of three against the stimulated cells of three others.

# %%
monocytes = adata[adata.obs["cell_type"] == "CD14+ Monocytes"].copy()


def with_few(cells):
    """Return what the model finds, how much of it all donors confirm, and what permutations find."""
    model = sa.compare.expression(cells, groupby="condition", donor_key="donor")
    found = model["gene"][model["padj"] < 0.05]
    exact = sa.compare.expression(cells, groupby="condition", donor_key="donor", test="permutation")
    return {
        "genes (model)": len(found),
        "of these with 8 pairs": found.isin(confirmed).sum(),
        "genes (permutation)": (exact["padj"] < 0.05).sum(),
        "smallest": exact["smallest"].iloc[0],
        "width of intervals": (model["upper"] - model["lower"]).median().round(2),
        "design": model["design"].iloc[0],
    }


all_donors = genes[(genes["cell_type"] == "CD14+ Monocytes") & (genes["padj"] < 0.05)]
confirmed = set(all_donors["gene"])
is_control = (monocytes.obs["condition"] == "control").to_numpy()
three, others = (monocytes.obs["donor"].isin(some).to_numpy() for some in (donors[1:4], donors[5:8]))
rows = {"3 against 3 others": with_few(monocytes[(three & is_control) | (others & ~is_control)])}
for n in (3, 4, 6, 8):
    rows[f"{n} pairs"] = with_few(monocytes[monocytes.obs["donor"].isin(donors[:n])])
few = pd.DataFrame(rows).T
few

# %% [markdown]
# `smallest` is the smallest p-value that the permutations of so many donors allow. Three against three have
# 20 ways to be labelled, two of which are as extreme as any, which makes 0.1: no gene can be significant,
# even if all of them change. The model finds genes, most of which eight pairs find as well. But you have to
# believe its variances, and three donors cannot test them.
#
# That nothing was found does not mean that nothing is there. Look at the width of the intervals: if a
# change that would matter lies inside, these donors cannot exclude it.
#
# ## What to write in the paper
#
# One table, with effects and intervals, the numbers of donors, and what was taken not to change:

# %%
paper = shares.set_index("cell_type")
interval = [f"{e:+.2f} ({a:+.2f} to {b:+.2f})" for e, a, b in zip(paper.effect, paper.lower, paper.upper)]
best = genes[(genes["padj"] < 0.05) & (genes["mean"] > 100)]
best = best.sort_values("shrunken", key=abs, ascending=False)
pd.DataFrame(
    {
        "log2 fold of cells (95 %)": pd.Series(interval, index=paper.index),
        "padj": paper["padj"].round(3),
        "unchanged": paper["unchanged"],
        "genes up": count["up"],
        "genes down": count["down"],
        "donors": count["donors"],
        "strongest": best.groupby("cell_type")["gene"].agg(lambda names: ", ".join(names[:3])),
    }
)

# %% [markdown]
# Look at `donors` before you name genes: of megakaryocytes, few donors have enough cells, and a gene of red
# blood cells (HBB) may lead the list because it spills from one cell into another.
#
# And one paragraph, whose numbers come from the tables:

# %%
moved = paper[paper["padj"] <= 0.1]
said = [f"{name} (log2 fold {row['effect']:+.2f}, FDR {row['padj']:.2f})" for name, row in moved.iterrows()]
still = [name for name, same in paper["unchanged"].items() if same]
explained = alike.explained.set_index("covariate")["r2"]
most = count.index[(count["up"] + count["down"]).argmax()]
text = (
    f"Cells of {len(donors)} donors were compared between conditions, each donor with itself (scalloy "
    f"{sa.__version__}). Numbers of cells were compared by quasi-likelihood regression with beta-binomial "
    f"variance, relative to the populations that moved together ({', '.join(still)}). At a false discovery "
    f"rate of 10 %, these changed: {', '.join(said) or 'none'}. Counts of genes were summed by donor, "
    "condition and cell type and compared by quasi-likelihood regression with negative binomial variance. "
    f"At a false discovery rate of 5 %, most genes changed in {most} ({count.loc[most, 'up']} up, "
    f"{count.loc[most, 'down']} down, of {count.loc[most, 'tested']} tested). The condition explained "
    f"{explained['condition']:.0%} of the squared distances between samples within cell types, and the donor "
    f"{explained['donor']:.0%}. Donors, not cells, were the replicates in all tests."
)
print(fill(text, 100))

# %% [markdown]
# **What not to believe.** Six hours are too short for T cells to divide. That their number rises relative to
# others says that they survive, or are caught, more often; counts do not tell which. And the eight donors
# are the ones who were asked: what holds for them need not hold for patients of another age or history.
