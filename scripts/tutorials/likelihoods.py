# %% [markdown]
# # Likelihoods: which one explains my counts?
#
# **What you will have at the end:** the evidence of a Poisson, a negative binomial and a zero-inflated
# one for the same cells, with its uncertainty, and a picture that shows *why* one of them is wrong. It is
# scVAE's question (Groenbech et al. 2020). About a minute and a half.
#
# A likelihood says how counts scatter around what the code of a cell tells. If it is wrong, the code must
# explain noise.
#
# ## Where the truth is known
#
# First a check that the ruler is straight: simulated counts, which are negative binomial with inverse
# dispersion 4, and counts that are Poisson. Evidence is the marginal log-likelihood of cells that
# training left out, in nats per cell; differences of a nat or two are small, those of tens are large.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import scalloy as sa


def evidence(adata, names=("poisson", "nb", "zinb"), **settings):
    """Models by the name of their likelihood, and log-likelihoods of the same left-out cells."""
    models, nats = {}, {}
    for name in names:
        sa.VAE.setup_anndata(adata)
        models[name] = sa.VAE(adata, gene_likelihood=name, **settings)
        models[name].train(train_size=0.8, validation_size=0.1, enable_progress_bar=False)
        nats[name] = models[name].get_marginal_ll(n_mc_samples=50, return_mean=False)
    return models, pd.DataFrame(nats)


def gain(nats, over="nb"):
    """Mean difference to `over`, and its standard error: paired, since cells differ far more than models."""
    less = nats.sub(nats[over], axis=0)
    return pd.DataFrame({"gain": less.mean(), "se": less.sem()}).round(2) + 0.0


simulated, poisson = sa.datasets.simulate(1500, 200, theta=4.0), sa.datasets.poisson_genes(1500)
of_nb, nats_nb = evidence(simulated, n_latent=5)
of_poisson, nats_poisson = evidence(poisson, n_latent=2)
pd.concat({"NB counts": gain(nats_nb), "Poisson counts": gain(nats_poisson)}, axis=1)

# %% [markdown]
# On negative binomial counts the Poisson is far behind, and extra zeros add nothing. On Poisson counts
# all three agree, since NB and ZINB contain the Poisson. And the dispersion is found: the median over
# genes should be near 4.

# %%
theta = of_nb["nb"].module.likelihood.log_theta.exp().detach().numpy().ravel()
often = np.asarray(simulated.X.mean(axis=0)).ravel() > 1
print(f"median inverse dispersion of genes with a mean count above 1: {np.median(theta[often]):.2f}, truth 4")

# %% [markdown]
# ## Real cells
#
# Control cells of Kang et al., droplets with unique molecular identifiers.

# %%
cells = sa.datasets.kang()
cells = cells[cells.obs["condition"] == "control"].copy()
models, nats = evidence(cells)
gain(nats)

# %%
fig, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
for column, model in zip(axes.T, models.values(), strict=True):
    sa.pl.counts(model, "zeros", ax=column[0])
    sa.pl.counts(model, "variance", ax=column[1])

# %% [markdown]
# **What the numbers say.** The Poisson is far behind. NB and ZINB cannot be told apart: the difference is
# a tenth of its standard error. (That error is large: single cells differ by tens of nats, in either
# direction.)
#
# **What to look at.** Each point is a gene. Above: the share of cells without a count, observed along x,
# expected by the model along y. Below: the variance of its counts. A likelihood that fits has its genes
# on the diagonal. The Poisson expects too few zeros of genes with many counts (upper left panel), and too
# little variance of genes with few (lower left): what is left of their variation once the code is known
# is more than counting noise. NB and ZINB mend both; with 2,900 cells they expect too much variance of
# some genes, whose dispersion so few cells do not tell.
#
# *Many zeros are no argument for zero inflation*: a negative binomial with a small mean has many.
#
# **What not to believe.** That the likelihood with the most evidence has the best clusters: these are two
# questions ([figures](../docs/likelihoods.md)). And evidence of counts does not compare with that of
# log-normalised values (`"gaussian"`), whose density is on another scale.
#
# ## The same in one line
#
# `sa.search` trains all combinations and judges them by cells that none has seen:
#
# ```
# found = sa.search(cells, "VAE", {"gene_likelihood": ["poisson", "nb", "zinb"]}, seeds=(0, 1, 2))
# sa.pl.likelihoods(found.table, by=["gene_likelihood"], value="marginal_ll")
# ```
