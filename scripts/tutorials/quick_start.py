# %% [markdown]
# # Quick start
#
# **What you will have at the end:** a latent space of 6,000 blood cells with the donors removed, types
# for the cells that had no label, a picture of both, and B cells as they would look had they been
# treated. About a minute and a half on two cores, no GPU, no download.
#
# The cells are PBMC of eight lupus patients, one half of them stimulated with interferon beta (Kang et
# al. 2018). A subset ships with the package: raw counts, as scalloy needs them.

# %%
import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc

import scalloy as sa

adata = sa.datasets.kang()
adata

# %% [markdown]
# ## Say what is where
#
# Suppose that only a tenth of the cells had been labelled. `setup_anndata` names the columns: the donor
# (whose effect is to be removed), the condition (which predictions may change), the labels, and the word
# for "no label".

# %%
known = np.random.default_rng(0).random(adata.n_obs) < 0.1
adata.obs["label"] = np.where(known, adata.obs["cell_type"].astype(str), "Unknown")

sa.CGMDVAE.setup_anndata(
    adata,
    batch_key="batch",
    condition_key="condition",
    labels_key="label",
    unlabeled_category="Unknown",
)

# %% [markdown]
# ## Train
#
# Early stopping, a batch size and a number of epochs that suit the data, and the best weights at the end:
# all of it is the default.

# %%
model = sa.CGMDVAE(adata)
model.train(enable_progress_bar=False)
model.annotate()

# %% [markdown]
# `annotate` wrote into the AnnData, and nothing else of it has changed:

# %%
adata.obs.filter(like="cgmdvae").head()

# %% [markdown]
# ## Look
#
# From here on it is scanpy. The code of each cell is in `.obsm["X_cgmdvae"]`.

# %%
sc.pp.neighbors(adata, use_rep="X_cgmdvae")
sc.tl.umap(adata)
fig, axes = plt.subplots(1, 3, figsize=(16, 4.4), layout="constrained")
sa.pl.latent(adata, ["cgmdvae_label", "condition", "batch"], ax=axes)

# %% [markdown]
# **What to look at.** Types lie apart, while donors and conditions lie on top of each other within each
# type: donors because the model was told to remove them, conditions because the decoder knows them, so
# the code need not. That is what lets us ask below what a cell would look like under the other condition.
#
# **What not to believe.** Distances between islands of a UMAP, their sizes and their shapes say little.
#
# ## How many labels are right?
#
# We know the answer for the nine tenths that we hid.

# %%
hidden = adata.obs[~known]
right = hidden["cgmdvae_label"].astype(str) == hidden["cell_type"].astype(str)
print(f"right: {right.mean():.3f} of {len(hidden):,} cells")
right.groupby(hidden["cell_type"], observed=True).agg(["mean", "size"]).round(3)

# %% [markdown]
# Rare types come off worst, as everywhere: with a tenth of the labels there are about ten megakaryocytes
# to learn from. `cgmdvae_unknown` is high where a cell looks like none of the labelled types.
#
# ## Another condition
#
# Take B cells that were not treated, and ask how they would look had they been. (These were seen under
# both conditions, so it is an easy question; [Predicting a held-out cell type](held_out.ipynb) asks the
# hard one.)

# %%
is_b = adata.obs["cell_type"] == "B cells"
controls = adata[is_b & (adata.obs["condition"] == "control")].copy()
observed = adata[is_b & (adata.obs["condition"] == "stimulated")].copy()
predicted = model.transfer(controls, to="stimulated")
predicted

# %%
sa.pl.joint(controls, observed, predicted)

# %% [markdown]
# Predicted cells (from controls alone) should cover the treated ones, and not the controls.
#
# ## Keep it
#
# The folder has weights as safetensors and the rest as JSON; nothing in it can run.

# %%
model.save("quick_start_model", overwrite=True)
again = sa.load("quick_start_model", adata)
np.abs(again.get_latent_representation() - adata.obsm["X_cgmdvae"]).max()

# %% [markdown]
# **Where to go from here:** [Which model do I need?](../docs/choosing.md), clusters without labels in
# [Clusters](clusters.ipynb), labels between studies in [Labels](label_transfer.ipynb).
