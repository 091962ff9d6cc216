# %% [markdown]
# # Larger than memory
#
# **What you will have at the end:** a store on the disk that was written from several files in bounded
# memory, a model that was trained from it as from any AnnData, codes and predictions written piece by
# piece, and the proof that none of it changed a number. About a minute and a half.
#
# The cells are few here, so that the notebook is quick. Nothing in it would be written otherwise for a
# hundred million.

# %%
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc

import scalloy as sa

adata = sa.datasets.kang()
for donor, cells in adata.obs.groupby("batch", observed=True).indices.items():
    adata[cells].write_h5ad(f"{donor}.h5ad")
files = sorted(Path().glob("*.h5ad"))
len(files)

# %% [markdown]
# ## Files to a store
#
# The files are read one after the other, some thousand cells at a time. All cells get a random order over
# all files: donors lie beside each other in files, and a model that saw one after the other would learn
# the last one.

# %%
store = sa.data.write_store(files, "cells.zarr", seed=0)
store

# %%
donors = {"files, one after the other": adata.obs["batch"].astype(str).sort_values()}
donors["store"] = store.obs["batch"].astype(str)
fig, axes = plt.subplots(2, 1, figsize=(8, 2.4), sharex=True, layout="constrained")
for ax, (title, column) in zip(axes, donors.items(), strict=True):
    codes = column.astype("category").cat.codes.to_numpy()
    ax.imshow(codes[None], aspect="auto", cmap="tab10", interpolation="nearest")
    ax.set(title=f"donor of each cell: {title}", yticks=[])

# %% [markdown]
# ## Train as always
#
# `store` is an AnnData whose counts stay where they are. Set-up looks at every count once (they are checked
# as those in memory are); in training a second thread reads ahead.

# %%
sa.CGMDVAE.setup_anndata(store, condition_key="condition", labels_key="cell_type")
model = sa.CGMDVAE(store, seed=0)
model.train(enable_progress_bar=False)
sa.pl.history(model, "elbo")

# %% [markdown]
# ## The numbers are those of cells in memory
#
# The same cells in memory, in the order of the store, asked of the same model:

# %%
in_memory = store.to_memory()
difference = model.get_latent_representation(store) - model.get_latent_representation(in_memory)
float(np.abs(difference).max())

# %% [markdown]
# ## Results that need not fit either
#
# `annotate` puts results into the object, as always. `write_annotations` puts the same into a file, piece by
# piece, and `write_transfer` does so with predicted cells.

# %%
model.write_annotations("annotated.h5ad", store)
annotated = anndata.read_h5ad("annotated.h5ad")
sc.pp.neighbors(annotated, use_rep="X_cgmdvae")
sc.tl.umap(annotated)
sa.pl.latent(annotated, ["cell_type", "condition"])

# %%
controls = store[store.obs["condition"] == "control"]
model.write_transfer("treated.h5ad", controls, "stimulated", route="decoder")
treated = anndata.read_h5ad("treated.h5ad", backed="r")
treated

# %% [markdown]
# **What to know.** Columns of cells are in memory, counts are not: a million cells take some 400 MB in
# training. `route="decoder"` is the quick route; `"auto"` pools each piece of some thousand cells by itself.
# A store that keeps the order of its files (`shuffle=False`) is for cells to predict, not to train on.
