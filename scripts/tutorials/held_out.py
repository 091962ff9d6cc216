# %% [markdown]
# # Predicting a cell type that was never treated
#
# **What you will have at the end:** stimulated B cells predicted by a model that never saw one, beside
# those that were measured, in a picture and in a table with the simple baselines. About two minutes and a
# half.
#
# It is the question with the most hope and the most self-deception in it: does a model know more than
# that *all cells respond alike*? So baselines are in every table here, and the measure is the **change**,
# since the mean expression of treated cells looks much like that of controls and correlates at 0.9 with
# anything.

# %%
import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc

import scalloy as sa

adata = sa.datasets.kang()
held_out = (adata.obs["cell_type"] == "B cells") & (adata.obs["condition"] == "stimulated")
seen = adata[~held_out].copy()
observed = adata[held_out].copy()
controls = seen[seen.obs["cell_type"] == "B cells"].copy()
print(f"{seen.n_obs:,} cells to train on, {controls.n_obs} control B cells, {observed.n_obs} to be predicted")

# %% [markdown]
# ## Train on the rest, and ask

# %%
sa.CGMDVAE.setup_anndata(seen, condition_key="condition", labels_key="cell_type")
model = sa.CGMDVAE(seen)
model.train(enable_progress_bar=False)
predicted = model.transfer(controls, to="stimulated")


# %%
def mean_expression(cells):
    cells = cells.copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    return np.asarray(cells.X.mean(axis=0)).ravel()


control, truth = mean_expression(controls), mean_expression(observed)
expected = np.asarray(predicted.X.mean(axis=0)).ravel()

fig, axes = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
sa.pl.transfer(expected, truth, control, genes=list(adata.var_names), ax=axes[0])
sa.pl.joint(controls, observed, predicted, ax=axes[1])

# %% [markdown]
# **What to look at.** Left: each point is a gene, its true change along x, its predicted change along y.
# On the line is right; a flat cloud would be "nothing changes". Right: predicted cells should lie with
# the treated ones and be as spread out as they are, not a dot in their middle.
#
# **Skill** is 1 - (squared error / squared error of predicting no change): 1 is perfect, 0 is worthless,
# below 0 is worse than doing nothing.
#
# ## Beside the simple baselines
#
# `sa.benchmark.transfer` holds out each type in turn and asks all methods the same question; here B
# cells, which are an easy case, and NK cells, which are a hard one. The ceiling is what a prediction
# without error would reach given the noise of these cells.

# %%
methods = [
    "no change",
    "mean shift",
    "partial least squares",
    "partial pooling",
    "learned pooling",
    "CGMDVAE",
]
table = sa.benchmark.transfer("kang_subset", methods, hold_out=["B cells", "NK cells"], seeds=[0])
columns = ["skill", "pearson_delta", "r2_mean", "r2_variance", "energy_distance", "de_overlap"]
table.set_index(["type", "method"])[columns].round(3) + 0.0

# %%
sa.pl.held_out(table, "skill")

# %% [markdown]
# **How to read it.**
#
# - `r2_mean` is what papers like to show. *No change* already has a good part of it: do not be impressed.
# - *Mean shift* (all types change alike) is the bar that a model must clear. *Partial least squares* and
#   *partial pooling* (types with similar controls change alike) and *learned pooling* (corrected by what
#   that missed of types that were left out) are a higher one, cost nothing, and come close to the model,
#   which has the last inside.
# - A shift of means moves every cell by the same amount, so its cells have the variances of controls
#   (`r2_variance`) and hardly any of the changed genes (`de_overlap`). That is where a model of counts is
#   ahead.
# - A decoder alone (last row) is below the simple baselines in the means, on NK cells far below.
#
# ## How sure is it?
#
# Each prediction carries a standard deviation by gene: what the changes of other types leave open, and
# the noise of a mean over so many cells. Do nine tenths of the genes lie within their interval of 90 %?

# %%
name = next(iter(predicted.uns["transfer"]["sd"]))
sd = predicted.uns["transfer"]["sd"][name].to_numpy()
print(f"{sa.metrics.coverage(expected, truth, sd, 0.9):.3f} of the genes lie within")
print("learned from:", ", ".join(predicted.uns["transfer"]["learned_from"][name]))
print("far from anything that was seen:", bool(predicted.obs["transfer_far"].any()))

# %% [markdown]
# `transfer_far` marks cells whose controls are unlike those of all types that were seen treated. Nothing
# learned from others applies there: do not rely on such a prediction.
#
# **What not to believe.** Interferon acts on most immune cells in a similar way, so even the mean shift
# is good here; a drug that hits one cell type only cannot be predicted in that type from the others by
# any method. More in [Transfer, done honestly](../docs/transfer.md).
