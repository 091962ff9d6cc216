# %% [markdown]
# # Sparse codes: latents that can be read
#
# **What you will have at the end:** latents that each stand for one program of genes, shown where the
# truth is known, and then a list of programs of real blood cells with the cells that run them. About a
# minute and a half.
#
# A VAE's latents are mixtures of everything, fit for a map and for nothing else. `BetaVSC` has many
# latents of which a cell uses a few; one that is off is exactly zero.
#
# ## Where the truth is known
#
# 3,000 simulated cells, eight programs of genes, each on in a fifth of the cells.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import scalloy as sa

adata = sa.datasets.programs(n_obs=3000, n_programs=8, seed=0)
truth = adata.obsm["programs"]

sparse = sa.BetaVSC(adata)
sparse.train(enable_progress_bar=False)
dense = sa.VAE(adata, n_latent=8)
dense.train(enable_progress_bar=False)


# %%
def correlations(model, ax, title):
    """Absolute correlation of each program with each latent, the best matching ones first."""
    code = model.get_latent_representation()
    r = np.abs(np.corrcoef(truth.T, code.T)[:8, 8:])
    first = list(dict.fromkeys(np.nan_to_num(r).argmax(axis=1)))
    order = first + [j for j in range(r.shape[1]) if j not in first]
    image = ax.imshow(np.nan_to_num(r)[:, order], vmin=0, vmax=1, cmap="viridis", aspect="auto")
    ax.set(xlabel="latent (sorted)", ylabel="true program", title=title)
    return image


fig, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
correlations(dense, axes[0], "VAE, 8 latents")
fig.colorbar(correlations(sparse, axes[1], "BetaVSC, 30 latents"), ax=axes, label="|correlation|")

# %% [markdown]
# **What to look at.** One bright square in each row and column: a latent that is a program. On the left
# each program is smeared over several latents. (The other latents on the right hardly vary, as shown
# below, so what they correlate with has no meaning.) As a number, the correlation of each program with
# the one latent that is matched with it:

# %%
found = {
    name: sa.metrics.matched_correlation(truth, model.get_latent_representation())
    for name, model in {"VAE": dense, "BetaVSC": sparse}.items()
}
pd.DataFrame(
    {name: {"mean": r.mean(), "found (0.8 or more)": (r >= 0.8).mean()} for name, r in found.items()}
).T

# %% [markdown]
# Thirty latents for eight programs: what do the others do? One that is not needed is on at random, about
# as often as the prior says (a tenth of the cells), and does nothing. So look at how much each code
# varies:

# %%
sparse.get_latent_summary()["spread"].sort_values(ascending=False).round(2).head(12).to_frame().T

# %% [markdown]
# ## Real cells
#
# Control cells of Kang et al.; donors are removed.

# %%
cells = sa.datasets.kang()
cells = cells[cells.obs["condition"] == "control"].copy()
sa.BetaVSC.setup_anndata(cells, batch_key="batch")
model = sa.BetaVSC(cells)
model.train(enable_progress_bar=False)
model.annotate()
summary = model.get_latent_summary()
summary.head(8)

# %% [markdown]
# In which types of cells is each of the latents that vary on? A latent that belongs to one type is a
# type's identity; one that is on across types is something that cells *do*.

# %%
on = cells.obsm["betavsc_active"].copy()
on.columns = range(on.shape[1])
used = list(summary.index[summary["spread"] > 0.3])
share = on[used].groupby(cells.obs["cell_type"], observed=True).mean()
fig, ax = plt.subplots(figsize=(9, 3.4), layout="constrained")
image = ax.imshow(share, vmin=0, vmax=1, cmap="magma", aspect="auto")
ax.set_yticks(range(len(share)), share.index)
ax.set_xticks(range(len(used)), used)
ax.set_xlabel("latent")
fig.colorbar(image, label="mean probability of being on")

# %% [markdown]
# Genes along the three latents that are used most: what happens to them as the latent goes from low to
# high.

# %%
fig, axes = plt.subplots(1, 3, figsize=(15, 3.4), layout="constrained")
for latent, ax in zip(used[:3], axes, strict=True):
    sa.pl.traversal(model, int(latent), n_genes=6, ax=ax)

# %% [markdown]
# **What not to believe.** Signs and numbers of latents are arbitrary: which of two latents is up, and
# which is down, is not determined. A program with activities of both signs may be split in two. Train
# with another seed and compare (`sa.metrics.matched_correlation`) before a latent gets a name in a paper.
# And if a map or clusters are all you want, a dense code serves better
# ([figures](../docs/benchmarks.md)).
