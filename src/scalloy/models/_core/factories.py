"""Objects by the strings that users pass, with messages for wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch

from scalloy._arguments import one_of, positive, shares
from scalloy._registry import taken_by
from scalloy.blocks import likelihoods as lik
from scalloy.blocks import mixtures as mix
from scalloy.blocks.categorical import Categorical
from scalloy.blocks.coupled_prior import FirstOrder, SecondOrder, Uncoupled
from scalloy.blocks.gene_likelihoods import LIKELIHOODS
from scalloy.blocks.joint_posteriors import Coupled, Joint, MixtureOfExperts, ProductOfExperts, Shared
from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.mixture_weights import WEIGHTS
from scalloy.vae.base import Sizes

GeneLikelihood = (
    Literal[
        "nb",
        "zinb",
        "poisson",
        "zip",
        "constrained_poisson",
        "gaussian",
        "mse",
        "normal",
        "bernoulli",
        "bernoulli_given",
    ]
    | str  # a name that users registered
)
MixtureWeights = Literal["global", "condition", "empirical", "uniform", "local"] | str
OtherLikelihood = Literal[
    "background", "nb", "nb_total", "poisson", "detected", "normal", "bernoulli", "categorical"
]
JointKind = Literal["poise", "gaussian", "independent", "product", "mixture"]
Library = Literal["observed", "learned", "none"]
CONDITIONING = ("decoder", "shared", "interaction", "full")
DISPERSIONS = ("gene", "gene-batch", "gene-cell")
LIBRARIES = ("observed", "learned", "none")
FREE, MANY, PER_CLUSTER = 5, 25, 1.5  # clusters beside the labels; components, at least


def check_range(name: str, made: Likelihood, x: Any, argument: str = "gene_likelihood") -> None:
    """Check that the likelihood has a density where the values lie."""
    low, high = float(x.min()), float(x.max())
    if made.counts and low < 0:
        msg = (
            f"`{argument}={name!r}` needs values from 0, but the data go down to {low:.4g}. "
            "Pass 'normal', or raw counts."
        )
        raise ValueError(msg)
    if isinstance(made, lik.Bernoulli) and made.on == "given" and not 0 <= low <= high <= 1:
        msg = f"`{argument}={name!r}` needs values within [0, 1]; the data lie in [{low:.4g}, {high:.4g}]."
        raise ValueError(msg)


def check_categories(argument: str, x: Any) -> None:
    """Check that each row has a one in the column of its category, and zeros elsewhere."""
    square = x.multiply(x) if sp.issparse(x) else np.square(x)
    sums = [np.asarray(v.sum(1)).ravel() for v in (x, square)]
    if not all(np.allclose(v, 1.0) for v in sums):
        msg = (
            f"`{argument}='categorical'` needs one category per cell: a one in its column and zeros "
            "elsewhere, as `pd.get_dummies(adata.obs[column])` has; NaN throughout where not measured."
        )
        raise ValueError(msg)


def likelihood(
    name: str,
    sizes: Sizes,
    n_hidden: int,
    *,
    dispersion: str = "gene",
    library: str = "observed",
    k_max: int = 0,
) -> Likelihood:
    """Return the likelihood of this name, for a decoder with ``n_hidden`` units at its end."""
    one_of("dispersion", dispersion, DISPERSIONS)
    one_of("library", library, LIBRARIES)
    make = LIKELIHOODS[LIKELIHOODS.one_of("gene_likelihood", name)]
    given = {"library": library != "none", "dispersion": dispersion, "n_batch": sizes.n_batch, "k_max": k_max}
    taken = taken_by(make, given)
    if name == "constrained_poisson" and library != "observed":
        msg = (
            f"`gene_likelihood='constrained_poisson'` ties the rates to the observed total of the cell, "
            f"but `library={library!r}`. Pass `library='observed'`, or `gene_likelihood='poisson'`."
        )
        raise ValueError(msg)
    if library != "observed" and "library" not in taken:
        msg = f"`library={library!r}` has no meaning for `gene_likelihood={name!r}`; leave it out."
        raise ValueError(msg)
    if dispersion != "gene" and "dispersion" not in taken:
        msg = f"`dispersion={dispersion!r}` has no meaning for `gene_likelihood={name!r}`; leave it out."
        raise ValueError(msg)
    if k_max < 0 or (k_max and "k_max" not in taken):
        msg = (
            f"`k_max={k_max}` with `gene_likelihood={name!r}` has no meaning: counts from 0 to below `k_max` "
            "become categories of 'nb' or 'poisson'. Pass one of these, and 0 or more."
        )
        raise ValueError(msg)
    return make(n_hidden, sizes.n_vars, **taken)


def clusters(n_clusters: int | None, n_labels: int, *, merges: bool) -> tuple[int | None, int]:
    """Return the number of clusters (``None``: to be found) and of the components that make them."""
    if n_clusters is None:
        return (None, MANY) if merges else (n_labels + FREE, n_labels + FREE)
    positive(n_clusters=n_clusters)
    if n_clusters < n_labels:
        msg = f"`n_clusters={n_clusters}` is less than the {n_labels} labels. Pass at least {n_labels}."
        raise ValueError(msg)
    merges &= n_clusters > 1  # one cluster is one component
    return n_clusters, max(MANY, int(PER_CLUSTER * n_clusters)) if merges else n_clusters


def components(conditioning: str, sizes: Sizes, n_clusters: int, n_latent: int, n_w: int) -> mix.Components:
    """Return the components of a mixture, which the condition moves in this way."""
    one_of("conditioning", conditioning, CONDITIONING)
    shared, own = conditioning in {"shared", "interaction"}, conditioning in {"interaction", "full"}
    known: dict[str, Any] = {"conditions": sizes.conditions, "n_w": n_w}
    return mix.Components(n_clusters, n_latent, shared=shared, own=own, **known)


def weights(name: str, sizes: Sizes, n_clusters: int, alpha: float) -> mix.Weights:
    """Return the weights of a mixture of this name."""
    make, _ = WEIGHTS[WEIGHTS.one_of("weights", name)]
    return make(n_clusters, **taken_by(make, {"n_conditions": sizes.n_conditions, "alpha": alpha}))


def merges(name: str) -> bool:
    """Tell whether components with the weights of this name may be merged into clusters."""
    return name in WEIGHTS and WEIGHTS[name][1]


def cluster_weights(given: str | Sequence[float], n_clusters: int) -> mix.Weights:
    """Return weights of a mixture that have no prior: learned, uniform, or the given numbers."""
    if isinstance(given, str):
        learned = one_of("weights", given, ("learned", "uniform")) == "learned"
        return mix.Empirical(n_clusters) if learned else mix.Fixed(torch.ones(n_clusters))
    if len(given) != n_clusters or min(given) <= 0:
        msg = (
            f"`weights` must be {n_clusters} numbers above zero, one for each cluster; given: {list(given)}."
        )
        raise ValueError(msg)
    return mix.Fixed(torch.tensor(given))


def joint(name: str, n_latent: int, n_modalities: int = 2, *, kappa: float, **chains: Any) -> Joint:
    """Return the joint distribution of this name for the codes of several modalities."""
    shares(kappa=kappa)
    one_of("chains", chains["chains"], ("kept", "restarted"))
    sizes = (n_latent,) * n_modalities
    makers: dict[str, Callable[[], Joint]] = {
        "poise": lambda: Coupled(SecondOrder(sizes, kappa=kappa, **chains)),
        "gaussian": lambda: Coupled(FirstOrder(sizes)),
        "independent": lambda: Coupled(Uncoupled(sizes)),
        "product": lambda: Shared(n_latent, ProductOfExperts(), n_modalities),
        "mixture": lambda: Shared(n_latent, MixtureOfExperts(), n_modalities),
    }
    return makers[one_of("joint", name, makers)]()


def other_likelihood(argument: str, name: str, n_vars: int, n_hidden: int) -> Likelihood:
    """Return the likelihood of this name for a modality beside the first; single entries may be missing."""
    at = (n_hidden, n_vars)
    makers: dict[str, Callable[[], Likelihood]] = {
        "background": lambda: lik.Background(*at),
        "nb": lambda: lik.NB(*at, library=False),
        "nb_total": lambda: lik.NB(*at),
        "poisson": lambda: lik.Poisson(*at),
        "detected": lambda: lik.Bernoulli(*at),
        "normal": lambda: lik.Gaussian(*at, on="given"),
        "bernoulli": lambda: lik.Bernoulli(*at, on="given"),
        "categorical": lambda: Categorical(*at),
    }
    return makers[one_of(argument, name, makers)]()
