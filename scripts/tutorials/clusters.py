# %% [markdown]
# # Clusters without labels
#
# **What you will have at the end:** clusters that a model found while it was trained, their number either
# given or found, a table that says honestly how they compare with k-means and Leiden on principal
# components, and the genes that tell one cluster from the others. About a minute.
#
# We take the control cells of Kang et al. and hide their types. They are only used to see how well we
# did.

# %%
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, f1_score

import scalloy as sa

cells = sa.datasets.kang()
cells = cells[cells.obs["condition"] == "control"].copy()
cells.obs["cell_type"].value_counts()

# %% [markdown]
# ## The number of clusters given
#
# `n_clusters=8`. The prior of the code is a mixture of Gaussians, so clusters are a part of the model and
# not found on top of it. Donors are removed.

# %%
sa.CGMDVAE.setup_anndata(cells, batch_key="batch")
given = sa.CGMDVAE(cells, n_clusters=8)
given.train(enable_progress_bar=False)
given.annotate(key_added="given")

sc.pp.neighbors(cells, use_rep="X_given")
sc.tl.umap(cells)
sa.pl.latent(cells, ["given_cluster", "cell_type", "batch"])

# %% [markdown]
# **What to look at.** Does each island have one colour in the left panel, and are donors mixed in the
# right one? The middle panel is what people called these cells.
#
# Which cluster is which type, as numbers:

# %%
sa.pl.clusters(cells, "given_cluster", "cell_type")

# %% [markdown]
# Each row is a cluster. Large types may be cut in two, and small ones (megakaryocytes, dendritic cells)
# may share a cluster with a neighbour: eight clusters need not be these eight types.
#
# ## The number found
#
# With `n_clusters=None` 25 components are merged for as long as two of them share cells.

# %%
found = sa.CGMDVAE(cells, n_clusters=None)
found.train(enable_progress_bar=False)
found.annotate(key_added="found")
found.get_usage()

# %% [markdown]
# ## Beside the usual way
#
# k-means and Leiden on 30 principal components of log-normalised expression, at the same number of
# clusters and with Leiden's default. ARI compares with all types at once, and is ruled by the large ones;
# macro-F1 (clusters matched one to one with types) weighs all types alike.

# %%
plain = cells.copy()
sc.pp.normalize_total(plain, target_sum=1e4)
sc.pp.log1p(plain)
sc.pp.pca(plain, n_comps=30)
sc.pp.neighbors(plain)
sc.tl.leiden(plain, flavor="igraph", n_iterations=2, random_state=0)
clusterings = {
    "k-means on PCs, 8": KMeans(8, n_init=10, random_state=0).fit_predict(plain.obsm["X_pca"]),
    "Leiden on PCs, default": plain.obs["leiden"],
    "CGMDVAE, 8": cells.obs["given_cluster"],
    "CGMDVAE, number found": cells.obs["found_cluster"],
}
truth = cells.obs["cell_type"].astype(str).to_numpy()
rows = {}
for name, clusters in clusterings.items():
    clusters = np.asarray(clusters).astype(str)
    named = sa.metrics.matched(truth, clusters).astype(str)
    rows[name] = {
        "clusters": len(set(clusters)),
        "ARI": adjusted_rand_score(truth, clusters),
        "macro-F1": f1_score(truth, named, labels=sorted(set(truth)), average="macro", zero_division=0),
    }
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# **What not to believe.** One data set and one seed. Over five data sets and five seeds nobody wins this
# table everywhere ([Benchmarks](../docs/benchmarks.md)): labels of such sets are mostly clusters of principal
# components themselves, and types are not Gaussian. If clusters are all that you need, Leiden on
# principal components is quick and good. Take the mixture if you also want probabilities, donors or
# conditions removed, labels, or predictions.
#
# ## How sure is it, and which genes?
#
# Each cell has a probability for each cluster; low ones lie between islands.

# %%
sa.pl.latent(cells, "given_cluster_probability")

# %%
sizes = cells.obs["given_cluster"].value_counts()
large = list(sizes.index[sizes >= 20])  # of fewer cells nothing can be said
changed = given.differential_expression(groupby="given_cluster", group1=large, mode="change")
top = changed[changed["lfc_mean"] > 0].groupby("group1", sort=False).head(4)
top = top.assign(cluster=top["group1"].astype(str))
top.groupby("cluster").apply(lambda g: ", ".join(g.index), include_groups=False).to_frame("genes that are up")

# %% [markdown]
# Do the genes fit the types? MS4A1 and BANK1 are B cells', KLRD1 and NKG7 those of NK cells, S100A8
# and S100A12 CD14+ monocytes', MS4A7 FCGR3A+ monocytes', CD207 dendritic cells', LEF1 and SELL those of
# naive T cells. A cluster with a heat shock gene (HSPH1) is a state of T cells and no type: the
# model finds what varies, and names are up to you. Probabilities of differential expression are about
# cells, not donors: for a claim about donors see [Comparing groups](comparing.ipynb).
