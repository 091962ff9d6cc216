# %% [markdown]
# # RNA and protein of the same cells
#
# **What you will have at the end:** surface proteins predicted from RNA alone for cells of which they
# were never shown, beside nearest neighbours and ridge regression, with intervals; a code for each
# modality; and the matrix that says how the two go together. About two minutes.
#
# 2,500 PBMC of a CITE-seq experiment (10x Genomics) with 1,000 genes and 14 proteins ship with the
# package.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc

import scalloy as sa

adata = sa.datasets.citeseq()
rng = np.random.default_rng(0)
is_test = rng.permutation(adata.n_obs) < adata.n_obs // 5
train, test = adata[~is_test].copy(), adata[is_test].copy()
adata.obsm["protein_counts"].describe().loc[["mean", "50%", "max"]].round(1)

# %% [markdown]
# ## Two models
#
# `joint="poise"` gives each modality a code of its own and couples the two; `joint="product"` has one
# code for both, the usual multimodal VAE. Neither sees a protein of the test cells.

# %%
models = {}
for joint in ("poise", "product"):
    sa.POISEVAE.setup_anndata(train, protein_obsm_key="protein_counts")
    models[joint] = sa.POISEVAE(train, joint=joint)
    models[joint].train(enable_progress_bar=False)

rna_only = test.copy()
del rna_only.obsm["protein_counts"]  # to be sure
truth = np.log1p(test.obsm["protein_counts"])
predicted = {
    f"POISEVAE, {joint}": model.predict("prot", from_="rna", adata=rna_only, scale="log1p")
    for joint, model in models.items()
}
for method in ("ridge", "knn"):
    predicted[method] = sa.baselines.CrossModal(train, method).predict("prot", from_="rna", adata=rna_only)

# %%
fig, axes = plt.subplots(1, 4, figsize=(15, 3.8), layout="constrained")
for name, ax in zip(["CD3", "CD4", "CD14", "CD19"], axes, strict=True):
    ax.scatter(truth[name], predicted["POISEVAE, product"][name], s=6, linewidths=0, alpha=0.6)
    ax.axline((0, 0), slope=1, color="0.6", linewidth=0.8)
    ax.set(title=name, xlabel="log1p of measured counts", ylabel="predicted from RNA")

# %% [markdown]
# **What to look at.** Cells should lie along the line. CD3, CD14 and CD19 tell types apart, and RNA knows
# types. Within a type the cloud is round: there RNA says little of the protein.
#
# ## Beside the simple means

# %%
rows = {
    name: {
        "correlation, mean over proteins": np.nanmean(
            sa.metrics.variable_correlation(p.to_numpy(), truth.to_numpy())
        ),
        "error (standard deviations)": sa.metrics.rmse_z(
            p.to_numpy(), truth.to_numpy(), np.log1p(train.obsm["protein_counts"]).std().to_numpy()
        ),
    }
    for name, p in predicted.items()
}
pd.DataFrame(rows).T.round(3)

# %%
each = pd.DataFrame(
    {name: sa.metrics.variable_correlation(p.to_numpy(), truth.to_numpy()) for name, p in predicted.items()},
    index=truth.columns,
)
each.sort_values("POISEVAE, product", ascending=False).plot.bar(
    figsize=(11, 3.2), ylabel="correlation over cells"
)

# %% [markdown]
# One code for both predicts proteins a little better than two coupled ones; the coupled prior gives the
# higher likelihood of both modalities and keeps apart what only one of them shows. Genes from proteins is
# the harder way round, and there nearest neighbours are better than either
# ([figures](../docs/benchmarks.md)).
#
# ## How sure?
#
# `interval=0.9` gives bounds between which nine tenths of the counts should lie. Of how many do they?

# %%
mean, low, high = models["product"].predict("prot", from_="rna", adata=rna_only, interval=0.9, n_samples=200)
counts = test.obsm["protein_counts"]
within = ((counts >= low) & (counts <= high)).mean()
print(
    f"{within.mean():.3f} of the counts lie within; the worst protein: {within.idxmin()}, {within.min():.3f}"
)

# %% [markdown]
# ## Codes, and how they go together

# %%
model = models["poise"]
model.annotate()
sc.pp.neighbors(train, use_rep="X_poisevae")
sc.tl.umap(train)
fig, axes = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
sa.pl.latent(train, "cell_type", ax=axes[0])
sa.pl.coupling(model, ax=axes[1])

# %% [markdown]
# The right panel is the prior's coupling: each entry says that a power of a latent of RNA goes with one
# of protein. An empty matrix would mean that nothing can be predicted. It says which go together, not
# that one causes the other.
#
# **What not to believe.** A predicted protein is what RNA says of it. If the protein tells something of
# its own (a state that RNA does not show), no model can know: look at the interval, not at the mean
# alone. Cells that lack a modality, batches that lack single proteins and MuData are shown in the
# [guide](../docs/models/poisevae.md).
