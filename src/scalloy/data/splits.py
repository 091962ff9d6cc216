"""Which cells train, which validate, which are kept aside."""

from __future__ import annotations

import numpy as np


def split(
    n: int,
    train_size: float | None = None,
    validation_size: float | None = None,
    *,
    shuffle: bool = True,
    seed: int = 0,
    kept: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows for training, validation and test; disjoint, and together all rows.

    Parameters
    ----------
    n
        Number of cells.
    train_size
        Fraction to train on, 0.9 unless given.
    validation_size
        Fraction to validate on, all the rest unless given.
    shuffle
        Whether to draw at random; otherwise validation comes first in the order of the data.
    seed
        Of the draw.
    kept
        Mask of cells to train on in any case, as far as there is room.
    """
    train_size = 0.9 if train_size is None else train_size
    if not 0 < train_size <= 1:
        msg = f"`train_size={train_size}` must lie in (0, 1]."
        raise ValueError(msg)
    n_train = int(np.ceil(round(train_size * n, 6)))
    rest = n - n_train
    n_val = rest if validation_size is None else int(np.floor(round(validation_size * n, 6)))
    if not 0 <= n_val <= rest:
        msg = f"`train_size={train_size}` and `validation_size={validation_size}` sum to more than 1."
        raise ValueError(msg)
    order = np.random.default_rng(seed).permutation(n) if shuffle else np.arange(n)
    if kept is not None:
        first = order[kept[order]][:n_train]
        others = order[~np.isin(order, first)]
        order = np.concatenate([others[:n_val], first, others[n_val:]])
    val, train, test = np.split(order, [n_val, n_val + n_train])
    return train, val, test
