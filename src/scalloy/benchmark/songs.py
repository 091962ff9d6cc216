"""Simulated song of hearing and deaf mice in the latent space of a VAE: do they differ, and do they change?

========================  ==================================================================================
question                  answer
========================  ==================================================================================
hearing and deaf          whole animals are permuted between the groups
first and last day        the two days of each animal are permuted; of all animals, of hearing and of deaf
consecutive days          the same of each pair; the smallest of the p-values, corrected for their number
plasticity of the groups  animals are permuted; how far each moved along the path of the others, see
                          :func:`movements`
========================  ==================================================================================

The naive test beside them permutes syllables.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from scipy.stats import binomtest, false_discovery_control, permutation_test

from scalloy import compare, datasets, pl
from scalloy._arguments import one_of, whole
from scalloy.benchmark.evidence import keeps_seed
from scalloy.benchmark.fit import QUIET
from scalloy.data.arrays import check_obsm
from scalloy.models import VAE

LEVEL = 0.05
AT_LEAST = 5  # syllables of an animal on a day
REP = "X_vae"
STUDIES: dict[str, dict[str, float]] = {
    "nothing": {"plasticity": 0.0},
    "plastic": {"plasticity": 5.0},
    "deaf lower": {"plasticity": 5.0, "deaf_effect": 6.0},
    "deaf rigid": {"plasticity": 5.0, "deaf_plasticity": 0.0},
}


def songs(
    studies: Sequence[str] | None = None,
    *,
    n_simulations: int = 50,
    n_animals: int = 16,
    n_days: int = 4,
    n_syllables: int = 20,
    n_latent: int = 32,
    n_hidden: int = 128,
    max_epochs: int = 20,
    n_permutations: int = 1000,
) -> pd.DataFrame:
    """Simulate studies, train a VAE on each, and test the groups, the days and the plasticity of the groups.

    Parameters
    ----------
    studies
        Names of :data:`STUDIES`: ``"nothing"`` (no plasticity), ``"plastic"`` (the song rises by 5 kHz in
        both groups), ``"deaf lower"`` (and deaf animals sing 6 kHz lower) or ``"deaf rigid"`` (only hearing
        animals are plastic); ``None`` takes all.
    n_simulations
        Number of simulations of each study; its number is the random seed of data, VAE and permutations.
    n_animals, n_days, n_syllables
        Number of animals and days, and average number of syllables, see :func:`scalloy.datasets.songs`.
    n_latent, n_hidden, max_epochs
        Size of the VAE, and maximum number of epochs.
    n_permutations
        Maximum number of permutations per test.

    Returns
    -------
    One row per simulation and question: whether a difference is ``planted``; ``effect`` (see
    :func:`scalloy.compare.groups`; of plasticity, the difference of the means over the standard deviation);
    ``pvalue``; and ``naive``, the p-value if syllables were independent.
    """
    chosen = [one_of("studies", s, STUDIES) for s in (STUDIES if studies is None else studies)]
    whole(n_simulations=n_simulations)
    sizes = {"n_animals": n_animals, "n_days": n_days, "n_syllables": n_syllables}
    model = {"n_latent": n_latent, "n_hidden": n_hidden, "max_epochs": max_epochs}
    parts = []
    for name in chosen:
        for seed in range(n_simulations):
            adata = datasets.songs(**sizes, **STUDIES[name], seed=seed)
            embed(adata, seed=seed, **model).deregister_manager(adata)  # or they all stay in memory
            found = answers(adata, n_permutations=n_permutations, seed=seed)
            found.insert(0, "study", name)
            parts.append(found.assign(seed=seed))
    return pd.concat(parts, ignore_index=True)


@keeps_seed()
def embed(
    adata: AnnData, *, n_latent: int = 32, n_hidden: int = 128, max_epochs: int = 20, seed: int = 0
) -> VAE:
    """Train a VAE on spectrograms without telling it animals, groups or days, and write its latent space.

    Parameters
    ----------
    adata
        Syllables of :func:`scalloy.datasets.songs`; ``.obsm["X_vae"]`` is written.
    n_latent, n_hidden, max_epochs
        Size of the VAE, and maximum number of epochs.
    seed
        Random seed of the weights, the split and the training.
    """
    scvi.settings.seed = seed
    VAE.setup_anndata(adata, allow_non_counts=True)
    model = VAE(
        adata, gene_likelihood="bernoulli_given", n_latent=n_latent, n_hidden=n_hidden, dropout_rate=0.0
    )
    model.train(max_epochs=max_epochs, batch_size=32, **QUIET)
    adata.obsm[REP] = model.get_latent_representation()
    return model


def answers(adata: AnnData, *, n_permutations: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Answer every question about one study, in ``.obsm["X_vae"]``.

    Parameters
    ----------
    adata
        Syllables with columns ``animal``, ``group`` and ``day``, and the truth in ``.uns["truth"]``.
    n_permutations
        Maximum number of permutations per test.
    seed
        Random seed of the permutations.
    """
    truth = adata.uns["truth"]
    rates = {"hearing": truth["plasticity"], "deaf": truth["deaf_plasticity"]}
    other = rates["hearing"] != rates["deaf"]
    given = {"n_permutations": n_permutations, "rng": seed}
    days = sorted(adata.obs["day"].unique())

    rows = [_tested("hearing and deaf", bool(truth["deaf_effect"]) or other, adata, "group", **given)]
    ends = adata[adata.obs["day"].isin([days[0], days[-1]]).to_numpy()]
    rows.append(_tested("first and last day", any(rates.values()), ends, "day", **given))
    for group, rate in rates.items():
        own = ends[(ends.obs["group"] == group).to_numpy()]
        rows.append(_tested(f"first and last day, {group}", bool(rate), own, "day", **given))
    pairs = pd.DataFrame(
        [
            _tested("consecutive days", any(rates.values()), adata[of.to_numpy()], "day", **given)
            for of in (adata.obs["day"].isin(two) for two in pairwise(days))
        ]
    )
    smallest = {c: false_discovery_control(pairs[c]).min() for c in ("pvalue", "naive")}
    rows.append({**pairs.iloc[0], "effect": pairs["effect"].mean(), **smallest})
    moved = difference(movements(adata, REP))
    rows.append({"question": "plasticity of the groups", "planted": other, **moved, "naive": np.nan})
    return pd.DataFrame(rows)


def _tested(question: str, planted: bool, adata: AnnData, groupby: str, **given: Any) -> dict[str, Any]:
    """Compare two groups or days, with animals permuted and with syllables permuted."""
    own, naive = (
        compare.groups(adata, REP, groupby=groupby, donor_key=key, at_least=AT_LEAST, **given).iloc[0]
        for key in ("animal", None)
    )
    found = {"effect": own["effect"], "pvalue": own["pvalue"], "naive": naive["pvalue"]}
    return {"question": question, "planted": planted, **found}


def movements(adata: AnnData, use_rep: str) -> pd.DataFrame:
    """Return how far each animal has moved since its first day, along the path of all other animals.

    The path of an animal goes from the mean of its syllables on the first day to that on the last. Its length
    says little: it is positive even where nothing changes, since means of a few syllables are noisy. Each
    path is therefore projected onto the sum of those of all other animals, whose noise is independent. Groups
    play no part in this, so that they may be permuted afterwards.

    Parameters
    ----------
    adata
        Syllables with columns ``animal``, ``group`` and ``day``; each animal has some on each day.
    use_rep
        Key of ``.obsm`` with the latent space.

    Returns
    -------
    One row per animal and day, with its ``group`` and ``moved``, in the units of the latent space.

    Examples
    --------
    >>> from scalloy.benchmark.songs import movements
    >>> cells = sa.datasets.songs(4, 3, 10)
    >>> cells.obsm["X_pixels"] = cells.X
    >>> movements(cells, "X_pixels").columns.tolist()
    ['animal', 'day', 'group', 'moved']
    """
    keys = [adata.obs["animal"].astype(str), adata.obs["day"]]
    means = pd.DataFrame(check_obsm(adata, "use_rep", use_rep), index=adata.obs_names).groupby(keys).mean()
    animals, days = means.index.levels
    z = means.to_numpy().reshape(len(animals), len(days), -1)
    since = z - z[:, :1]
    path = since[:, -1].sum(0) - since[:, -1]
    path /= np.linalg.norm(path, axis=1, keepdims=True)
    group = adata.obs["group"].astype(str).groupby(keys[0]).first()
    out = means.index.to_frame(index=False)
    out["group"] = group.reindex(out["animal"]).to_numpy()
    return out.assign(moved=np.einsum("adk,ak->ad", since, path).ravel())


def difference(moves: pd.DataFrame, *, n_permutations: int = 20_000, seed: int = 0) -> dict[str, float]:
    """Test whether hearing and deaf animals have moved equally far by the last day.

    The groups of the animals are permuted: all ways if there are at most ``n_permutations``, such as the
    12,870 of eight and eight animals, so that the p-value is exact.

    Parameters
    ----------
    moves
        What :func:`movements` returned.
    n_permutations
        Maximum number of permutations.
    seed
        Random seed of the permutations.

    Examples
    --------
    >>> from scalloy.benchmark.songs import difference
    >>> moves = pd.DataFrame({"group": ["hearing"] * 3 + ["deaf"] * 3, "day": 2, "moved": [4, 5, 6, 1, 2, 3]})
    >>> difference(moves)
    {'effect': 3.0, 'pvalue': 0.1}
    """
    last = moves[moves["day"] == moves["day"].max()]
    hearing, deaf = (last.loc[last["group"] == g, "moved"].to_numpy() for g in ("hearing", "deaf"))

    def apart(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return x.mean(axis) - y.mean(axis)

    rng = np.random.default_rng(seed)
    p = permutation_test((hearing, deaf), apart, vectorized=True, n_resamples=n_permutations, rng=rng).pvalue
    n = len(hearing) + len(deaf) - 2
    sd = np.sqrt((((hearing - hearing.mean()) ** 2).sum() + ((deaf - deaf.mean()) ** 2).sum()) / n)
    return {"effect": float((hearing.mean() - deaf.mean()) / sd), "pvalue": float(p)}


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how often each question was answered with a difference, at 5 %, with a 95 % interval.

    Parameters
    ----------
    frame
        Table that :func:`songs` returned.
    """
    rows = []
    for (study, question, planted), part in frame.groupby(["study", "question", "planted"], sort=False):
        hits = int((part["pvalue"] <= LEVEL).sum())
        low, high = binomtest(hits, len(part)).proportion_ci()
        naive = (part["naive"] <= LEVEL).mean() if part["naive"].notna().all() else np.nan
        row = {"study": study, "question": question, "planted": planted, "effect": part["effect"].mean()}
        row |= {"rejected": hits / len(part), "low": low, "high": high, "naive": naive}
        rows.append(row | {"simulations": len(part)})
    return pd.DataFrame(rows)


def pictures(
    folder: Path, *, n_animals: int = 16, n_days: int = 4, n_syllables: int = 40, max_epochs: int = 60
) -> list[Path]:
    """Draw syllables and their reconstructions, the latent space with the paths of animals, and the tests.

    Parameters
    ----------
    folder
        Folder in which ``songs_syllables.png``, ``songs_latent.png`` and ``songs_null.png`` are written.
    n_animals, n_days, n_syllables
        Number of animals and days, and average number of syllables.
    max_epochs
        Maximum number of epochs of the VAE.
    """
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    made, models = {}, {}
    for name in ("plastic", "deaf lower", "deaf rigid"):
        made[name] = datasets.songs(n_animals, n_days, n_syllables, **STUDIES[name])
        models[name] = embed(made[name], max_epochs=max_epochs)
    drawn = {
        "syllables": _draw_syllables(models["plastic"]),
        "latent": _draw_latent(made["plastic"], made["deaf rigid"]),
        "null": _draw_null(made["plastic"], made["deaf lower"]),
    }
    for name, figure in drawn.items():
        figure.savefig(folder / f"songs_{name}.png", dpi=80)
        plt.close(figure)
    return [folder / f"songs_{name}.png" for name in drawn]


def _draw_syllables(model: VAE, n: int = 3) -> Any:
    """Draw syllables of each type, and below each what the decoder makes of its code."""
    import matplotlib.pyplot as plt

    adata = model.adata
    rebuilt = model.get_normalized_expression(library_size="latent", return_numpy=True)
    kinds = adata.obs["syllable"].cat.categories
    figure = plt.figure(figsize=(8.4, 4.6), layout="constrained")
    for part, kind in zip(figure.subfigures(2, 3).ravel(), kinds):
        part.suptitle(kind, fontsize="medium")
        rows = np.flatnonzero(adata.obs["syllable"] == kind)[:n]
        axes = part.subplots(2, n, gridspec_kw={"wspace": 0.02, "hspace": 0.02}, squeeze=False)
        for ax in axes.ravel():
            ax.axis("off")
        for i, column in zip(rows, axes.T):
            for ax, pixels in zip(column, (adata.X[i], rebuilt[i])):
                image = pixels.reshape(adata.uns["shape"])
                ax.imshow(image, origin="lower", cmap="magma", vmin=0, vmax=1)
    return figure


def _draw_latent(plastic: AnnData, rigid: AnnData) -> Any:
    """Draw the latent space by type and day, and how far animals have moved day by day."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_hex

    figure = plt.figure(figsize=(9.6, 7.2), layout="constrained")
    maps, lines = (part.subplots(1, 2) for part in figure.subfigures(2, 1, hspace=0.03))
    shown = AnnData(obs=plastic.obs[["syllable", "day"]].astype("category"), obsm={REP: plastic.obsm[REP]})
    n_days = shown.obs["day"].nunique()
    shown.uns["day_colors"] = [to_hex(c) for c in plt.get_cmap("viridis")(np.linspace(0, 0.95, n_days))]
    pl.latent(shown, ["syllable", "day"], use_rep=REP, ax=maps)
    titles = ("hearing and deaf are equally plastic", "deaf are not plastic")
    for ax, adata, title in zip(lines, (plastic, rigid), titles):
        moves = movements(adata, REP)
        for group, color in (("hearing", "tab:blue"), ("deaf", "tab:orange")):
            own = moves[moves["group"] == group].pivot(index="day", columns="animal", values="moved")
            ax.plot(own, color=color, alpha=0.35, linewidth=1)
            ax.plot(own.mean(axis=1), "o-", color=color, linewidth=2.5, label=group)
        p = difference(moves)["pvalue"]
        ax.set_title(f"{title}: p = {p:.2g}", fontsize="medium")
        ax.set(xlabel="day", ylabel="moved along the common path", xticks=sorted(moves["day"].unique()))
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
    return figure


def _draw_null(plastic: AnnData, lower: AnnData) -> Any:
    """Draw the null distributions of the groups: with animals and syllables permuted, and a difference."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10.4, 3), layout="constrained")
    shown = ((plastic, None), (plastic, "animal"), (lower, "animal"))
    titles = ("groups do not differ, syllables permuted", "groups do not differ", "deaf animals sing lower")
    for ax, (adata, key), title in zip(axes, shown, titles):
        found = compare.groups(adata, REP, groupby="group", donor_key=key)
        pl.null(found, ax=ax)
        ax.set_title(f"{title}\np = {found['pvalue'][0]:.2g}", fontsize="medium")
        ax.set_ylim(0, 1.4 * ax.get_ylim()[1])  # room for the legend
        ax.locator_params(axis="x", nbins=4)
    return figure
