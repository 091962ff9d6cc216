"""The only place where a string becomes an object, with the message for a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch

from scalloy.blocks import likelihoods as lik
from scalloy.blocks import mixtures as mix
from scalloy.blocks.coupling import FirstOrder, SecondOrder, Uncoupled
from scalloy.blocks.joints import Coupled, Joint, Mixture, Product
from scalloy.blocks.likelihoods import Likelihood
from scalloy.data.checks import LARGEST, few
from scalloy.vae.base import Sizes

GeneLikelihood = Literal[
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
SecondLikelihood = Literal["background", "nb", "normal", "bernoulli"]
JointKind = Literal["poise", "gaussian", "independent", "product", "mixture"]
Library = Literal["observed", "learned", "none"]
CONDITIONING = ("decoder", "shared", "interaction", "full")
NORMS = ("layer", "batch", "none")
DISPERSIONS = ("gene", "gene-batch", "gene-cell")
LIBRARIES = ("observed", "learned", "none")
FREE, MANY, PER_CLUSTER = 5, 25, 1.5  # clusters beside the labels; components, at least


def one_of(argument: str, given: Any, known: Collection[str]) -> str:
    """``given``, if it is one of the known strings."""
    if given not in list(known):
        close = difflib.get_close_matches(str(given), list(known), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        msg = f"`{argument}={given!r}` is not known. Pass one of: {few(known)}.{hint}"
        raise ValueError(msg)
    return str(given)


def category(argument: str, given: Any, known: Sequence[str]) -> str:
    """Return the name of a category that is given by its name or its value, such as ``1`` for ``"1.0"``."""
    name: Any = given if given is None or isinstance(given, str) else str(given)
    if name not in known and isinstance(given, Real) and not isinstance(given, bool):
        same = [k for k in known if _as_number(k) == float(given)]
        name = same[0] if same else given
    return one_of(argument, name, known)


def _as_number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return float("nan")


def positive(**arguments: float) -> None:
    """Sizes and weights that must be above zero."""
    for name, value in arguments.items():
        if not isinstance(value, Real) or isinstance(value, bool | np.bool_) or not 0 < value < float("inf"):
            msg = f"`{name}={value!r}` must be above zero: pass a finite number."
            raise ValueError(msg)


def whole(**arguments: int) -> None:
    """Numbers of things, from one."""
    for name, value in arguments.items():
        if not isinstance(value, Integral) or isinstance(value, bool | np.bool_) or value < 1:
            msg = f"`{name}={value!r}` must be above zero: pass a whole number from 1."
            raise ValueError(msg)


def totals(own: str | None = "", **arguments: Any) -> None:
    """Totals of counts to which a cell is scaled; ``own`` stands for the one that it has."""
    for name, value in arguments.items():
        if own != "" and (value is own or (isinstance(value, str) and value == own)):
            continue
        if not isinstance(value, Real) or isinstance(value, bool | np.bool_) or not 0 < value <= LARGEST:
            or_own = "" if own == "" else f", or {own!r} for each cell's own"
            msg = (
                f"`{name}={value!r}` is not a total of counts. Pass a number above zero and up to "
                f"{LARGEST:.0e}{or_own}."
            )
            raise ValueError(msg)


def shares(**arguments: float) -> None:
    """Shares, which are at least zero and below one."""
    for name, value in arguments.items():
        if not 0 <= value < 1:
            msg = f"`{name}={value}` is a share: pass a number from 0 to below 1."
            raise ValueError(msg)


def check_latent(latent: int, n_latent: int) -> None:
    """A latent by its number."""
    if latent not in range(n_latent):
        msg = f"`latent={latent}` is not one of the {n_latent} latents, which begin at 0."
        raise ValueError(msg)


def check_range(name: str, made: Likelihood, x: Any, argument: str = "gene_likelihood") -> None:
    """The values lie where the likelihood has a density."""
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


def likelihood(
    name: str,
    sizes: Sizes,
    n_hidden: int,
    *,
    dispersion: str = "gene",
    library: str = "observed",
    k_max: int = 0,
) -> Likelihood:
    """Likelihood by its name, for a decoder with ``n_hidden`` units at its end."""
    one_of("dispersion", dispersion, DISPERSIONS)
    one_of("library", library, LIBRARIES)
    at = (n_hidden, sizes.n_vars)
    tied = {"library": library != "none"}
    nb = {"n_batch": sizes.n_batch, "dispersion": dispersion, **tied}
    makers: dict[str, Callable[[], Likelihood]] = {
        "nb": lambda: lik.NB(*at, **nb),
        "zinb": lambda: lik.ZeroInflated(lik.NB(*at, **nb)),
        "poisson": lambda: lik.Poisson(*at, **tied),
        "zip": lambda: lik.ZeroInflated(lik.Poisson(*at, **tied)),
        "constrained_poisson": lambda: lik.Poisson(*at),
        "gaussian": lambda: lik.Gaussian(*at),
        "mse": lambda: lik.Gaussian(*at, variance="fixed"),
        "normal": lambda: lik.Gaussian(*at, on="given"),
        "bernoulli": lambda: lik.Bernoulli(*at),
        "bernoulli_given": lambda: lik.Bernoulli(*at, on="given"),
    }
    one_of("gene_likelihood", name, makers)
    if name == "constrained_poisson" and library != "observed":
        msg = (
            f"`gene_likelihood='constrained_poisson'` ties the rates to the observed total of the cell, "
            f"but `library={library!r}`. Pass `library='observed'`, or `gene_likelihood='poisson'`."
        )
        raise ValueError(msg)
    if library != "observed" and name not in {"nb", "zinb", "poisson", "zip", "constrained_poisson"}:
        msg = f"`library={library!r}` has no meaning for `gene_likelihood={name!r}`; leave it out."
        raise ValueError(msg)
    if dispersion != "gene" and name not in {"nb", "zinb"}:
        msg = f"`dispersion={dispersion!r}` has no meaning for `gene_likelihood={name!r}`; leave it out."
        raise ValueError(msg)
    if k_max == 0:
        return makers[name]()
    if k_max < 0 or name not in {"nb", "poisson"}:
        msg = (
            f"`k_max={k_max}` with `gene_likelihood={name!r}` has no meaning: counts from 0 to below `k_max` "
            "become categories of 'nb' or 'poisson'. Pass one of these, and 0 or more."
        )
        raise ValueError(msg)
    nb["library"] = tied["library"] = False
    return lik.Piecewise(makers[name](), k_max, library=library != "none")


def clusters(n_clusters: int | None, n_labels: int, *, merges: bool) -> tuple[int | None, int]:
    """Number of clusters (``None``: to be found out) and of the components that make them."""
    if n_clusters is None:
        return (None, MANY) if merges else (n_labels + FREE, n_labels + FREE)
    positive(n_clusters=n_clusters)
    if n_clusters < n_labels:
        msg = f"`n_clusters={n_clusters}` is less than the {n_labels} labels. Pass at least {n_labels}."
        raise ValueError(msg)
    merges &= n_clusters > 1  # one cluster is one component
    return n_clusters, max(MANY, int(PER_CLUSTER * n_clusters)) if merges else n_clusters


def components(conditioning: str, sizes: Sizes, n_clusters: int, n_latent: int, n_w: int) -> mix.Components:
    """Components of a mixture by where the condition acts."""
    one_of("conditioning", conditioning, CONDITIONING)
    shared, own = conditioning in {"shared", "interaction"}, conditioning in {"interaction", "full"}
    known = {"n_conditions": sizes.n_conditions, "n_w": n_w}
    return mix.Components(n_clusters, n_latent, shared=shared, own=own, **known)


def weights(name: str, sizes: Sizes, n_clusters: int, alpha: float) -> mix.Weights:
    """Weights of a mixture by their name."""
    makers: dict[str, Callable[[], mix.Weights]] = {
        "global": lambda: mix.Dirichlet(n_clusters, alpha=alpha),
        "condition": lambda: mix.Dirichlet(n_clusters, sizes.n_conditions, alpha=alpha),
        "empirical": lambda: mix.Empirical(n_clusters),
        "uniform": lambda: mix.Fixed(torch.ones(n_clusters)),
        "local": lambda: mix.Local(n_clusters, alpha=alpha),
    }
    return makers[one_of("weights", name, makers)]()


def cluster_weights(given: str | Sequence[float], n_clusters: int) -> mix.Weights:
    """Weights of a mixture without a prior of theirs: learned, uniform, or these numbers."""
    if isinstance(given, str):
        learned = one_of("weights", given, ("learned", "uniform")) == "learned"
        return mix.Empirical(n_clusters) if learned else mix.Fixed(torch.ones(n_clusters))
    if len(given) != n_clusters or min(given) <= 0:
        msg = (
            f"`weights` must be {n_clusters} numbers above zero, one for each cluster; given: {list(given)}."
        )
        raise ValueError(msg)
    return mix.Fixed(torch.tensor(given))


def joint(name: str, n_latent: int, *, kappa: float, **chains: Any) -> Joint:
    """How the codes of two modalities go together, by its name."""
    shares(kappa=kappa)
    one_of("chains", chains["chains"], ("kept", "restarted"))
    both = (n_latent, n_latent)
    makers: dict[str, Callable[[], Joint]] = {
        "poise": lambda: Coupled(SecondOrder(*both, kappa=kappa, **chains)),
        "gaussian": lambda: Coupled(FirstOrder(*both)),
        "independent": lambda: Coupled(Uncoupled(*both)),
        "product": lambda: Product(n_latent),
        "mixture": lambda: Mixture(n_latent),
    }
    return makers[one_of("joint", name, makers)]()


def second_likelihood(name: str, sizes: Sizes, n_hidden: int) -> Likelihood:
    """Likelihood of the second of two modalities, whose variables may be missing one by one."""
    at = (n_hidden, sizes.n_vars2)
    makers: dict[str, Callable[[], Likelihood]] = {
        "background": lambda: lik.Background(*at),
        "nb": lambda: lik.NB(*at, library=False),
        "normal": lambda: lik.Gaussian(*at, on="given"),
        "bernoulli": lambda: lik.Bernoulli(*at, on="given"),
    }
    return makers[one_of("protein_likelihood", name, makers)]()
