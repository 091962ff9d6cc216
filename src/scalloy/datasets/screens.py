r"""Simulated drug screens: doses, times, combinations and descriptors, with the truth of every condition.

    eta_n(c)  =  rest_n  +  drift_k tau(t)  +  sum_a s_a R_ka  +  sum_{a < b} s_a s_b I_ab
    mean_n(c) =  ell_n softmax_g(eta_n(c))
    R_ka      =  sqrt(shared) (sqrt(described) D_a W + sqrt(1 - described) O_a) + sqrt(1 - shared) O_ka
    s_a       =  curve_a(dose) onset_a(t)

``n`` is a cell of type ``k``, ``c`` a condition that holds drugs ``a`` in doses at a time ``t``, ``R`` the
responses by gene at the largest dose, ``I`` the interactions, ``D`` the descriptors of a drug, ``W`` the
effect of a descriptor, and ``O`` what each drug does on its own. Dose curves are 1 at the largest dose:

    kind          curve
    "hill"        d^h / (d^h + m^h), saturating, with the slope h and the half-way dose m
    "log"         log(1 + d / m), linear in the logarithm of the dose above m
    "flat"        1 at all doses above 0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scalloy.datasets import draws

KINDS = ("hill", "log", "flat")
PAIRS = ("synergy", "none", "none", "antagonism", "none", "none")  # kinds of interaction, repeated
OF_CONTROL = 4.0  # number of cells under the control relative to that of another condition


def screen(
    n_obs: int = 6000,
    n_vars: int = 300,
    *,
    n_types: int = 3,
    n_drugs: int = 10,
    n_unseen: int = 2,
    n_pairs: int = 6,
    doses: Sequence[float] = (0.1, 0.5, 2.0, 10.0),
    times: Sequence[float] = (),
    n_descriptors: int = 3,
    described: float = 0.7,
    shared: float = 0.8,
    silent: int = 0,
    effect: float = 1.0,
    interaction: float = 1.0,
    theta: float = 4.0,
    library: float = 1500.0,
    seed: int = 0,
) -> AnnData:
    """Simulate counts of a screen of drugs in several doses and in combinations, with the true means.

    The model is that of :mod:`scalloy.datasets.screens`. About a third of the genes respond to a drug in all
    types, and another tenth in each single type. A third of the pairs interact, each on a tenth of the genes:
    half of these pairs in the direction of the two drugs (synergy), the other half against it.

    Parameters
    ----------
    n_obs, n_vars
        Number of cells and genes.
    n_types, n_drugs
        Number of cell types, and of drugs that cells were treated with.
    n_unseen
        Number of further drugs that have descriptors and a truth, but no cells.
    n_pairs
        Number of pairs of drugs that cells were treated with, each at two combinations of doses.
    doses
        Doses of each drug.
    times
        Times at which each condition was seen, including the control; without them there is no time.
    n_descriptors
        Number of descriptors of each drug.
    described
        Share of the variance of responses that follows from the descriptors.
    shared
        Share of the variance of a response that all types have in common; the rest is each type's own.
    silent
        Number of drugs without an effect (the last ones of those that have cells).
    effect, interaction
        Standard deviation of responses and of interactions across the genes that have them, on the log scale.
    theta, library
        Inverse dispersion of the counts, and median library size.
    seed
        Random seed.

    Returns
    -------
    AnnData with the columns ``cell_type``, ``drug`` (``"control"``, ``"drug_0"``, ``"drug_0+drug_1"``),
    ``dose`` (numbers; with pairs text, as in ``"0.5+2"``) and, with times, ``time`` in ``obs``. The true mean
    of each cell is in ``layers["mean"]``, and that without a drug (at the earliest time) in
    ``layers["mean_control"]``; :func:`true_means` and :func:`true_changes` return those under any condition.
    ``uns["descriptors"]`` has a row for each drug, ``uns["interactions"]`` the interaction of each pair, by
    gene, and ``uns["dose_curves"]`` the dose curve of each drug.

    Examples
    --------
    >>> cells = sa.datasets.screen(500, 40, n_drugs=3, n_pairs=1, doses=(1.0, 10.0))
    >>> sorted(cells.obs["dose"].unique())
    ['0', '1', '1+10', '10', '10+10']
    >>> interacting = cells.uns["interactions"].loc["drug_0+drug_1"] != 0  # genes
    """
    rng, doses = np.random.default_rng(seed), sorted(float(d) for d in doses)
    times = sorted(float(t) for t in times)
    types = [f"type_{i}" for i in range(n_types)]
    drugs = [f"drug_{i}" for i in range(n_drugs + n_unseen)]
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(n_vars)])
    rest, effects = _effects(rng, n_vars, n_types, len(drugs), n_descriptors, described, shared, effect)
    effects["responses"][:, n_drugs - silent : n_drugs] = 0
    pairs = [list(combinations(range(len(drugs)), 2))[i] for i in rng.permutation(_n_pairs(len(drugs)))]
    pairs.sort(key=lambda pair: max(pair) >= n_drugs)  # those of drugs with cells first
    interactions = _interactions(rng, effects["responses"].mean(0), pairs, interaction)
    conditions = _conditions(drugs[:n_drugs], pairs[:n_pairs], doses, times)

    k = rng.integers(n_types, size=n_obs)
    share = np.array([1.0 if parts else OF_CONTROL for parts, _ in conditions])
    c = rng.choice(len(conditions), n_obs, p=share / share.sum())
    factors = rng.normal(size=(n_obs, 2)) @ draws.sparse_effects(rng, n_vars, 2, 0.3, 0.25)
    ell = library * rng.lognormal(0, 0.3, (n_obs, 1))
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical([types[i] for i in k]), **_columns(conditions, c, n_pairs > 0)},
        index=[f"cell_{i}" for i in range(n_obs)],
    )
    adata = AnnData(sp.csr_matrix((n_obs, n_vars), dtype=np.float32), obs=obs, var=var)
    adata.uns["dose_curves"] = _curves(rng, drugs, doses, times)
    adata.uns["descriptors"] = pd.DataFrame(
        effects.pop("descriptors"), index=drugs, columns=[f"descriptor_{i}" for i in range(n_descriptors)]
    )
    names = [f"{drugs[a]}+{drugs[b]}" for a, b in sorted(pairs)]
    order = sorted(range(len(pairs)), key=pairs.__getitem__)
    adata.uns["interactions"] = pd.DataFrame(interactions[order], index=names, columns=var.index)
    adata.uns["screen"] = {**effects, "times": np.array(times), "highest": doses[-1]}
    adata.uns["theta"] = theta
    adata.layers["mean_control"] = draws.means(rest[k] + factors, ell)
    mean = np.zeros((n_obs, n_vars))
    for i, (parts, time) in enumerate(conditions):
        rows = np.flatnonzero(c == i)
        mean[rows] = _means_under(adata, rows, parts, time)
    adata.X = sp.csr_matrix(draws.counts(rng, mean, theta), dtype=np.float32)
    adata.layers["mean"] = mean.astype(np.float32)
    adata.layers["mean_control"] = adata.layers["mean_control"].astype(np.float32)
    return adata


def true_means(adata: AnnData, parts: Mapping[str, float], *, time: float | None = None) -> np.ndarray:
    """Return the true mean counts of each cell of a simulated screen under any condition, cells x genes.

    Parameters
    ----------
    adata
        Cells of :func:`screen`, all of them or some, with all genes.
    parts
        Dose of each drug, as in ``{"drug_0": 0.5, "drug_1": 2}``; empty is the control.
    time
        Time of the condition; ``None`` is the earliest.

    Examples
    --------
    >>> cells = sa.datasets.screen(200, 40)
    >>> sa.datasets.true_means(cells, {"drug_0": 30.0}).shape  # beyond the largest dose
    (200, 40)
    """
    drugs, times = adata.uns["dose_curves"].index, adata.uns["screen"]["times"]
    if unknown := [str(part) for part in parts if part not in drugs]:
        known = ", ".join(drugs)
        msg = f"`parts` has the drug {unknown[0]!r}, which the screen does not have. It has: {known}."
        raise ValueError(msg)
    if time is not None and not len(times):
        msg = f"`time={time}` was given, and the screen has no times. Leave it out, or simulate `times`."
        raise ValueError(msg)
    if list(adata.var_names) != list(adata.uns["interactions"].columns):
        msg = "`adata` does not have all genes of the screen in their order. Select genes of the result."
        raise ValueError(msg)
    earliest = float(times[0]) if len(times) else 0.0
    return _means_under(adata, np.arange(adata.n_obs), parts, earliest if time is None else float(time))


def true_changes(adata: AnnData, parts: Mapping[str, float], *, time: float | None = None) -> pd.DataFrame:
    """Return the true log fold changes of rates in a simulated screen under any condition, types x genes.

    The rate of a gene is its share in the mean counts of a cell, averaged over the cells of a type. Changes
    are against the control, at the earliest time if there are times.

    Parameters
    ----------
    adata
        Cells of :func:`screen`, all of them or some, with all genes.
    parts
        Dose of each drug, as in ``{"drug_0": 0.5, "drug_1": 2}``; empty is the control.
    time
        Time of the condition; ``None`` is the earliest.

    Examples
    --------
    >>> cells = sa.datasets.screen(200, 40)
    >>> sa.datasets.true_changes(cells, {"drug_0": 0.5, "drug_11": 2}).shape  # drug_11 has no cells
    (3, 40)
    """
    types = adata.obs["cell_type"].astype(str).to_numpy()

    def rates(mean: np.ndarray) -> pd.DataFrame:
        shares = pd.DataFrame(mean / mean.sum(1, keepdims=True), columns=adata.var_names)
        return shares.groupby(types).mean()

    after = rates(true_means(adata, parts, time=time))
    return np.log(after) - np.log(rates(np.asarray(adata.layers["mean_control"], dtype=float)))


# draws ---------------------------------------------------------------------------------------------


def _effects(
    rng: np.random.Generator,
    n_vars: int,
    n_types: int,
    n_drugs: int,
    n_descriptors: int,
    described: float,
    shared: float,
    effect: float,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the log rates of the types, and descriptors, responses to each drug and drifts over time."""
    sparse_effects = partial(draws.sparse_effects, rng, n_vars)
    rest = rng.normal(0, 1.2, n_vars) + sparse_effects(n_types, 0.3, 1.2)
    descriptors = rng.normal(size=(n_drugs, n_descriptors))
    common = np.sqrt(described / n_descriptors) * descriptors @ sparse_effects(n_descriptors, 0.1, effect)
    common += np.sqrt(1 - described) * sparse_effects(n_drugs, 0.1, effect)
    own = sparse_effects(n_types * n_drugs, 0.1, effect).reshape(n_types, n_drugs, n_vars)
    responses = np.sqrt(shared) * common + np.sqrt(1 - shared) * own
    drift = sparse_effects(n_types, 0.1, 0.5 * effect)
    return rest, {"descriptors": descriptors, "responses": responses, "drift": drift}


def _n_pairs(n: int) -> int:
    """Return the number of pairs of ``n`` things."""
    return n * (n - 1) // 2


def _interactions(
    rng: np.random.Generator, response: np.ndarray, pairs: Sequence[tuple[int, int]], scale: float
) -> np.ndarray:
    """Return the interaction of each pair at the largest doses, pairs x genes; it is 0 in most."""
    size = np.abs(draws.sparse_effects(rng, response.shape[1], len(pairs), 0.1, scale))
    either = rng.choice([-1.0, 1.0], size.shape)
    for i, (a, b) in enumerate(pairs):
        kind, silent = PAIRS[i % len(PAIRS)], not (response[a].any() and response[b].any())
        sign = np.sign(response[a] + response[b])
        size[i] *= 0 if kind == "none" or silent else 1 if kind == "synergy" else -1
        size[i] *= np.where(sign, sign, either[i])
    return size


def _conditions(
    drugs: Sequence[str], pairs: Sequence[tuple[int, int]], doses: Sequence[float], times: Sequence[float]
) -> list[tuple[dict[str, float], float]]:
    """List the conditions that have cells: doses of drugs, and times."""
    middle, high = doses[len(doses) // 2] if len(doses) > 2 else doses[0], doses[-1]
    parts: list[dict[str, float]] = [{}, *({drug: dose} for drug in drugs for dose in doses)]
    for a, b in pairs:
        parts += [{drugs[a]: middle, drugs[b]: high}, {drugs[a]: high, drugs[b]: high}]
    return [(p, t) for p in parts for t in times or (0.0,)]


def _columns(
    conditions: Sequence[tuple[Mapping[str, float], float]], c: np.ndarray, as_text: bool
) -> dict[str, np.ndarray | pd.Categorical]:
    """Return the columns of ``.obs`` that say the condition of each cell."""
    drug = np.array(["+".join(parts) or "control" for parts, _ in conditions])
    out: dict[str, np.ndarray | pd.Categorical] = {"drug": pd.Categorical(drug[c])}
    if as_text:
        text = ["+".join(f"{dose:g}" for dose in parts.values()) or "0" for parts, _ in conditions]
        out["dose"] = pd.Categorical(np.array(text)[c])
    else:
        out["dose"] = np.array([sum(parts.values()) for parts, _ in conditions])[c]
    if len({time for _, time in conditions}) > 1:
        out["time"] = np.array([time for _, time in conditions])[c]
    return out


def _curves(
    rng: np.random.Generator, drugs: Sequence[str], doses: Sequence[float], times: Sequence[float]
) -> pd.DataFrame:
    """Draw the dose curve and the speed of each drug."""
    n, (low, high) = len(drugs), np.log([doses[0], doses[-1]])
    latest = times[-1] if times else 1.0
    return pd.DataFrame(
        {
            "kind": np.resize(KINDS, n),
            "halfway": np.exp(rng.uniform(low + 0.25 * (high - low), high - 0.25 * (high - low), n)),
            "slope": rng.uniform(1.0, 3.0, n),
            "onset": np.exp(rng.uniform(np.log(latest / 6), np.log(latest), n)),
        },
        index=list(drugs),
    )


# truth ---------------------------------------------------------------------------------------------


def _means_under(adata: AnnData, rows: np.ndarray, parts: Mapping[str, float], time: float) -> np.ndarray:
    """Return the mean counts of some cells under a condition."""
    known = adata.uns["screen"]
    strengths = {drug: _strength(adata, drug, dose, time) for drug, dose in parts.items()}
    drugs = list(adata.uns["dose_curves"].index)
    change = _passed(known["times"], time) * known["drift"]
    for drug, strength in strengths.items():
        change = change + strength * known["responses"][:, drugs.index(drug)]
    for a, b in combinations(sorted(strengths, key=drugs.index), 2):
        interaction = adata.uns["interactions"].loc[f"{a}+{b}"].to_numpy()
        change = change + strengths[a] * strengths[b] * interaction
    k = adata.obs["cell_type"].astype(str).str.removeprefix("type_").to_numpy(dtype=int)[rows]
    mean = np.asarray(adata.layers["mean_control"][rows], dtype=float)
    return draws.means(np.log(mean) + change[k], mean.sum(1, keepdims=True))


def _strength(adata: AnnData, drug: str, dose: float, time: float) -> float:
    """Return the strength of a drug at a dose and a time; it is 1 at the largest dose and the latest time."""
    curve, known = adata.uns["dose_curves"].loc[drug], adata.uns["screen"]
    if dose <= 0:
        return 0.0
    at, highest = float(dose), float(known["highest"])
    of_dose = {
        "hill": lambda d: 1 / (1 + (curve["halfway"] / d) ** curve["slope"]),
        "log": lambda d: np.log1p(d / curve["halfway"]),
        "flat": lambda d: 1.0,
    }[curve["kind"]]
    strength = of_dose(at) / of_dose(highest)
    if len(known["times"]):
        latest = float(known["times"][-1])
        strength *= np.expm1(-time / curve["onset"]) / np.expm1(-latest / curve["onset"])
    return float(strength)


def _passed(times: np.ndarray, time: float) -> float:
    """Return the time since the earliest, on a scale on which the latest is 1."""
    return (time - times[0]) / (times[-1] - times[0]) if len(times) > 1 else 0.0
