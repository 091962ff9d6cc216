r"""Simulated spectrograms of ultrasonic syllables of mice, hearing and deaf, recorded on several days.

A syllable of a type lasts ``d`` ms. At time ``u`` from 0 to 1 within it, its ridge is at the frequency

    f(u) = p + shape(u) + wobble(u)
    p    = 65 kHz + animal + day of the animal + plasticity x progress(day) - deaf_effect [if deaf] + noise

and each pixel holds the loudness of the ridge, ``a(u) exp(-(f - f(u))^2 / 2 b^2)``, and background noise,
cut to [0, 1]. Progress goes from 0 on the first day to 1 on the last, and the ridge narrows with it: the
bandwidth ``b`` shrinks by 3 % for each kHz that the pitch has risen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from anndata import AnnData

FREQUENCY = np.linspace(32.0, 125.0, 32)  # kHz, of the rows of an image
TIME = np.linspace(2.0, 126.0, 32)  # ms, of its columns
PITCH, BANDWIDTH = 65.0, 4.0  # kHz
NARROWING = 0.03  # part of the bandwidth that is lost for each kHz of development
SHAPES: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    "flat": (1.0, np.zeros_like),  # how common, and kHz above the pitch at time u
    "up": (1.0, lambda u: 24 * (u - 0.5)),
    "down": (0.7, lambda u: 24 * (0.5 - u)),
    "chevron": (1.0, lambda u: 24 * (0.5 - np.abs(2 * u - 1))),
    "step": (0.7, lambda u: np.where(u < 0.5, -9.0, 9.0)),
    "harmonic": (0.6, np.zeros_like),  # and an overtone, around the same mean
}
OVERTONE = 1 / 3  # a harmonic's ridges are at 2/3 and 4/3 of the pitch


def songs(
    n_animals: int = 16,
    n_days: int = 4,
    n_syllables: int = 20,
    *,
    deaf_effect: float = 0.0,
    plasticity: float = 5.0,
    deaf_plasticity: float | None = None,
    animal_sd: float = 3.0,
    day_sd: float = 1.0,
    noise: float = 0.08,
    seed: int = 0,
) -> AnnData:
    """Simulate spectrograms of syllables that hearing and deaf mice sing on several days, with the truth.

    Each animal has a pitch, a bandwidth and a repertoire of its own, so that any two sets of animals differ.
    Half of the animals are deaf, chosen at random. Values lie in [0, 1], so set up with
    ``allow_non_counts=True`` and model with ``gene_likelihood="bernoulli_given"``. With the same seed, all
    random numbers are the same whatever the effects are.

    Parameters
    ----------
    n_animals, n_days
        Number of animals, of whom half (rounded up) can hear, and of days on which each is recorded.
    n_syllables
        Average number of syllables of an animal on a day; each has 50 to 150 % of it.
    deaf_effect
        Number of kHz by which the song of deaf animals is lower; 0 means that nothing tells the groups apart.
    plasticity
        Number of kHz by which the song rises from the first day to the last. It narrows at the same time.
    deaf_plasticity
        The same for deaf animals; ``None`` makes them as plastic as hearing ones.
    animal_sd, day_sd
        Standard deviation in kHz of the pitch between animals, and between the days of an animal.
    noise
        Standard deviation of the background of the spectrograms.
    seed
        Random seed.

    Returns
    -------
    AnnData of syllables x pixels (32 frequencies x 32 times, row by row). ``obs`` holds ``animal``,
    ``group``, ``day`` (from 1), ``syllable`` (its type), and the true ``pitch`` and ``bandwidth`` in kHz and
    ``duration`` in ms; ``uns`` holds the ``shape`` of an image, ``frequency`` and ``time`` of its rows and
    columns, and the ``truth`` about the groups.

    Examples
    --------
    >>> cells = sa.datasets.songs(4, 2, 10, deaf_effect=5.0)
    >>> cells.obs.groupby("group", observed=True)["animal"].nunique().to_dict()
    {'deaf': 2, 'hearing': 2}
    >>> image = cells.X[0].reshape(cells.uns["shape"])
    """
    if n_animals < 2 or n_days < 1 or n_syllables < 1:
        msg = (
            f"`n_animals={n_animals}`, `n_days={n_days}` and `n_syllables={n_syllables}` are too few. Pass "
            "two animals or more, a day and a syllable."
        )
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    rates = (plasticity, plasticity if deaf_plasticity is None else deaf_plasticity)
    deaf = rng.permutation(np.arange(n_animals) % 2).astype(bool)
    own_pitch = rng.normal(0, animal_sd, n_animals)
    own_width = np.exp(rng.normal(0, 0.08, n_animals))
    common = np.array([share for share, _ in SHAPES.values()])
    repertoire = rng.dirichlet(20 * common / common.sum(), n_animals)
    of_day = rng.normal(0, day_sd, (n_animals, n_days))

    least = max(1, n_syllables // 2)
    sizes = rng.integers(least, max(least, n_syllables + n_syllables // 2) + 1, (n_animals, n_days))
    a, day = (np.repeat(i.ravel(), sizes.ravel()) for i in np.indices(sizes.shape))
    kind = (rng.random(len(a))[:, None] > np.cumsum(repertoire, 1)[a, :-1]).sum(1)
    risen = np.where(deaf[a], rates[1], rates[0]) * day / max(1, n_days - 1)
    pitch = PITCH + (own_pitch - deaf_effect * deaf)[a] + of_day[a, day] + risen + rng.normal(0, 2.0, len(a))
    width = BANDWIDTH * own_width[a] * np.exp(-NARROWING * risen)
    duration = np.clip(70 * np.exp(rng.normal(0, 0.3, len(a))), 30, 120)
    images = _draw(rng, kind, pitch, width, duration, noise)

    obs = pd.DataFrame(
        {
            "animal": pd.Categorical([f"animal_{i}" for i in a], [f"animal_{i}" for i in range(n_animals)]),
            "group": pd.Categorical(np.where(deaf[a], "deaf", "hearing")),
            "day": day + 1,
            "syllable": pd.Categorical.from_codes(kind, list(SHAPES)),
            "pitch": pitch,
            "bandwidth": width,
            "duration": duration,
        },
        index=[f"syllable_{i}" for i in range(len(a))],
    )
    pixels = [f"{f:.0f}kHz_{t:.0f}ms" for f in FREQUENCY for t in TIME]
    adata = AnnData(images.reshape(len(a), -1), obs=obs, var=pd.DataFrame(index=pixels))
    adata.uns |= {"shape": np.array(images.shape[1:]), "frequency": FREQUENCY.copy(), "time": TIME.copy()}
    adata.uns["truth"] = {"deaf_effect": deaf_effect, "plasticity": rates[0], "deaf_plasticity": rates[1]}
    return adata


def _draw(
    rng: np.random.Generator,
    kind: np.ndarray,
    pitch: np.ndarray,
    width: np.ndarray,
    duration: np.ndarray,
    noise: float,
) -> np.ndarray:
    """Draw the spectrogram of each syllable, ``(syllables, frequencies, times)``."""
    n = len(kind)
    u = (TIME - TIME.mean()) / duration[:, None] + 0.5
    f = pitch[:, None] + np.stack([shape(u) for _, shape in SHAPES.values()])[kind, np.arange(n)]
    phase, depth = rng.uniform(0, 2 * np.pi, (n, 1)), rng.normal(0, 1.0, (n, 1))
    f += depth * np.sin(2 * np.pi * u + phase)
    loud = rng.uniform(0.75, 1.0, (n, 1)) * np.sqrt(np.sin(np.pi * np.clip(u, 0, 1)).clip(0))

    def ridge(at: np.ndarray, loudness: np.ndarray) -> np.ndarray:
        away = (FREQUENCY[:, None] - at[:, None]) / width[:, None, None]
        return loudness[:, None] * np.exp(-0.5 * away**2)

    two = (kind == list(SHAPES).index("harmonic"))[:, None]
    image = ridge(np.where(two, (1 - OVERTONE) * f, f), loud) + ridge((1 + OVERTONE) * f, loud * two)
    return np.clip(image + rng.normal(0, noise, image.shape), 0, 1).astype(np.float32)
