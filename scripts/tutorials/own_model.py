# %% [markdown]
# # Your own model
#
# **What you will have at the end:** a model that does not exist in the package, a *topic model* of
# counts, in some forty lines; trained on raw counts with everything that the package's models have (early
# stopping, evidence, saving); and a picture of the topics of each cell type. About a minute.
#
# In a topic model a cell is a mixture of a few topics, with shares that add up to one, and a topic is a
# distribution over genes. As equations:
#
# $$z_n \sim \mathcal N(0, I), \qquad t_n = \mathrm{softmax}(z_n), \qquad
# x_{ng} \sim \mathrm{NB}\big(\ell_n\,\mathrm{softmax}_g(W t_n + a)_g,\ \theta_g\big)$$
#
# ## The mathematics
#
# A module has three methods, in the order in which a cell goes through them: `encode` gives the posterior
# of each latent, `decode` the prior and the distribution of the counts, `terms` what the objective is
# made of. Weighting, warm-up, summing and scvi-tools' interface are written once, for all models.

# %%
import numpy as np
import pandas as pd
import torch
from torch.distributions import kl_divergence

import scalloy as sa
from scalloy.blocks.distributions import standard_normal
from scalloy.blocks.networks import Encoder, GaussianHead
from scalloy.models import ScalloyModel, repeatable
from scalloy.vae.base import Terms, VAEModule


class TopicModule(VAEModule):
    """x | z ~ likelihood(W softmax(z)), q(z | x) = N."""

    def __init__(self, sizes, likelihood, n_topics):
        super().__init__()
        self.likelihood = likelihood  # its head is the linear map W t + a
        self.enc_z = Encoder(sizes.n_vars, GaussianHead(128, n_topics), n_hidden=128, n_layers=1)

    def encode(self, batch):
        return {"z": self.enc_z(self.likelihood.features(batch.x))}

    def decode(self, batch, latents):
        z = latents["z"]
        return {"z": standard_normal(z), "x": self.likelihood(z.softmax(-1), batch.log_ell, batch.b)}

    def terms(self, batch, q, latents, p):
        recon = -self.likelihood.log_prob(p["x"], batch.x)
        return Terms(recon, kl={"z": kl_divergence(q["z"], p["z"])})


# %% [markdown]
# ## The door for the user
#
# A class that takes an AnnData, makes the module, and adds what only this model can tell. `repeatable`
# makes the seed decide everything that is drawn.


# %%
class TopicVAE(ScalloyModel):
    """A topic model of counts."""

    @repeatable
    def __init__(self, adata=None, registry=None, n_topics=10, gene_likelihood="nb", *, seed=None):
        super().__init__(adata, registry)
        likelihood = self.make_likelihood(gene_likelihood, n_topics)
        self.module = TopicModule(self.sizes, likelihood, n_topics)
        self.init_params_ = self._get_init_params(locals())

    @torch.inference_mode()
    def get_topics(self, adata=None, indices=None, batch_size=None):
        """Share of each topic in each cell."""
        shares = self.reader.per_cell(
            lambda batch: self.module.encode(batch)["z"].mean.softmax(-1), adata, indices, batch_size
        )
        return pd.DataFrame(shares, index=self.reader.names(adata, indices))

    def get_topic_genes(self, n_genes=5):
        """Genes that a topic raises most, against the mean of all topics."""
        weight = self.module.likelihood.head.weight.detach().numpy()
        weight = pd.DataFrame(weight - weight.mean(axis=1, keepdims=True), index=self.get_var_names())
        return weight.apply(lambda column: ", ".join(column.nlargest(n_genes).index))


# %% [markdown]
# ## Train it

# %%
cells = sa.datasets.kang()
cells = cells[cells.obs["condition"] == "control"].copy()
TopicVAE.setup_anndata(cells)
model = TopicVAE(cells, n_topics=10)
model.train(enable_progress_bar=False)

topics = model.get_topics()
mean = topics.groupby(cells.obs["cell_type"], observed=True).mean()
mean.plot.barh(stacked=True, figsize=(9, 3.8), colormap="tab10", width=0.85, xlabel="share of topics").legend(
    bbox_to_anchor=(1, 1), frameon=False, title="topic"
)

# %%
model.get_topic_genes().to_frame("genes that the topic raises most")

# %% [markdown]
# **What to look at.** Types have topics of their own, and related types share some. That is the picture
# that a topic model is wanted for.
#
# ## Everything else came along
#
# Evidence beside the package's VAE, on cells that training left out; the price of reading is in nats:

# %%
sa.VAE.setup_anndata(cells)
vae = sa.VAE(cells)
vae.train(enable_progress_bar=False)
rows = np.asarray(model.validation_indices)
pd.Series(
    {type(m).__name__: m.get_marginal_ll(indices=rows, n_mc_samples=50) for m in (model, vae)},
    name="marginal log-likelihood (nats per cell)",
).round(1).to_frame()

# %%
model.save("topics", overwrite=True)
again = TopicVAE.load("topics", cells)
np.allclose(again.get_topics(), topics)

# %% [markdown]
# `annotate`, `get_normalized_expression`, `differential_expression`, `get_latent_genes`,
# `load_query_data`, checkpoints and training on a GPU work too: they only use the three methods. A
# complete example with its test, and what to do to bring a model into the package, is in [Your own
# model](../docs/own_model.md); the contract is `scalloy.vae.base`.
#
# **What not to believe.** Topics depend on the seed, and on their number: two runs give similar pictures
# and not the same ones.
